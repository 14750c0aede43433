"""Known termination functions against the real environments."""

import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from real_transitions import collect
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_modelbased.common.termination_fns import (
    AntTermination,
    HopperTermination,
    HumanoidTermination,
    InvertedDoublePendulumTermination,
    InvertedPendulumTermination,
    NeverTerminates,
    Walker2dTermination,
    termination_fn_from_env,
)

TERMINATING = ["Hopper", "Walker2d", "Ant", "Humanoid", "InvertedPendulum", "InvertedDoublePendulum"]
NEVER_TERMINATING = [
    "HalfCheetah-v4",
    "HalfCheetah-v5",
    "HumanoidStandup-v4",
    "HumanoidStandup-v5",
    "Pendulum-v1",
    "Pusher-v5",
    "Reacher-v4",
    "Reacher-v5",
    "Swimmer-v4",
    "Swimmer-v5",
]
ALL_FNS = [
    NeverTerminates(),
    HopperTermination(),
    Walker2dTermination(),
    AntTermination(),
    HumanoidTermination(),
    InvertedPendulumTermination(),
    InvertedDoublePendulumTermination(),
]
WITH_POSITIONS = {"exclude_current_positions_from_observation": False}


def assert_agrees_with_environment(env_id: str, n_steps: int, min_terminations: int, **kwargs) -> None:
    # Random actions alone end Ant's episodes a dozen times in 20,000 steps
    thrown = {"kick": 4.0, "max_episode_steps": 30} if env_id.startswith("Ant") else {}
    data = collect(env_id, n_steps, **thrown, **kwargs)
    fn = termination_fn_from_env(gym.make(env_id, **kwargs))
    assert min_terminations <= data.terminated.sum() < n_steps
    terminated = fn(data.observations, data.actions, data.next_observations)
    assert terminated.dtype == th.bool
    assert th.equal(terminated, data.terminated)
    # What an agent stores is float32: only a value within its rounding of a bound may flip
    in_float32 = fn(data.observations.float(), data.actions.float(), data.next_observations.float())
    assert (in_float32 != data.terminated).sum() <= 1


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", TERMINATING)
def test_default_task_on_20000_transitions(name, version):
    assert_agrees_with_environment(f"{name}-v{version}", 20_000, min_terminations=200)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("Hopper", {"healthy_z_range": (0.9, 1.3), "healthy_angle_range": (-0.05, 0.1)}),
        ("Hopper", {"healthy_state_range": (-2.5, 2.0), "healthy_angle_range": [-1.0, 1.0]}),
        ("Hopper", {"healthy_z_range": (0.5, math.inf), **WITH_POSITIONS}),
        ("Walker2d", {"healthy_z_range": (1.1, 1.27), **WITH_POSITIONS}),
        ("Walker2d", {"healthy_angle_range": (-0.1, 0.3)}),
        ("Ant", {"healthy_z_range": (0.4, 0.8)}),
        ("Ant", {"healthy_z_range": (0.4, 0.8), **WITH_POSITIONS}),
        ("Humanoid", {"healthy_z_range": (1.2, 1.45), **WITH_POSITIONS}),
        ("Humanoid", {"healthy_z_range": (1.3, 3.0)}),
    ],
)
def test_changed_arguments(name, version, kwargs):
    n_steps = 1_000 if name == "Humanoid" else 2_000
    assert_agrees_with_environment(f"{name}-v{version}", n_steps, min_terminations=10, **kwargs)


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [
        ("Ant-v4", {"use_contact_forces": True}),
        ("Ant-v4", {"use_contact_forces": True, **WITH_POSITIONS}),
        ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
        ("Humanoid-v5", {"include_cinert_in_observation": False, "include_cvel_in_observation": False}),
        ("Hopper-v5", {"frame_skip": 8}),
        ("InvertedDoublePendulum-v5", {"frame_skip": 2}),
        ("InvertedPendulum-v5", {"reset_noise_scale": 0.1}),
    ],
)
def test_arguments_that_change_the_observation_or_the_start(env_id, kwargs):
    assert_agrees_with_environment(env_id, 1_000, min_terminations=8, **kwargs)


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("name", ["Hopper", "Walker2d", "Ant", "Humanoid"])
def test_terminate_when_unhealthy_false(name, version):
    env_id, kwargs = f"{name}-v{version}", {"terminate_when_unhealthy": False}
    assert termination_fn_from_env(gym.make(env_id, **kwargs)) == NeverTerminates()
    data = collect(env_id, 300, **kwargs)
    assert not data.terminated.any()
    # The same motion would have ended with the default arguments
    fn = termination_fn_from_env(gym.make(env_id))
    assert name == "Ant" or fn(data.observations, data.actions, data.next_observations).any()


@pytest.mark.parametrize("env_id", NEVER_TERMINATING)
def test_tasks_that_never_terminate(env_id):
    assert termination_fn_from_env(gym.make(env_id)) == NeverTerminates()
    data = collect(env_id, 2_000)
    assert th.equal(NeverTerminates()(data.observations, data.actions, data.next_observations), data.terminated)


@pytest.mark.parametrize("fn", ALL_FNS, ids=lambda fn: type(fn).__name__)
def test_leading_dimensions_and_pickle(fn):
    generator = th.Generator().manual_seed(0)
    observations, next_observations = th.randn(2, 3, 4, 5, 30, generator=generator)
    actions = th.zeros(3, 4, 5, 2)
    terminated = fn(observations, actions, next_observations)
    assert terminated.shape == (3, 4, 5)
    assert terminated.dtype == th.bool
    row = fn(observations[1, 2, 3], actions[1, 2, 3], next_observations[1, 2, 3])
    assert row.shape == ()
    assert row == terminated[1, 2, 3]
    assert pickle.loads(pickle.dumps(fn)) == fn


def test_bounds_are_open_except_for_ant_and_inverted_pendulum():
    def ends(fn, *values):
        observation = th.tensor([*values, *([0.0] * (30 - len(values)))], dtype=th.float64)
        return bool(fn(observation, th.zeros(1), observation))

    assert ends(HopperTermination(), 0.7)
    assert not ends(HopperTermination(), math.nextafter(0.7, 1.0))
    assert ends(Walker2dTermination(), 1.0, -1.0)
    assert ends(HumanoidTermination(), 2.0)
    assert not ends(AntTermination(), 0.2)
    assert not ends(AntTermination(), 1.0)
    assert ends(AntTermination(), math.nextafter(1.0, 2.0))
    assert not ends(InvertedPendulumTermination(), 0.0, 0.2)
    assert ends(InvertedPendulumTermination(), 0.0, -math.nextafter(0.2, 1.0))


def test_values_that_are_not_finite():
    observation = th.full((30,), 0.5, dtype=th.float64)
    observation[0] = 1.5
    for index, fn in [
        (0, HopperTermination(healthy_angle_range=(-1, 1))),
        (0, HumanoidTermination()),
        (3, AntTermination((0, 2))),
    ]:
        bad = observation.clone()
        assert not fn(bad, bad, bad)
        bad[index] = th.nan
        assert fn(bad, bad, bad)
    # Contact forces behind the state are not checked
    bad = observation.clone()
    bad[27] = th.inf
    assert not AntTermination((0, 2))(bad, bad, bad)


def test_vec_envs_in_this_process():
    kwargs = {"healthy_z_range": (0.9, 1.4)}
    expected = HopperTermination(healthy_z_range=(0.9, 1.4))
    assert termination_fn_from_env(make_vec_env("Hopper-v5", n_envs=2, env_kwargs=kwargs)) == expected
    # Statistics of VecNormalize do not matter: the function takes unnormalised observations
    assert termination_fn_from_env(VecNormalize(make_vec_env("Hopper-v5", env_kwargs=kwargs))) == expected
    # Made without a spec
    assert termination_fn_from_env(HopperEnv(**kwargs)) == expected
    assert termination_fn_from_env(DummyVecEnv([lambda: HopperEnv(**kwargs)])) == expected
    assert termination_fn_from_env(Monitor(HopperEnv(**kwargs))) == expected


def test_vec_env_in_other_processes():
    kwargs = {"healthy_z_range": (0.3, 0.9), "exclude_current_positions_from_observation": False}
    env = make_vec_env("Ant-v5", n_envs=2, env_kwargs=kwargs, vec_env_cls=SubprocVecEnv)
    assert termination_fn_from_env(env) == AntTermination((0.3, 0.9), False, state_dim=29)
    assert env.reset().shape == (2, 13 + 2 + 14 + 78), "the workers must still answer"
    env.close()


def test_a_new_id_for_a_known_class():
    gym.register(
        "LongHopper-v0", entry_point="gymnasium.envs.mujoco.hopper_v5:HopperEnv", kwargs={"healthy_z_range": (0.5, 2)}
    )
    try:
        assert termination_fn_from_env(gym.make("LongHopper-v0")) == HopperTermination(healthy_z_range=(0.5, 2.0))
    finally:
        gym.registry.pop("LongHopper-v0")


class UnlimitedHopper(HopperEnv):
    """A subclass may terminate as it likes."""


def test_unknown_tasks_are_refused():
    with pytest.raises(
        ValueError, match=r"env: expected a task whose termination is known .*got .*CartPoleEnv.*Pass your own"
    ):
        termination_fn_from_env(gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="UnlimitedHopper"):
        termination_fn_from_env(UnlimitedHopper())
    with pytest.raises(TypeError, match=r"env: expected a gymnasium\.Env or a Stable-Baselines3 VecEnv, got 'Hopper-v5'"):
        termination_fn_from_env("Hopper-v5")


def test_vec_envs_that_differ_are_refused():
    def hopper(low):
        return lambda: gym.make("Hopper-v5", healthy_z_range=(low, 2.0))

    with pytest.raises(ValueError, match="env: expected the same healthy_z_range in all environments"):
        termination_fn_from_env(DummyVecEnv([hopper(0.7), hopper(0.8)]))


def test_wrappers_that_change_observations_are_refused():
    hopper = gym.make("Hopper-v5")
    for wrapped in (gym.wrappers.NormalizeObservation(hopper), gym.wrappers.FrameStackObservation(hopper, 2)):
        with pytest.raises(ValueError, match="Remove the wrapper"):
            termination_fn_from_env(wrapped)
    with pytest.raises(ValueError, match=r"expected observations of shape \(11,\).*got \(22,\)"):
        termination_fn_from_env(VecFrameStack(make_vec_env("Hopper-v5"), 2))
    # Actions do not matter to a termination
    assert (
        termination_fn_from_env(gym.wrappers.RescaleAction(hopper, np.float32(-2.0), np.float32(2.0))) == HopperTermination()
    )


def test_another_model_of_the_double_pendulum_is_refused(tmp_path):
    original = gym.make("InvertedDoublePendulum-v5").unwrapped.fullpath
    copy = tmp_path / "short.xml"
    with open(original) as file:
        copy.write_text(file.read().replace("0.6", "0.5"))
    with pytest.raises(ValueError, match="xml_file"):
        termination_fn_from_env(gym.make("InvertedDoublePendulum-v5", xml_file=str(copy)))
