"""The true models against the real environments."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from real_transitions import collect
from stable_baselines3.common.env_util import make_vec_env

from sb3_modelbased.common.true_models import PendulumDynamics, true_model_from_env


@pytest.mark.parametrize("kwargs", [{}, {"g": 3.7}])
def test_pendulum_on_20000_transitions(kwargs):
    data = collect("Pendulum-v1", 20_000, **kwargs)
    model = true_model_from_env(gym.make("Pendulum-v1", **kwargs))
    assert model == PendulumDynamics(**kwargs)
    # The top speed must have been met, or its clipping would be untested
    assert (data.next_observations[:, 2].abs() == 8.0).any()
    for dtype, tolerance in [(th.float64, 1e-6), (th.float32, 1e-5)]:
        next_observations, rewards = model.step(data.observations.to(dtype), data.actions.to(dtype))
        assert (next_observations - data.next_observations).abs().max() < tolerance
        # Rewards go down to -16; the observations they are computed from are float32
        assert (rewards - data.rewards).abs().max() < 1e-5


def test_pendulum_clips_torque_as_the_environment():
    env = gym.make("Pendulum-v1", disable_env_checker=True)
    observation, _ = env.reset(seed=1)
    action = np.array([7.0], dtype=np.float32)
    next_observation, reward, *_ = env.step(action)
    predicted, predicted_reward = PendulumDynamics().step(th.as_tensor(observation), th.as_tensor(action))
    assert th.allclose(predicted, th.as_tensor(next_observation), atol=1e-5)
    assert float(predicted_reward) == pytest.approx(reward, abs=1e-5)


def test_pendulum_rollout_stays_with_the_environment():
    env = gym.make("Pendulum-v1", disable_env_checker=True)
    observation, _ = env.reset(seed=3)
    rng = np.random.default_rng(3)
    predicted = th.as_tensor(observation, dtype=th.float64)
    for _ in range(50):
        action = rng.uniform(-2.0, 2.0, size=1)
        observation, *_ = env.step(action)
        predicted, _ = PendulumDynamics().step(predicted, th.as_tensor(action))
    # 2.5 s of an unstable system: the float32 rounding of the first observation grows
    assert np.abs(predicted.numpy() - observation).max() < 1e-3


def test_pendulum_gradient():
    generator = th.Generator().manual_seed(0)
    angles = 2.0 * th.randn(3, 4, generator=generator, dtype=th.float64)
    # Far from the limits of speed and torque, where the clipped step has no derivative
    velocities = th.empty(3, 4, dtype=th.float64).uniform_(-5.0, 5.0, generator=generator)
    actions = th.empty(3, 4, 1, dtype=th.float64).uniform_(-1.8, 1.8, generator=generator)
    observations = th.stack((angles.cos(), angles.sin(), velocities), dim=-1)
    assert th.autograd.gradcheck(PendulumDynamics().step, (observations.requires_grad_(), actions.requires_grad_()))


def test_pendulum_gradient_of_the_next_speed_by_hand():
    # d speed' / d torque = 3 dt / (m l^2), and no gradient through a torque beyond its limit
    observations = th.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=th.float64)
    actions = th.tensor([[1.0], [2.5]], dtype=th.float64, requires_grad=True)
    next_observations, _ = PendulumDynamics(m=2.0, l=0.5, dt=0.1).step(observations, actions)
    (gradient,) = th.autograd.grad(next_observations[:, 2].sum(), actions)
    assert gradient.flatten().tolist() == pytest.approx([0.6, 0.0])


def test_pickle_and_vec_env():
    model = true_model_from_env(make_vec_env("Pendulum-v1", n_envs=2, env_kwargs={"g": 5.0}))
    assert model == PendulumDynamics(g=5.0)
    assert pickle.loads(pickle.dumps(model)) == model


def test_other_tasks_and_wrappers_are_refused():
    with pytest.raises(ValueError, match=r"env: expected a task whose dynamics are known in torch .*got Hopper-v5"):
        true_model_from_env(gym.make("Hopper-v5"))
    with pytest.raises(ValueError, match="Remove the wrapper"):
        true_model_from_env(gym.wrappers.RescaleAction(gym.make("Pendulum-v1"), np.float32(-1.0), np.float32(1.0)))
