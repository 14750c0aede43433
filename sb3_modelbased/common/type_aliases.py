"""
Typed batches and protocols shared by all algorithms.

Dimension letters used throughout the package: ``B`` batch, ``H`` horizon (model steps), ``E`` ensemble members,
``O`` observation and ``A`` action dimensions. Observations and rewards are in the environment's own units, actions
are scaled to [-1, 1] as Stable-Baselines3 stores them, unless a docstring says otherwise.
"""

from typing import NamedTuple, Protocol

import torch as th


class Transitions(NamedTuple):
    """
    A batch of transitions.

    :param observations: [..., O]
    :param actions: scaled to [-1, 1], [..., A]
    :param next_observations: [..., O]
    :param rewards: [...]
    :param terminated: 1.0 where the task ended (never for a time limit), [...]
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor


class Trajectory(NamedTuple):
    """
    An imagined batch of trajectories, every tensor differentiable with respect to the policy.

    ``terminated`` is the probability that the step ended the task: 0 or 1 with a known termination function, the
    classifier's probability with a learned one.

    :param observations: [H + 1, B, O]
    :param actions: scaled to [-1, 1], [H, B, A]
    :param log_probs: log pi(a_t | s_t), [H, B]
    :param rewards: [H, B]
    :param terminated: [H, B]
    """

    observations: th.Tensor
    actions: th.Tensor
    log_probs: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor


class PolicyFn(Protocol):
    """A stochastic policy: actions in [-1, 1] and their log-probabilities at imagined time ``step``."""

    def __call__(self, observations: th.Tensor, step: int) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: [B, O]
        :param step: imagined time, 0 at the start of the rollout
        :return: actions [B, A] and log-probabilities [B]
        """
        ...


class RewardFn(Protocol):
    """A known reward function, batched and differentiable; everything in the environment's units."""

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: rewards [...]
        """
        ...


class TerminationFn(Protocol):
    """A known termination function, batched; everything in the environment's units."""

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: True where the task ends, [...]
        """
        ...
