"""
Known termination functions of Gymnasium's MuJoCo tasks (v4 and v5) and of Pendulum-v1.

Each is a small frozen dataclass (picklable, comparable) that maps observations [..., O], actions [..., A] and next
observations [..., O] to booleans [...]. Everything is in the environment's own units: behind ``VecNormalize`` this means
the unnormalised observations.

The environment decides on its simulator's state, the function on the next observation. Where the two can differ, the
class says so. A NaN is treated as the environment treats it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_modelbased.common.gym_tasks import OBSERVATION_WRAPPERS, GymTask, identify_task
from sb3_modelbased.common.type_aliases import TerminationFn

Range = tuple[float, float]


def _strictly_inside(values: th.Tensor, bounds: Range) -> th.Tensor:
    """False for NaN, as Python's ``low < value < high``."""
    low, high = bounds
    return (values > low) & (values < high)


@dataclass(frozen=True)
class NeverTerminates:
    """
    HalfCheetah, HumanoidStandup, Pendulum, Pusher, Reacher, Swimmer, and every task with ``terminate_when_unhealthy=False``.
    """

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: False everywhere, [...]
        """
        return th.zeros(next_observations.shape[:-1], dtype=th.bool, device=next_observations.device)


@dataclass(frozen=True)
class HopperTermination:
    """
    Hopper falls: its height, its torso's angle or any other state variable leaves its open range.

    The state range also holds for velocities, which the observation clips at +-10: with a bound beyond 10 (the default is
    100) the environment ends an episode on a velocity beyond it and this function cannot see it.

    :param healthy_state_range: of all positions and velocities but x and z, in m, rad, m/s and rad/s
    :param healthy_z_range: of the torso's height, m
    :param healthy_angle_range: of the torso's angle, rad
    :param exclude_current_positions_from_observation: whether the observation begins with z (True) or with x
    """

    healthy_state_range: Range = (-100.0, 100.0)
    healthy_z_range: Range = (0.7, float("inf"))
    healthy_angle_range: Range = (-0.2, 0.2)
    exclude_current_positions_from_observation: bool = True

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: True where the hopper fell, [...]
        """
        z = 0 if self.exclude_current_positions_from_observation else 1
        healthy = _strictly_inside(next_observations[..., z], self.healthy_z_range)
        healthy = healthy & _strictly_inside(next_observations[..., z + 1], self.healthy_angle_range)
        healthy = healthy & _strictly_inside(next_observations[..., z + 1 :], self.healthy_state_range).all(dim=-1)
        return ~healthy


@dataclass(frozen=True)
class Walker2dTermination:
    """
    Walker2d falls: its height or its torso's angle leaves its open range.

    :param healthy_z_range: of the torso's height, m
    :param healthy_angle_range: of the torso's angle, rad
    :param exclude_current_positions_from_observation: whether the observation begins with z (True) or with x
    """

    healthy_z_range: Range = (0.8, 2.0)
    healthy_angle_range: Range = (-1.0, 1.0)
    exclude_current_positions_from_observation: bool = True

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: True where the walker fell, [...]
        """
        z = 0 if self.exclude_current_positions_from_observation else 1
        healthy = _strictly_inside(next_observations[..., z], self.healthy_z_range)
        return ~(healthy & _strictly_inside(next_observations[..., z + 1], self.healthy_angle_range))


@dataclass(frozen=True)
class AntTermination:
    """
    Ant falls or jumps: its height leaves its closed range, or its state is not finite.

    x and y are not in the observation by default; that one of them alone is not finite cannot be seen.

    :param healthy_z_range: of the torso's height, m
    :param exclude_current_positions_from_observation: whether the observation begins with z (True) or with x and y
    :param state_dim: number of positions and velocities of the model, x and y included; contact forces may follow them
        in the observation
    """

    healthy_z_range: Range = (0.2, 1.0)
    exclude_current_positions_from_observation: bool = True
    state_dim: int = 29

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: True where the ant is unhealthy, [...]
        """
        excluded = 2 if self.exclude_current_positions_from_observation else 0
        z = next_observations[..., 2 - excluded]
        low, high = self.healthy_z_range
        # Inclusive, unlike the other tasks
        healthy = (z >= low) & (z <= high)
        return ~(healthy & next_observations[..., : self.state_dim - excluded].isfinite().all(dim=-1))


@dataclass(frozen=True)
class HumanoidTermination:
    """
    Humanoid falls: its torso's height leaves its open range.

    :param healthy_z_range: of the torso's height, m
    :param exclude_current_positions_from_observation: whether the observation begins with z (True) or with x and y
    """

    healthy_z_range: Range = (1.0, 2.0)
    exclude_current_positions_from_observation: bool = True

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: True where the humanoid fell, [...]
        """
        z = 0 if self.exclude_current_positions_from_observation else 2
        return ~_strictly_inside(next_observations[..., z], self.healthy_z_range)


@dataclass(frozen=True)
class InvertedPendulumTermination:
    """The pole leaves +-0.2 rad (the bounds are inside), or the observation is not finite."""

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., 4]
        :param actions: in environment units, [..., 1]
        :param next_observations: cart position (m), pole angle (rad) and their velocities, [..., 4]
        :return: True where the pole fell, [...]
        """
        return (next_observations[..., 1].abs() > 0.2) | ~next_observations.isfinite().all(dim=-1)


@dataclass(frozen=True)
class InvertedDoublePendulumTermination:
    """
    The tip of the two poles (0.6 m each) is at 1 m or below.

    The environment reads the tip's position from the last stage of its Runge-Kutta step and not from the state after it,
    which the observation holds. The two heights differ by up to 15 mm when the poles whip about, so that an episode can
    end a step earlier or later here; none did in 120,000 steps of random actions with 13,416 terminations.
    """

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., 1]
        :param next_observations: cart position (m), sines and cosines of the two joint angles, velocities and constraint
            forces, [..., O]
        :return: True where the tip is low, [...]
        """
        _, sin_1, sin_2, cos_1, cos_2 = next_observations[..., :5].unbind(dim=-1)
        # The second angle is relative to the first
        tip_height = 0.6 * (cos_1 + cos_1 * cos_2 - sin_1 * sin_2)
        return tip_height <= 1.0


def termination_fn_from_env(env: gym.Env | VecEnv) -> TerminationFn:
    """
    The known termination function of an environment, with the arguments that the environment was made with.

    :param env: a Gymnasium environment or a vectorised one of Stable-Baselines3 (in other processes, too), wrapped or not
    :return: the termination function, in the units of the unwrapped environment
    :raises ValueError: if the task's termination is not known, if a wrapper changes the observations, or if the
        environments of a ``VecEnv`` were made with different arguments
    """
    task = identify_task(env)
    builder = _BUILDERS.get(task.name)
    if builder is None:
        known = ", ".join(sorted(_BUILDERS))
        raise ValueError(
            f"env: expected a task whose termination is known ({known}; no subclasses), got {task.label}. Pass your own "
            "termination_fn(observations, actions, next_observations) -> bool tensor [...], or None to learn it from data."
        )
    return builder(task)


def unhealthy_fn(task: GymTask) -> TerminationFn:
    """
    The complement of ``is_healthy`` of Ant, Hopper, Humanoid and Walker2d, whether or not the task ends there.

    :param task: one of these tasks
    :return: True where the environment's ``is_healthy`` is False
    """
    _require_raw_observations(task, _locomotion_observation_dim(task))
    excluded = bool(task.attribute("_exclude_current_positions_from_observation"))
    z_range = _range(task, "_healthy_z_range")
    if task.name == "Ant":
        return AntTermination(z_range, excluded, _state_dim(task))
    if task.name == "Humanoid":
        return HumanoidTermination(z_range, excluded)
    angle_range = _range(task, "_healthy_angle_range")
    if task.name == "Walker2d":
        return Walker2dTermination(z_range, angle_range, excluded)
    assert task.name == "Hopper"
    return HopperTermination(_range(task, "_healthy_state_range"), z_range, angle_range, excluded)


def _range(task: GymTask, name: str) -> Range:
    low, high = task.attribute(name)
    return float(low), float(high)


def _state_dim(task: GymTask) -> int:
    return task.size("init_qpos") + task.size("init_qvel")


def _locomotion_observation_dim(task: GymTask) -> int:
    if task.version >= 5:
        structure = task.attribute("observation_structure")
        return sum(size for name, size in structure.items() if name != "skipped_qpos")
    excluded = bool(task.attribute("_exclude_current_positions_from_observation"))
    if task.name == "Humanoid":
        return 376 if excluded else 378
    if task.name == "Ant":
        # 6 force components on each of 14 bodies, the world included
        contact_forces = 84 * bool(task.attribute("_use_contact_forces"))
        return _state_dim(task) - 2 * excluded + contact_forces
    return _state_dim(task) - excluded


def _require_raw_observations(task: GymTask, observation_dim: int) -> None:
    task.refuse_wrappers(OBSERVATION_WRAPPERS, "termination function")
    task.require_observation_dim(observation_dim, "termination function")


def _health_based(task: GymTask) -> TerminationFn:
    return unhealthy_fn(task) if task.attribute("_terminate_when_unhealthy") else NeverTerminates()


def _inverted_pendulum(task: GymTask) -> TerminationFn:
    _require_raw_observations(task, 4)
    return InvertedPendulumTermination()


def _inverted_double_pendulum(task: GymTask) -> TerminationFn:
    _require_raw_observations(task, 11 if task.version == 4 else 9)
    path = str(task.attribute("fullpath")).replace("\\", "/")
    if not path.endswith("gymnasium/envs/mujoco/assets/inverted_double_pendulum.xml"):
        raise ValueError(
            f"env: expected {task.label} with Gymnasium's own model, whose pole lengths are built into its known termination "
            f"function, got xml_file={path!r}. Leave out xml_file, or pass a termination_fn of your own."
        )
    return InvertedDoublePendulumTermination()


def _never(task: GymTask) -> TerminationFn:
    return NeverTerminates()


_BUILDERS: dict[str, Callable[[GymTask], TerminationFn]] = {
    **dict.fromkeys(("Ant", "Hopper", "Humanoid", "Walker2d"), _health_based),
    "InvertedPendulum": _inverted_pendulum,
    "InvertedDoublePendulum": _inverted_double_pendulum,
    **dict.fromkeys(("HalfCheetah", "HumanoidStandup", "Pendulum", "Pusher", "Reacher", "Swimmer"), _never),
}
