"""
Give the model what you know: a reward and a termination function of your own.

The functions work on batches of torch tensors [..., D] in the environment's own units. The reward function must be
differentiable, because the policy's gradient runs through it. Here they are those of a cart-pole that is rewarded for
staying near the centre.
"""

import gymnasium as gym
import torch as th

from sb3_modelbased import MAAC


class CentredPendulum(gym.RewardWrapper):
    """InvertedPendulum whose reward falls with the cart's distance from the centre, in m."""

    def reward(self, reward):
        position = self.unwrapped.data.qpos[0]
        return 1.0 - position**2


def reward_fn(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    return 1.0 - next_observations[..., 0].square()


def termination_fn(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    return next_observations[..., 1].abs() > 0.2  # the pole's angle in rad


env = CentredPendulum(gym.make("InvertedPendulum-v5"))
model = MAAC("MlpPolicy", env, reward_fn=reward_fn, termination_fn=termination_fn, learning_starts=500, verbose=1, seed=0)
model.learn(total_timesteps=3_000, log_interval=10)
