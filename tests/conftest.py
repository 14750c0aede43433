"""What the tests share: the algorithms, agents small enough to test, and a fixed seed."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from toy_envs import PointEnv

import sb3_modelbased
from sb3_modelbased.common.model_based_algorithm import ModelBasedAlgorithm

# Arguments that make an agent small and quick, for every algorithm and for each of them
SMALL: dict[str, Any] = {
    "learning_starts": 20,
    "gradient_steps": 1,
    "batch_size": 8,
    "buffer_size": 500,
    "ensemble_size": 3,
    "n_elites": 2,
    "model_net_arch": [16, 16],
    "model_train_freq": 20,
    "model_gradient_steps": 10,
    "model_learning_rate": 1e-2,
    "policy_kwargs": {"net_arch": [16]},
    "seed": 0,
    "device": "cpu",
}
SMALL_BY_ALGORITHM: dict[str, dict[str, Any]] = {
    "MAAC": {"horizon": 2, "rollout_freq": 10, "rollout_batch_size": 16, "imaginary_buffer_size": 100, "real_ratio": 0.5},
    "MEMB": {"reward_net_arch": [16]},
    "MPDP": {"horizon": 3},
}
ALGORITHMS: list[type[ModelBasedAlgorithm]] = [sb3_modelbased.MAAC, sb3_modelbased.MEMB, sb3_modelbased.MPDP]

MakeAgent = Callable[..., Any]


@pytest.fixture(autouse=True)
def _one_thread_and_seed() -> Iterator[None]:
    threads = th.get_num_threads()
    th.set_num_threads(1)
    th.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (SB3 draws from the global generator)
    yield
    th.set_num_threads(threads)


@pytest.fixture(params=ALGORITHMS, ids=lambda algorithm: algorithm.__name__)
def algorithm(request: pytest.FixtureRequest) -> type[ModelBasedAlgorithm]:
    """Each algorithm in turn."""
    return request.param


def make_small(algorithm: type[ModelBasedAlgorithm], env: Any = None, **kwargs: Any) -> Any:
    """
    :param algorithm: what to make
    :param env: a :class:`PointEnv` where none is given
    :param kwargs: arguments in place of, or on top of, those in ``SMALL``
    :return: a small agent
    """
    given = SMALL | SMALL_BY_ALGORITHM.get(algorithm.__name__, {}) | kwargs
    return algorithm("MlpPolicy", PointEnv() if env is None else env, **given)


@pytest.fixture
def make_agent(algorithm: type[ModelBasedAlgorithm]) -> MakeAgent:
    """A function ``(env=None, **kwargs)`` that makes a small agent of the algorithm under test."""

    def make(env: gym.Env | None = None, **kwargs: Any) -> ModelBasedAlgorithm:
        return make_small(algorithm, env, **kwargs)

    return make
