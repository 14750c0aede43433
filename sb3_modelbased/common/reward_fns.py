"""
Known reward functions of Gymnasium tasks: those where the observations and the action determine the reward.

Each is a small frozen dataclass (picklable, comparable) that maps observations [..., O], actions [..., A] and next
observations [..., O] to rewards [...], differentiable with torch. Everything is in the environment's own units: actions
as the environment gets them (not scaled to [-1, 1]), and behind ``VecNormalize`` the unnormalised observations and rewards.

The locomotion tasks pay for ``(x_after - x_before) / dt``, and leave x out of the observation by default. The velocities
in the observations are no substitute: over 20,000 random steps, the mean of the velocities before and after a step misses
the paid velocity by up to 1.1 m/s in HalfCheetah (5 % of its variance unexplained), 0.3 m/s in Swimmer, 0.2 m/s in Walker2d
and 0.03 m/s in Hopper. Known rewards are therefore only offered for environments made with
``exclude_current_positions_from_observation=False``. Ant and Humanoid pay for the motion of a point that the observation
does not hold, and InvertedDoublePendulum for joint speeds that it clips and a tip that it holds only nearly: the formula on
the observation misses by up to 0.2 of a reward of 9. For these nothing is offered.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_modelbased.common.gym_tasks import (
    ACTION_WRAPPERS,
    OBSERVATION_WRAPPERS,
    REWARD_WRAPPERS,
    GymTask,
    identify_task,
)
from sb3_modelbased.common.termination_fns import (
    InvertedPendulumTermination,
    NeverTerminates,
    unhealthy_fn,
)
from sb3_modelbased.common.type_aliases import RewardFn, TerminationFn

_ALWAYS_HEALTHY = NeverTerminates()
_POLE_FELL = InvertedPendulumTermination()


@dataclass(frozen=True)
class PendulumReward:
    """
    Pendulum-v1: minus the squared angle, speed and torque *before* the step.

    :param max_torque: the environment clips actions to this, N m
    """

    max_torque: float = 2.0

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: cosine and sine of the angle (0 is upright), angular velocity in rad/s, [..., 3]
        :param actions: torque in N m, [..., 1]
        :param next_observations: [..., 3], not used
        :return: rewards [...]
        """
        cos, sin, velocity = observations.unbind(dim=-1)
        torque = actions[..., 0].clamp(-self.max_torque, self.max_torque)
        return -(th.atan2(sin, cos).square() + 0.1 * velocity.square() + 0.001 * torque.square())


@dataclass(frozen=True)
class ConstantReward:
    """
    The same reward for every step (InvertedPendulum-v4, also for the step on which the pole falls).

    :param reward: of a step
    """

    reward: float = 1.0

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: rewards [...]
        """
        return next_observations.new_full(next_observations.shape[:-1], self.reward)


@dataclass(frozen=True)
class AliveReward:
    """
    A constant for every step that does not terminate (InvertedPendulum-v5). Its gradient is zero.

    :param terminated: the task's termination function
    :param reward: of a step
    """

    terminated: TerminationFn = _POLE_FELL
    reward: float = 1.0

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: [..., O]
        :return: rewards [...]
        """
        alive = ~self.terminated(observations, actions, next_observations)
        return self.reward * alive.to(next_observations.dtype)


@dataclass(frozen=True)
class ReacherReward:
    """
    Reacher: minus the distance of fingertip and target, minus the squared torques.

    v5 pays for the distance after the step. v4 pays for the distance before it: give it ``before_step``.

    :param reward_dist_weight: per m
    :param reward_control_weight: per squared action
    :param before_step: whether the distance is that of the observation before the step
    """

    reward_dist_weight: float = 1.0
    reward_control_weight: float = 1.0
    before_step: bool = False

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: with the vector from target to fingertip (m) from element 8, [..., 10] in v5, [..., 11] in v4
        :param actions: in environment units, [..., 2]
        :param next_observations: as the observations
        :return: rewards [...]
        """
        paid = observations if self.before_step else next_observations
        distance = th.linalg.vector_norm(paid[..., 8:], dim=-1)
        return -self.reward_dist_weight * distance - self.reward_control_weight * actions.square().sum(dim=-1)


@dataclass(frozen=True)
class PusherReward:
    """
    Pusher-v5: minus the distances of hand to object and object to goal, minus the squared torques.

    :param reward_near_weight: per m between hand and object
    :param reward_dist_weight: per m between object and goal
    :param reward_control_weight: per squared action
    """

    reward_near_weight: float = 0.5
    reward_dist_weight: float = 1.0
    reward_control_weight: float = 0.1

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., 23]
        :param actions: in environment units, [..., 7]
        :param next_observations: with the positions of hand, object and goal (m) from element 14, [..., 23]
        :return: rewards [...]
        """
        hand, thing, goal = next_observations[..., 14:].split(3, dim=-1)
        near = th.linalg.vector_norm(thing - hand, dim=-1)
        distance = th.linalg.vector_norm(thing - goal, dim=-1)
        control = actions.square().sum(dim=-1)
        return -self.reward_near_weight * near - self.reward_dist_weight * distance - self.reward_control_weight * control


@dataclass(frozen=True)
class ForwardReward:
    """
    HalfCheetah, Hopper, Swimmer and Walker2d with x in the observation: forward velocity, minus squared actions, plus a
    bonus for being healthy.

    The velocity is a difference of positions over a short time: in float32 and at x = 100 m it is good to about 1e-3 m/s.

    :param dt: duration of a step, s
    :param forward_reward_weight: per m/s
    :param ctrl_cost_weight: per squared action
    :param healthy_reward: bonus of a step
    :param unhealthy: on which steps there is no bonus
    """

    dt: float
    forward_reward_weight: float = 1.0
    ctrl_cost_weight: float = 0.1
    healthy_reward: float = 0.0
    unhealthy: TerminationFn = _ALWAYS_HEALTHY

    def __call__(self, observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
        """
        :param observations: beginning with x in m, [..., O]
        :param actions: in environment units, [..., A]
        :param next_observations: beginning with x in m, [..., O]
        :return: rewards [...]
        """
        velocity = (next_observations[..., 0] - observations[..., 0]) / self.dt
        healthy = ~self.unhealthy(observations, actions, next_observations)
        control = actions.square().sum(dim=-1)
        return (
            self.forward_reward_weight * velocity
            - self.ctrl_cost_weight * control
            + self.healthy_reward * healthy.to(velocity.dtype)
        )


def reward_fn_from_env(env: gym.Env | VecEnv) -> RewardFn:
    """
    The known reward function of an environment, with the arguments that the environment was made with.

    :param env: a Gymnasium environment or a vectorised one of Stable-Baselines3 (in other processes, too), wrapped or not
    :return: the reward function, in the units of the unwrapped environment
    :raises ValueError: if the task's reward is not known or not determined by the observations and the action, if a
        wrapper changes observations, actions or rewards, or if the environments of a ``VecEnv`` were made with
        different arguments
    """
    task = identify_task(env)
    builder = _BUILDERS.get(task.name)
    if builder is None or (task.name, task.version) == ("Pusher", 4):
        known = ", ".join(sorted(_BUILDERS))
        why = _UNDETERMINED.get(task.name, "it is not among them")
        raise ValueError(
            f"env: expected a task whose reward is known from observations and action ({known}; no subclasses), got "
            f"{task.label}: {why}. Pass your own reward_fn(observations, actions, next_observations) -> tensor [...], "
            "or None to learn the reward from data."
        )
    task.refuse_wrappers((*OBSERVATION_WRAPPERS, *ACTION_WRAPPERS, *REWARD_WRAPPERS), "reward function")
    return builder(task)


def _pendulum(task: GymTask) -> RewardFn:
    task.require_observation_dim(3, "reward function")
    return PendulumReward(float(task.attribute("max_torque")))


def _inverted_pendulum(task: GymTask) -> RewardFn:
    task.require_observation_dim(4, "reward function")
    return ConstantReward() if task.version == 4 else AliveReward()


def _reacher(task: GymTask) -> RewardFn:
    task.require_observation_dim(11 if task.version == 4 else 10, "reward function")
    if task.version == 4:
        return ReacherReward(before_step=True)
    return ReacherReward(float(task.attribute("_reward_dist_weight")), float(task.attribute("_reward_control_weight")))


def _pusher(task: GymTask) -> RewardFn:
    task.require_observation_dim(23, "reward function")
    near, dist, control = (float(task.attribute(f"_reward_{name}_weight")) for name in ("near", "dist", "control"))
    return PusherReward(near, dist, control)


def _forward(task: GymTask) -> RewardFn:
    if task.attribute("_exclude_current_positions_from_observation"):
        raise ValueError(
            f"env: expected {task.label} with x in its observations, got exclude_current_positions_from_observation=True "
            "(the default): its reward is (x_after - x_before) / dt, which the velocities in the observations do not "
            "determine. Make it with exclude_current_positions_from_observation=False, or pass None to learn the reward "
            "from data."
        )
    healthy_reward, unhealthy = _health_bonus(task) if task.name in ("Hopper", "Walker2d") else (0.0, _ALWAYS_HEALTHY)
    task.require_observation_dim(task.size("init_qpos") + task.size("init_qvel"), "reward function")
    return ForwardReward(
        dt=float(task.attribute("dt")),
        forward_reward_weight=float(task.attribute("_forward_reward_weight")),
        ctrl_cost_weight=float(task.attribute("_ctrl_cost_weight")),
        healthy_reward=healthy_reward,
        unhealthy=unhealthy,
    )


def _health_bonus(task: GymTask) -> tuple[float, TerminationFn]:
    healthy_reward = float(task.attribute("_healthy_reward"))
    # v4 also pays the bonus on the step that falls, as long as falling ends the episode; v5 does not
    paid_always = task.version == 4 and task.attribute("_terminate_when_unhealthy")
    return healthy_reward, _ALWAYS_HEALTHY if paid_always else unhealthy_fn(task)


_UNDETERMINED = {
    "Ant": "it pays for the motion of its torso's frame in the world and for contact forces, which its observations lack",
    "Humanoid": "it pays for the motion of its centre of mass in the world, which its observations lack",
    "HumanoidStandup": "it pays for all contact forces, which its observations lack in part",
    "InvertedDoublePendulum": "it pays for joint speeds beyond the 10 rad/s at which its observations clip them",
    "Pusher": "v4 cannot be made with mujoco 3 or later, so that nothing known could be checked against it; v5 is known",
}
_BUILDERS: dict[str, Callable[[GymTask], RewardFn]] = {
    "InvertedPendulum": _inverted_pendulum,
    "Pendulum": _pendulum,
    "Pusher": _pusher,
    "Reacher": _reacher,
    **dict.fromkeys(("HalfCheetah", "Hopper", "Swimmer", "Walker2d"), _forward),
}
