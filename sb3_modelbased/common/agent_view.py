"""
What the agent sees of the environment's units.

The model, the buffers and known functions work in the environment's own units. Under ``VecNormalize`` the policy and
the critics see standardised observations and rewards: the same tensors, looked at through :class:`VecNormalizeView`.
"""

from typing import Protocol

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecNormalize


class AgentView(Protocol):
    """From environment units to what the policy and the critics are trained on."""

    def refresh(self) -> None:
        """Take over statistics that moved."""
        ...

    def observations(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: raw, [..., O]
        :return: as the policy sees them, [..., O]
        """
        ...

    def rewards(self, rewards: th.Tensor) -> th.Tensor:
        """
        :param rewards: raw, [...]
        :return: as the critics see them, [...]
        """
        ...


class IdentityView:
    """Without ``VecNormalize``: the agent sees environment units."""

    def refresh(self) -> None:
        """Nothing moves."""

    def observations(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :return: the same
        """
        return observations

    def rewards(self, rewards: th.Tensor) -> th.Tensor:
        """
        :param rewards: [...]
        :return: the same
        """
        return rewards


class VecNormalizeView:
    """
    ``VecNormalize.normalize_obs`` and ``normalize_reward`` with the statistics of this moment, in torch and
    differentiable.

    :param env: the wrapper around the training environment
    :param device: where the agent's tensors live
    """

    def __init__(self, env: VecNormalize, device: th.device) -> None:
        self.env = env
        self.norm_obs, self.norm_reward = env.norm_obs, env.norm_reward
        self.clip_obs, self.clip_reward = env.clip_obs, env.clip_reward
        size = int(np.prod(env.observation_space.shape))  # type: ignore[arg-type]
        self.mean, self.std = th.zeros(size, device=device), th.ones(size, device=device)
        self.reward_std = th.ones((), device=device)
        self.refresh()

    def refresh(self) -> None:
        """Take over the wrapper's statistics, in place (a CUDA graph may hold the tensors)."""
        if self.norm_obs:
            statistics = self.env.obs_rms
            assert not isinstance(statistics, dict)  # Dict observations are refused
            self.mean.copy_(th.as_tensor(statistics.mean.reshape(-1)))
            self.std.copy_(th.as_tensor(np.sqrt(statistics.var + self.env.epsilon).reshape(-1)))
        self.reward_std.copy_(th.as_tensor(np.sqrt(self.env.ret_rms.var + self.env.epsilon)))

    def observations(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: raw, [..., O]
        :return: standardised and clipped, [..., O]
        """
        if not self.norm_obs:
            return observations
        return ((observations - self.mean) / self.std).clamp(-self.clip_obs, self.clip_obs)

    def rewards(self, rewards: th.Tensor) -> th.Tensor:
        """
        :param rewards: raw, [...]
        :return: scaled and clipped, [...]
        """
        if not self.norm_reward:
            return rewards
        return (rewards / self.reward_std).clamp(-self.clip_reward, self.clip_reward)


def make_view(env: VecNormalize | None, device: th.device) -> AgentView:
    """
    :param env: SB3's ``_vec_normalize_env``
    :param device: where the agent's tensors live
    :return: the view of this moment
    """
    return IdentityView() if env is None else VecNormalizeView(env, device)
