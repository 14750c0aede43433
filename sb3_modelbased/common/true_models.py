"""
True dynamics of small tasks in torch: batched, differentiable, and in the environment's own units.

For experiments that replace a learned model by the true one.
"""

from dataclasses import dataclass

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_modelbased.common.gym_tasks import ACTION_WRAPPERS, OBSERVATION_WRAPPERS, REWARD_WRAPPERS, identify_task
from sb3_modelbased.common.reward_fns import PendulumReward


@dataclass(frozen=True)
class PendulumDynamics:
    r"""
    Pendulum-v1, deterministic, with the angle :math:`\theta` = 0 upright:

    .. math::
        \dot\theta' = \mathrm{clip}\Big(\dot\theta + \Big(\frac{3 g}{2 l} \sin\theta + \frac{3}{m l^2} u\Big) \Delta t,
        \pm \dot\theta_{max}\Big), \qquad \theta' = \theta + \dot\theta' \Delta t

    The gradient is that of the clipped step: zero through a torque or a speed at its limit.

    :param g: gravity, m/s^2
    :param m: mass, kg
    :param l: length, m
    :param dt: duration of a step, s
    :param max_speed: rad/s
    :param max_torque: N m
    """

    g: float = 10.0
    m: float = 1.0
    l: float = 1.0  # noqa: E741
    dt: float = 0.05
    max_speed: float = 8.0
    max_torque: float = 2.0

    def step(self, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: cosine and sine of the angle, angular velocity in rad/s, [..., 3]
        :param actions: torque in N m, [..., 1]
        :return: next observations [..., 3] and rewards [...]
        """
        cos, sin, velocity = observations.unbind(dim=-1)
        torque = actions[..., 0].clamp(-self.max_torque, self.max_torque)
        acceleration = 3.0 * self.g / (2.0 * self.l) * sin + 3.0 / (self.m * self.l**2) * torque
        next_velocity = (velocity + acceleration * self.dt).clamp(-self.max_speed, self.max_speed)
        # Through the angle, and not by rotating (cos, sin): so a long rollout stays on the unit circle
        next_angle = th.atan2(sin, cos) + next_velocity * self.dt
        next_observations = th.stack((next_angle.cos(), next_angle.sin(), next_velocity), dim=-1)
        rewards = PendulumReward(self.max_torque)(observations, actions, next_observations)
        return next_observations, rewards


def true_model_from_env(env: gym.Env | VecEnv) -> PendulumDynamics:
    """
    The true model of an environment, with the constants of that environment.

    :param env: Pendulum-v1, or a ``VecEnv`` of it, wrapped or not
    :return: its dynamics and reward, in the units of the unwrapped environment
    :raises ValueError: if the task's dynamics are not known, or if a wrapper changes observations, actions or rewards
    """
    task = identify_task(env)
    if task.name != "Pendulum":
        raise ValueError(
            f"env: expected a task whose dynamics are known in torch (Pendulum-v1), got {task.label}. Make Pendulum-v1, "
            "pass a model of your own with step(observations, actions) -> (next_observations, rewards), or learn the model."
        )
    task.refuse_wrappers((*OBSERVATION_WRAPPERS, *ACTION_WRAPPERS, *REWARD_WRAPPERS), "dynamics")
    task.require_observation_dim(3, "dynamics")
    names = ("g", "m", "l", "dt", "max_speed", "max_torque")
    return PendulumDynamics(**{name: float(task.attribute(name)) for name in names})
