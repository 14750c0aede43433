"""Small environments with answers that can be written down, and spaces that catch mistakes in scaling and flattening."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class PointEnv(gym.Env):
    """
    A linear system: x' = x + 0.1 G u, with G [3, 2] fixed; the reward is -|x'|^2 - 0.1 |u|^2.

    :param observation_space: any Box with three numbers
    :param action_space: any Box with two numbers
    :param limit: the episode terminates where |x_0| exceeds it
    :param time_limit: the episode is truncated after so many steps
    :param bad_step: count of the step, over all episodes, that returns ``bad_observation`` and ``bad_reward``
    :param bad_observation: what replaces the first entry of the observation of that step
    :param bad_reward: what replaces its reward
    :param ends_badly: whether that step also terminates the episode
    """

    gains = np.array([[1.0, 0.0], [0.0, 0.5], [0.3, -0.7]])

    def __init__(
        self,
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        limit: float = 1.0,
        time_limit: int = 15,
        bad_step: int | None = None,
        bad_observation: float = 0.0,
        bad_reward: float = 0.0,
        ends_badly: bool = False,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-10.0, 10.0, (3,), np.float32)
        self.action_space = action_space or spaces.Box(np.float32([-1.0, 0.0]), np.float32([3.0, 0.5]))
        self.limit, self.time_limit = limit, time_limit
        self.bad_step, self.bad_observation, self.bad_reward = bad_step, bad_observation, bad_reward
        self.ends_badly = ends_badly
        self.total_steps = 0
        self.actions: list[np.ndarray] = []

    def _observe(self, position: np.ndarray) -> Any:
        return position.astype(self.observation_space.dtype).reshape(self.observation_space.shape)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.1, 0.1, 3)
        self.steps = 0
        return self._observe(self.position), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        flat = np.asarray(action, dtype=np.float64).reshape(-1)
        self.position = self.position + 0.1 * self.gains @ flat
        self.steps += 1
        self.total_steps += 1
        reward = -float(np.square(self.position).sum() + 0.1 * np.square(flat).sum())
        terminated = abs(self.position[0]) > self.limit
        observation = self._observe(self.position)
        if self.total_steps == self.bad_step:
            observation.reshape(-1)[0] += self.bad_observation
            reward += self.bad_reward
            terminated = terminated or self.ends_badly
        return observation, reward, bool(terminated), self.steps >= self.time_limit, {}
