"""Imagination with a known environment in the place of the learned model."""

from typing import Protocol

import gymnasium as gym
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_modelbased.common.true_models import true_model_from_env
from sb3_modelbased.common.world_model import ModelStep, WorldModel


class TrueModel(Protocol):
    """A known environment in torch, batched and differentiable; everything in the environment's units."""

    def step(self, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: [..., O]
        :param actions: in environment units, [..., A]
        :return: next observations [..., O] and rewards [...]
        """
        ...


class KnownDynamics:
    """
    A :class:`TrueModel` as the :class:`~sb3_modelbased.common.world_model.Dynamics` that algorithms imagine with.

    :param model: the true model
    :param world_model: knows the bounds of the actions and, where they are known, the reward function, which then takes the
        place of the model's, and the termination function; without one the task never terminates
    """

    def __init__(self, model: TrueModel, world_model: WorldModel) -> None:
        self.model = model
        self.world_model = world_model

    def step(self, observations: th.Tensor, actions: th.Tensor) -> ModelStep:
        """
        :param observations: [..., O]
        :param actions: scaled to [-1, 1], [..., A]
        :return: [...]
        """
        unscaled = self.world_model.unscale_actions(actions)
        next_observations, rewards = self.model.step(observations, unscaled)
        if self.world_model.reward_fn is not None:
            rewards = self.world_model.reward_fn(observations, unscaled, next_observations)
        if self.world_model.termination_fn is None:
            return ModelStep(next_observations, rewards, th.zeros_like(rewards))
        terminated = self.world_model.termination_fn(observations, unscaled, next_observations)
        return ModelStep(next_observations, rewards, terminated.to(rewards.dtype))


def check_true_model(model: TrueModel, observations: th.Tensor, actions: th.Tensor) -> None:
    """
    Ask a user's model for one step.

    :param model: the user's
    :param observations: [..., O]
    :param actions: [..., A]
    :raises ValueError: if the answer is not of the shapes that :class:`TrueModel` promises
    """
    answer = model.step(observations, actions)
    parts = answer if isinstance(answer, tuple) else (answer,)
    got = [tuple(part.shape) if isinstance(part, th.Tensor) else type(part).__name__ for part in parts]
    expected = [tuple(observations.shape), tuple(observations.shape[:-1])]
    if got != expected:
        raise ValueError(
            "`true_model.step(observations, actions)` must return next observations and rewards as tensors: for observations "
            f"of shape {expected[0]} and actions of shape {tuple(actions.shape)} they must be of the shapes {expected[0]} and "
            f"{expected[1]}, but they are {', '.join(map(str, got))}. Work on the last dimension only, and keep no dimension "
            "of size 1 in the rewards."
        )


def resolve_true_model(
    true_model: TrueModel | str | None, env: gym.Env | VecEnv | None, known: TrueModel | None = None
) -> TrueModel | None:
    """
    :param true_model: what the user gave: a model, "gymnasium" for that of a Gymnasium task, or None
    :param env: the environment, None for an agent that was loaded without one
    :param known: what was resolved earlier, kept where there is no environment to ask
    :return: the model, or None to learn one
    :raises ValueError: for anything else
    """
    if true_model is None or callable(getattr(true_model, "step", None)):
        return true_model  # type: ignore[return-value]
    if true_model == "gymnasium":
        return known if env is None else true_model_from_env(env)
    raise ValueError(
        "`true_model` must be an object with step(observations, actions) -> (next_observations, rewards), 'gymnasium' or "
        f"None, but it is {true_model!r}. Leave it out to learn the model from data."
    )
