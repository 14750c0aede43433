"""World models and data with known answers."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_modelbased.common.buffers import ReplayMirror
from sb3_modelbased.common.type_aliases import Transitions
from sb3_modelbased.common.world_model import WorldModel

OBSERVATIONS, ACTIONS = 3, 2
ACTION_SPACE = spaces.Box(np.array([-1.0, 2.0], dtype=np.float32), np.array([3.0, 2.5], dtype=np.float32))


def make_world_model(deterministic: bool = False, **kwargs) -> WorldModel:
    """
    :param deterministic: give every member a variance of next to nothing
    :param kwargs: arguments of the world model in place of small ones
    :return: a model with random weights and normalisers that do something
    """
    model = WorldModel(OBSERVATIONS, ACTION_SPACE, **{"ensemble_size": 4, "n_elites": 3, "net_arch": [8, 8]} | kwargs)
    if deterministic:
        model.ensemble.max_log_var.data.fill_(-60.0)
        model.ensemble.min_log_var.data.fill_(-61.0)
    for normalizer in (model.input_normalizer, model.target_normalizer):
        normalizer.mean.copy_(th.randn_like(normalizer.mean))
        normalizer.std.copy_(0.5 + th.rand_like(normalizer.std))
    model.refresh_elites()
    return model


def random_transitions(n: int, seed: int = 0, terminations: bool = False) -> Transitions:
    """Of a linear system without noise; see :func:`linear_step`."""
    generator = th.Generator().manual_seed(seed)
    observations = th.randn(n, OBSERVATIONS, generator=generator)
    actions = 2 * th.rand(n, ACTIONS, generator=generator) - 1
    next_observations, rewards = linear_step(observations, actions)
    terminated = (observations[:, 0] > 0.5).float() if terminations else th.zeros(n)
    return Transitions(observations, actions, next_observations, rewards, terminated)


def linear_step(observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """s' = s + A s + B a and r = c s + d a: stable, and of the size that environments have."""
    a = observations.new_tensor([[-0.2, 0.3, 0.0], [0.0, -0.1, 0.4], [-0.3, 0.0, -0.2]])
    b = observations.new_tensor([[0.5, 0.0], [0.0, -0.5], [0.3, 0.3]])
    c, d = observations.new_tensor([1.0, -2.0, 0.5]), observations.new_tensor([0.3, 1.0])
    return observations + observations @ a.T + actions @ b.T, observations @ c + actions @ d


def mirror_of(transitions: Transitions, capacity: int = 100_000) -> ReplayMirror:
    """
    :param transitions: what it holds
    :param capacity: its size
    :return: a mirror that was filled by hand
    """
    mirror = ReplayMirror(capacity, transitions.observations.shape[-1], transitions.actions.shape[-1])
    mirror.extend(transitions)
    return mirror
