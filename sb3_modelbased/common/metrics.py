"""Averages that live on the device until somebody reads them."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


class RunningMeans:
    """
    Means of scalars over many updates, without a host synchronisation per update.

    A value that is not finite makes its mean not finite, which is how divergence is noticed.
    """

    def __init__(self) -> None:
        # By the names that are added together, which costs three operations however many they are: sums [N], and how many
        self._sums: dict[tuple[str, ...], th.Tensor] = {}
        self._counts: dict[tuple[str, ...], th.Tensor] = {}

    def add(self, **scalars: th.Tensor) -> None:
        """
        :param scalars: detached one-element tensors by name
        """
        names, values = tuple(scalars), th.stack([value.reshape(()) for value in scalars.values()])
        if names in self._sums:
            self._sums[names] += values
            self._counts[names] += 1
        else:
            self._sums[names] = values
            self._counts[names] = values.new_ones(())

    def means(self) -> dict[str, float]:
        """
        :return: mean of every scalar since the last :meth:`clear`
        """
        sums: dict[str, float] = defaultdict(float)
        counts: dict[str, float] = defaultdict(float)
        for names, total in self._sums.items():
            count = self._counts[names].item()
            for name, value in zip(names, total.tolist(), strict=True):
                sums[name] += value
                counts[name] += count
        return {name: total / counts[name] for name, total in sums.items() if counts[name] > 0}

    def clear(self) -> None:
        """Start anew."""
        # In place: a CUDA graph may hold on to these tensors, the counts included
        for value in (*self._sums.values(), *self._counts.values()):
            value.zero_()


class Stopwatch:
    """Wall-clock seconds by activity, summed over a training."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, activity: str) -> Iterator[None]:
        """
        :param activity: what the time of the block is added to
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[activity] += time.perf_counter() - start
