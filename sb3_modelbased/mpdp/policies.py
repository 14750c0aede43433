"""Policies for MPDP: one actor per step of the plan, of which the first acts."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_modelbased.common.policies import ModelBasedSACPolicy


class MPDPPolicy(ModelBasedSACPolicy):
    """
    Policy class for MPDP: the critics, and the policies pi_0 ... pi_{H-1} of the H steps of a plan.

    pi_0 is ``actor``, the policy that acts. The others only plan; they are networks of their own rather than one stacked
    network, because each is evaluated on other states and those behind the end of every plan on none: they cost nothing.

    All of :class:`~sb3_modelbased.common.policies.ModelBasedSACPolicy`'s parameters, and

    :param n_policies: H; set by the algorithm
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        *args: Any,
        n_policies: int = 1,
        **kwargs: Any,
    ) -> None:
        self.n_policies = n_policies
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        features_extractor = self.actor.features_extractor if self.share_features_extractor else None
        # They draw their weights aside: the random numbers of pi_0 and the critics stay those of SAC
        with th.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            self.planners = nn.ModuleList(self.make_actor(features_extractor) for _ in range(self.n_policies - 1))
        # One optimiser for all; it skips the policies that a batch of plans did not reach, because they have no gradient
        self.actor.optimizer = self.optimizer_class(
            nn.ModuleList(self.policies).parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )

    @property
    def policies(self) -> list[Actor]:
        """pi_0 ... pi_{H-1}."""
        return [self.actor, *self.planners]

    def reset_noise(self, batch_size: int = 1) -> None:
        """
        Sample new exploration matrices of every policy, when using gSDE.

        :param batch_size: number of matrices
        """
        for policy in self.policies:
            policy.reset_noise(batch_size)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "n_policies": self.n_policies}


MlpPolicy = MPDPPolicy

__all__ = ["MPDPPolicy", "MlpPolicy"]
