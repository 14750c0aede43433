"""Transitions of real environments, against which the known functions are tested."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th


class RealTransitions(NamedTuple):
    """
    :param observations: as the environment returned them, [N, O]
    :param actions: as the environment got them, [N, A]
    :param next_observations: those of a terminal step included, [N, O]
    :param rewards: [N]
    :param terminated: bool, [N]
    :param forward_velocities: ``info["x_velocity"]`` where the task has one, else 0, in m/s, [N]
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor
    forward_velocities: th.Tensor


def collect(
    env_id: str, n_steps: int, seed: int = 0, max_episode_steps: int = 200, kick: float = 0.0, **kwargs: Any
) -> RealTransitions:
    """
    Act at random, with actions that are held for longer or shorter (white noise, smooth, bang-bang, none at all), so that
    a robot both stays up for a while and is thrown about.

    :param env_id: a Gymnasium id
    :param n_steps: N
    :param seed: of environment and actions
    :param max_episode_steps: steps after which the episode is cut, not counted as a termination
    :param kick: standard deviation of what is added to the velocities (MuJoCo tasks) at the start of an episode, for tasks
        that random actions hardly ever end
    :param kwargs: of the environment
    :return: transitions in float64
    """
    env = gym.make(env_id, disable_env_checker=True, **kwargs)
    rng = np.random.default_rng(seed)
    low, high = env.action_space.low, env.action_space.high
    noise = rng.uniform(low, high, size=(n_steps, len(low)))
    bang_bang = rng.random(n_steps) < 0.2
    noise[bang_bang] = np.where(rng.random((bang_bang.sum(), 1)) < 0.5, low, high)
    observations, actions, next_observations = [], [], []
    rewards, terminals, velocities = np.zeros(n_steps), np.zeros(n_steps, dtype=bool), np.zeros(n_steps)
    observation = _reset(env, rng, kick, seed=seed)
    action, memory, scale, age = np.zeros_like(low), 0.0, 1.0, 0
    for step in range(n_steps):
        action = (memory * action + (1.0 - memory) * scale * noise[step]).astype(np.float32)
        next_observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        actions.append(action)
        next_observations.append(next_observation)
        rewards[step], terminals[step], velocities[step] = reward, terminated, info.get("x_velocity", 0.0)
        observation, age = next_observation, age + 1
        if terminated or truncated or age == max_episode_steps:
            observation = _reset(env, rng, kick)
            action, memory, scale, age = np.zeros_like(low), rng.choice([0.0, 0.5, 0.9]), rng.choice([0.0, 0.3, 1.0]), 0
    env.close()

    def tensor(rows: list[np.ndarray]) -> th.Tensor:
        return th.as_tensor(np.stack(rows), dtype=th.float64)

    return RealTransitions(
        tensor(observations),
        tensor(actions),
        tensor(next_observations),
        th.as_tensor(rewards),
        th.as_tensor(terminals),
        th.as_tensor(velocities),
    )


def _reset(env: gym.Env, rng: np.random.Generator, kick: float, seed: int | None = None) -> np.ndarray:
    observation, _ = env.reset(seed=seed)
    if kick > 0.0:
        task = env.unwrapped
        velocities = task.data.qvel + kick * rng.standard_normal(task.model.nv)
        task.set_state(task.data.qpos.copy(), velocities)
        observation = task._get_obs()
    return observation
