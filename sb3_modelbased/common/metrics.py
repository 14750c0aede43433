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
        self._sums: dict[str, th.Tensor] = {}
        self._counts: dict[str, th.Tensor] = {}

    def add(self, **scalars: th.Tensor) -> None:
        """
        :param scalars: detached one-element tensors by name
        """
        for name, value in scalars.items():
            if name in self._sums:
                self._sums[name] += value.reshape(())
                self._counts[name] += 1
            else:
                self._sums[name] = value.reshape(()).clone()
                self._counts[name] = th.ones_like(self._sums[name])

    def means(self) -> dict[str, float]:
        """
        :return: mean of every scalar since the last :meth:`clear`
        """
        means = {name: (total / self._counts[name]).item() for name, total in self._sums.items()}
        return {name: mean for name, mean in means.items() if self._counts[name] > 0}

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
