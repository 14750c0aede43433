"""Schedules over environment steps (SB3's own schedules run over the remaining progress)."""

from collections.abc import Sequence
from typing import Any


class RolloutLengthSchedule:
    """
    Length of the branched rollouts over environment steps: constant, or linear between two points as in MBPO
    (Janner et al., 2019, appendix C): ``[first, last, start, end]`` grows from ``first`` at env step ``start`` to
    ``last`` at env step ``end`` and is constant outside.

    :param specification: a length, or ``[first, last, start, end]``
    :raises ValueError: for anything else
    """

    def __init__(self, specification: int | Sequence[int]) -> None:
        constant = not isinstance(specification, (list, tuple))
        points: list[Any] = [specification, specification, 0, 1] if constant else list(specification)  # type: ignore[arg-type]
        whole = len(points) == 4 and all(isinstance(p, (int, float)) and float(p).is_integer() for p in points)
        valid = whole and min(points[:2]) >= 1 and 0 <= points[2] < points[3]
        if not valid:
            raise ValueError(
                "`rollout_length` must be a number of model steps >= 1, or [first, last, start, end] with lengths >= 1 and "
                f"env steps 0 <= start < end, but it is {specification!r}. Pass for example rollout_length=1, or "
                "[1, 15, 20000, 100000] to grow from 1 to 15 between 20,000 and 100,000 env steps."
            )
        self.first, self.last, self.start, self.end = points

    def __call__(self, num_timesteps: int) -> int:
        """
        :param num_timesteps: env steps so far
        :return: number of model steps of each rollout
        """
        progress = min(max((num_timesteps - self.start) / (self.end - self.start), 0.0), 1.0)
        return int(self.first + progress * (self.last - self.first))
