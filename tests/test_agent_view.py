"""The view of environment units under VecNormalize against VecNormalize itself."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_envs import PointEnv

from sb3_modelbased.common.agent_view import make_view

CPU = th.device("cpu")


def normalized_env(steps: int = 50, **kwargs) -> VecNormalize:
    space = spaces.Box(-10.0, 10.0, (3, 1), np.float32)
    env = VecNormalize(DummyVecEnv([lambda: PointEnv(observation_space=space)] * 2), **kwargs)
    env.action_space.seed(0)
    env.reset()
    step(env, steps)
    return env


def step(env: VecNormalize, steps: int) -> None:
    for _ in range(steps):
        env.step(np.array([env.action_space.sample() for _ in range(2)]))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"norm_obs": False},
        {"norm_reward": False},
        {"norm_obs": False, "norm_reward": False},
        {"clip_obs": 0.5, "clip_reward": 0.3},
        {"epsilon": 0.1},
    ],
)
def test_it_agrees_with_vec_normalize(kwargs):
    env = normalized_env(**kwargs)
    view = make_view(env, CPU)
    observations = np.random.default_rng(0).normal(size=(40, 3, 1))
    rewards = np.random.default_rng(1).normal(size=40)
    ours = view.observations(th.as_tensor(observations.reshape(40, 3), dtype=th.float32))
    np.testing.assert_allclose(ours, env.normalize_obs(observations).reshape(40, 3), rtol=1e-4, atol=1e-5)
    ours = view.rewards(th.as_tensor(rewards, dtype=th.float32))
    np.testing.assert_allclose(ours, env.normalize_reward(rewards), rtol=1e-4, atol=1e-5)


def test_any_leading_dimensions():
    view = make_view(normalized_env(), CPU)
    observations, rewards = th.randn(4, 5, 3), th.randn(4, 5)
    assert view.observations(observations)[2].equal(view.observations(observations[2]))
    assert view.rewards(rewards)[2].equal(view.rewards(rewards[2]))


def test_the_gradient_is_one_over_the_deviation_and_zero_where_clipped():
    env = normalized_env(clip_obs=1.0)
    std = np.sqrt(env.obs_rms.var + env.epsilon).reshape(-1)
    inside = th.as_tensor(env.obs_rms.mean.reshape(-1), dtype=th.float32)
    outside = inside + 5 * th.as_tensor(std, dtype=th.float32)
    observations = th.stack([inside, outside]).requires_grad_()
    make_view(env, CPU).observations(observations).sum().backward()
    np.testing.assert_allclose(observations.grad[0], 1 / std, rtol=1e-4)
    assert not observations.grad[1].any()


def test_moving_statistics_are_taken_over():
    env = normalized_env(steps=5)
    view = make_view(env, CPU)
    before = view.observations(th.zeros(1, 3))
    step(env, 100)
    view.refresh()
    np.testing.assert_allclose(view.observations(th.zeros(1, 3)), env.normalize_obs(np.zeros((1, 3, 1)))[..., 0], rtol=1e-4)
    np.testing.assert_allclose(view.rewards(th.ones(1)), env.normalize_reward(np.ones(1)), rtol=1e-4)
    assert not view.observations(th.zeros(1, 3)).equal(before)


def test_without_vec_normalize_nothing_changes():
    view = make_view(None, CPU)
    observations, rewards = th.randn(4, 3), th.randn(4)
    view.refresh()
    assert view.observations(observations).equal(observations)
    assert view.rewards(rewards).equal(rewards)
