"""Known reward functions against the real environments."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from real_transitions import collect
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_modelbased.common.reward_fns import (
    AliveReward,
    ConstantReward,
    ForwardReward,
    PendulumReward,
    PusherReward,
    ReacherReward,
    reward_fn_from_env,
)
from sb3_modelbased.common.termination_fns import Walker2dTermination

WITH_POSITIONS = {"exclude_current_positions_from_observation": False}
DEFAULT_TASKS = [
    ("Pendulum-v1", {}),
    ("InvertedPendulum-v4", {}),
    ("InvertedPendulum-v5", {}),
    ("Reacher-v4", {}),
    ("Reacher-v5", {}),
    ("Pusher-v5", {}),
    *(
        (f"{name}-v{version}", WITH_POSITIONS)
        for name in ("HalfCheetah", "Hopper", "Swimmer", "Walker2d")
        for version in (4, 5)
    ),
]
ALL_FNS = [
    PendulumReward(),
    ConstantReward(),
    AliveReward(),
    ReacherReward(),
    ReacherReward(before_step=True),
    PusherReward(),
    ForwardReward(dt=0.05),
    ForwardReward(dt=0.008, healthy_reward=1.0, unhealthy=Walker2dTermination()),
]
OBSERVATION_DIMS = {PendulumReward: 3, PusherReward: 23}


def assert_agrees_with_environment(env_id: str, n_steps: int, **kwargs) -> None:
    data = collect(env_id, n_steps, **kwargs)
    fn = reward_fn_from_env(gym.make(env_id, **kwargs))
    rewards = fn(data.observations, data.actions, data.next_observations)
    # Pendulum's observations are float32; with float32 actions, so is the environment's control cost
    assert th.allclose(rewards, data.rewards, rtol=1e-6, atol=1e-6)
    in_float32 = fn(data.observations.float(), data.actions.float(), data.next_observations.float())
    assert in_float32.dtype == th.float32
    # A difference of two positions of some metres, over 8 ms at the shortest
    assert (in_float32 - data.rewards).abs().max() < 1e-4


@pytest.mark.parametrize(("env_id", "kwargs"), DEFAULT_TASKS)
def test_default_task(env_id, kwargs):
    # 20,000 transitions of every task: 10,000 in each of its versions
    one_version = env_id in ("Pendulum-v1", "Pusher-v5")
    assert_agrees_with_environment(env_id, 20_000 if one_version else 10_000, **kwargs)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("HalfCheetah-v4", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.3}),
        ("HalfCheetah-v5", {"forward_reward_weight": 2.0, "ctrl_cost_weight": 0.3, "frame_skip": 2}),
        ("Swimmer-v4", {"ctrl_cost_weight": 0.5}),
        ("Hopper-v4", {"healthy_reward": 3.0, "terminate_when_unhealthy": False}),
        ("Hopper-v5", {"healthy_reward": 3.0, "terminate_when_unhealthy": False}),
        ("Hopper-v4", {"healthy_reward": 3.0, "healthy_z_range": (1.1, 1.5)}),
        ("Hopper-v5", {"healthy_reward": 3.0, "healthy_z_range": (1.1, 1.5)}),
        ("Walker2d-v4", {"terminate_when_unhealthy": False, "healthy_reward": 2.0, "healthy_angle_range": (-0.3, 0.3)}),
        ("Walker2d-v5", {"forward_reward_weight": 0.5, "healthy_reward": 2.0, "healthy_angle_range": (-0.3, 0.3)}),
    ],
)
def test_changed_arguments_of_locomotion_tasks(env_id, kwargs):
    assert_agrees_with_environment(env_id, 2_000, **kwargs, **WITH_POSITIONS)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.1}),
        ("Pusher-v5", {"reward_near_weight": 1.5, "reward_dist_weight": 0.3, "reward_control_weight": 2.0}),
        ("Pendulum-v1", {"g": 3.0}),
    ],
)
def test_changed_arguments_of_other_tasks(env_id, kwargs):
    assert_agrees_with_environment(env_id, 2_000, **kwargs)


@pytest.mark.parametrize("fn", ALL_FNS, ids=lambda fn: type(fn).__name__)
def test_leading_dimensions_gradient_and_pickle(fn):
    generator = th.Generator().manual_seed(0)
    observation_dim = OBSERVATION_DIMS.get(type(fn), 10)
    observations, next_observations = th.randn(2, 2, 3, observation_dim, generator=generator, dtype=th.float64)
    actions = 0.5 * th.randn(2, 3, 2, generator=generator, dtype=th.float64)
    rewards = fn(observations, actions, next_observations)
    assert rewards.shape == (2, 3)
    assert rewards.dtype == th.float64
    assert th.allclose(rewards[1, 2], fn(observations[1, 2], actions[1, 2], next_observations[1, 2]))
    assert pickle.loads(pickle.dumps(fn)) == fn
    inputs = tuple(tensor.requires_grad_() for tensor in (observations, actions, next_observations))
    # A constant reward has no graph at all, which gradcheck does not take for a zero gradient
    assert not fn(*inputs).requires_grad or th.autograd.gradcheck(fn, inputs)


def test_pendulum_by_hand():
    # A quarter turn, 2 rad/s, and a torque of 5 N m that the environment clips to 2
    observations, actions = th.tensor([0.0, 1.0, 2.0]), th.tensor([5.0])
    reward = PendulumReward()(observations, actions, observations)
    assert float(reward) == pytest.approx(-((th.pi / 2) ** 2 + 0.1 * 4.0 + 0.001 * 4.0))


def test_velocities_do_not_determine_the_locomotion_rewards():
    # Why there is no known reward with the default observations: not even the mean of the two velocities gives it
    for env_id, velocity_index, error in [("HalfCheetah-v5", 8, 0.3), ("Hopper-v5", 5, 0.01), ("Swimmer-v5", 3, 0.05)]:
        data = collect(env_id, 3_000)
        mean = (data.observations[:, velocity_index] + data.next_observations[:, velocity_index]) / 2
        assert (mean - data.forward_velocities).abs().max() > error


def test_vec_envs():
    assert reward_fn_from_env(VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))) == PendulumReward()
    kwargs = {"reward_dist_weight": 2.0}
    assert reward_fn_from_env(make_vec_env("Reacher-v5", n_envs=2, env_kwargs=kwargs)) == ReacherReward(reward_dist_weight=2.0)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", ["HalfCheetah", "Hopper", "Swimmer", "Walker2d"])
def test_locomotion_without_x_is_refused(name, version):
    with pytest.raises(ValueError, match="exclude_current_positions_from_observation=False"):
        reward_fn_from_env(gym.make(f"{name}-v{version}"))


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", ["Ant", "Humanoid", "HumanoidStandup", "InvertedDoublePendulum"])
def test_rewards_that_are_not_determined_are_refused(name, version):
    with pytest.raises(ValueError, match=rf"got {name}-v{version}: it pays for .*Pass your own reward_fn"):
        reward_fn_from_env(gym.make(f"{name}-v{version}"))


def test_unknown_tasks_are_refused():
    with pytest.raises(ValueError, match="MountainCar"):
        reward_fn_from_env(gym.make("MountainCarContinuous-v0"))


def test_wrappers_that_change_anything_are_refused():
    pendulum = gym.make("Pendulum-v1")
    for wrapped in (
        gym.wrappers.RescaleAction(pendulum, np.float32(-1.0), np.float32(1.0)),
        gym.wrappers.TransformReward(pendulum, lambda reward: reward / 10),
        gym.wrappers.NormalizeReward(pendulum),
        gym.wrappers.NormalizeObservation(pendulum),
    ):
        with pytest.raises(ValueError, match="Remove the wrapper"):
            reward_fn_from_env(wrapped)
