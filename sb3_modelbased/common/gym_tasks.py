"""
Recognise a Gymnasium task behind its wrappers, and read the arguments that it was made with.

Shared by the known termination, reward and dynamics functions. A task is recognised by where its class is defined
and not by its id, so that a new id for the same class works and a subclass, which may have changed anything, does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium import wrappers
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

_MUJOCO_CLASSES = {
    "Ant": "ant_v{}:AntEnv",
    "HalfCheetah": "half_cheetah_v{}:HalfCheetahEnv",
    "Hopper": "hopper_v{}:HopperEnv",
    "Humanoid": "humanoid_v{}:HumanoidEnv",
    "HumanoidStandup": "humanoidstandup_v{}:HumanoidStandupEnv",
    "InvertedDoublePendulum": "inverted_double_pendulum_v{}:InvertedDoublePendulumEnv",
    "InvertedPendulum": "inverted_pendulum_v{}:InvertedPendulumEnv",
    "Pusher": "pusher_v{}:PusherEnv",
    "Reacher": "reacher_v{}:ReacherEnv",
    "Swimmer": "swimmer_v{}:SwimmerEnv",
    "Walker2d": "walker2d_v{}:Walker2dEnv",
}
_TASKS: dict[str, tuple[str, int]] = {
    f"gymnasium.envs.mujoco.{location.format(version)}": (name, version)
    for name, location in _MUJOCO_CLASSES.items()
    for version in (4, 5)
}
_TASKS["gymnasium.envs.classic_control.pendulum:PendulumEnv"] = ("Pendulum", 1)

# Wrappers behind which the numbers that an agent sees are not those that the task computes with
OBSERVATION_WRAPPERS: tuple[type[gym.Wrapper], ...] = (
    gym.ObservationWrapper,
    wrappers.FrameStackObservation,
    wrappers.MaxAndSkipObservation,
)
ACTION_WRAPPERS: tuple[type[gym.Wrapper], ...] = (gym.ActionWrapper, wrappers.RepeatAction, wrappers.StickyAction)
REWARD_WRAPPERS: tuple[type[gym.Wrapper], ...] = (gym.RewardWrapper, wrappers.NormalizeReward)


@dataclass(frozen=True)
class GymTask:
    """
    A task of Gymnasium, and access to the attributes of its environment(s).

    :param name: task without its version, such as ``Hopper``; the class's location for a task that is not known
    :param version: as in the environment's id; 0 for a task that is not known
    :param env: the environment, wrapped as it was given
    """

    name: str
    version: int
    env: gym.Env | VecEnv

    @property
    def label(self) -> str:
        """Name for error messages, such as ``Hopper-v5``."""
        return f"{self.name}-v{self.version}" if self.version else f"'{self.name}'"

    def attribute(self, name: str) -> Any:
        """
        :param name: of an attribute of the unwrapped environment, such as ``_healthy_z_range``
        :return: its value
        :raises ValueError: if the environments of a ``VecEnv`` differ in it
        """
        if not isinstance(self.env, VecEnv):
            return getattr(self.env.unwrapped, name)
        values = self.env.get_attr(name)
        if any(value != values[0] for value in values[1:]):
            raise ValueError(
                f"env: expected the same {name.lstrip('_')} in all environments of the VecEnv, got {values}. "
                "Make all environments with the same arguments, or pass a function of your own."
            )
        return values[0]

    def size(self, name: str) -> int:
        """
        :param name: of a vector attribute of the unwrapped environment, such as ``init_qpos``
        :return: its number of elements
        """
        # Not through attribute(): comparing arrays with != is ambiguous
        value = self.env.get_attr(name, indices=0)[0] if isinstance(self.env, VecEnv) else getattr(self.env.unwrapped, name)
        return int(value.size)

    def refuse_wrappers(self, wrapper_classes: Sequence[type[gym.Wrapper]], purpose: str) -> None:
        """
        :param wrapper_classes: wrappers (and subclasses) that must not be there
        :param purpose: what is asked for, as "termination function"
        :raises ValueError: if one of them is
        """
        for wrapper_class in wrapper_classes:
            if _is_wrapped(self.env, wrapper_class):
                raise ValueError(
                    f"env: expected {self.label} in its own units, got it inside a {wrapper_class.__name__}, behind which "
                    f"its known {purpose} does not hold. Remove the wrapper, or pass a function of your own that undoes it."
                )

    def require_observation_dim(self, dim: int, purpose: str) -> None:
        """
        :param dim: O, as the task itself defines it
        :param purpose: what is asked for, as "termination function"
        :raises ValueError: if the (wrapped) environment's observations have another shape
        """
        space = self.env.observation_space
        if space.shape != (dim,):
            raise ValueError(
                f"env: expected observations of shape ({dim},) as {self.label} makes them, got {space.shape}: a wrapper "
                f"changes them, and its known {purpose} does not hold. Remove the wrapper, or pass a function of your own."
            )


def identify_task(env: gym.Env | VecEnv) -> GymTask:
    """
    Find out which task an environment is, without sending environments between processes.

    :param env: a Gymnasium environment or a vectorised one of Stable-Baselines3, wrapped or not
    :return: the task; one that is not known has ``version=0``
    :raises TypeError: if ``env`` is neither
    :raises ValueError: if it is a ``VecEnv`` of different tasks
    """
    if isinstance(env, VecEnv):
        locations = set(_vec_env_locations(env))
        if len(locations) != 1:
            raise ValueError(
                f"env: expected a VecEnv of one task, got {sorted(locations)}. Use one task per VecEnv, "
                "or pass a function of your own."
            )
        location = locations.pop()
    elif isinstance(env, gym.Env):
        location = _class_location(env)
    else:
        raise TypeError(
            f"env: expected a gymnasium.Env or a Stable-Baselines3 VecEnv, got {env!r} of type {type(env).__name__}. "
            "Make the environment first, with gymnasium.make(...) or make_vec_env(...)."
        )
    name, version = _TASKS.get(location, (location, 0))
    return GymTask(name, version, env)


def _class_location(env: gym.Env) -> str:
    cls = type(env.unwrapped)
    return f"{cls.__module__}:{cls.__qualname__}"


def _vec_env_locations(env: VecEnv) -> list[str]:
    base = env.unwrapped
    if isinstance(base, DummyVecEnv):
        return [_class_location(single) for single in base.envs]
    # In another process the class is out of reach: only attributes travel, and an environment among them would be
    # made anew by its unpickling (EzPickle). Its spec is plain data.
    specs = env.get_attr("spec")
    return [str(spec.entry_point) if spec is not None else "an environment that was not registered" for spec in specs]


def _is_wrapped(env: gym.Env | VecEnv, wrapper_class: type[gym.Wrapper]) -> bool:
    if isinstance(env, VecEnv):
        return any(env.env_is_wrapped(wrapper_class))
    while isinstance(env, gym.Wrapper):
        if isinstance(env, wrapper_class):
            return True
        env = env.env
    return False
