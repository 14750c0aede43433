"""Box spaces of every kind."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from toy_envs import PointEnv

OBSERVATION_SPACES = {
    "float32": spaces.Box(-10.0, 10.0, (3,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "integers": spaces.Box(-100, 100, (3,), np.int64),
    "small integers": spaces.Box(0, 255, (3,), np.uint8),
    "matrix": spaces.Box(-10.0, 10.0, (3, 1), np.float32),
    "tensor": spaces.Box(-10.0, 10.0, (1, 3, 1), np.float64),
}
ACTION_SPACES = {
    "symmetric": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "asymmetric": spaces.Box(np.float32([-1.0, 2.0]), np.float32([3.0, 2.5])),
    "one-sided": spaces.Box(np.float32([5.0, -9.0]), np.float32([6.0, -8.0])),
    "float64": spaces.Box(np.array([-2.0, 0.0]), np.array([0.0, 4.0]), dtype=np.float64),
    "matrix": spaces.Box(np.float32([[-1.0, 2.0]]), np.float32([[3.0, 2.5]])),
}


def train(make_agent, tmp_path, algorithm, observation_space, action_space, n_envs=1):
    envs = []

    def make_env():
        envs.append(PointEnv(observation_space, action_space, limit=np.inf))
        return envs[-1]

    agent = make_agent(make_vec_env(make_env, n_envs=n_envs)).learn(30)
    # The environment got actions within its bounds, in its own units and shape, and not only around the middle
    actions = np.array([action for env in envs for action in env.actions])
    assert actions.shape == (30, *action_space.shape)
    assert (actions >= action_space.low - 1e-6).all()
    assert (actions <= action_space.high + 1e-6).all()
    spread = (actions.max(axis=0) - actions.min(axis=0)) / (action_space.high - action_space.low)
    assert (spread > 0.5).all()
    # The model knows these actions by their flat, scaled values
    data = agent.real_data[:]
    assert data.observations.shape == data.next_observations.shape == (30, 3)
    assert data.actions.shape == (30, 2)
    assert data.actions.abs().max() <= 1
    taken = agent.world_model.unscale_actions(data.actions).numpy()
    order = np.argsort(taken[:, 0])
    flat = actions.reshape(30, 2)
    np.testing.assert_allclose(taken[order], flat[np.argsort(flat[:, 0])], rtol=1e-4, atol=1e-4)
    # And so does whoever acts with a loaded agent
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent")
    observation = observation_space.sample() if observation_space.is_bounded() else np.ones(observation_space.shape)
    action, _ = loaded.predict(observation)
    assert action.shape == action_space.shape
    assert action_space.contains(action.astype(action_space.dtype))
    return agent


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_observation_spaces(make_agent, tmp_path, algorithm, name):
    space = OBSERVATION_SPACES[name]
    agent = train(make_agent, tmp_path, algorithm, space, ACTION_SPACES["asymmetric"])
    assert agent.replay_buffer.observations.dtype == space.dtype
    assert agent.world_model.observation_dim == 3
    if space.dtype in (np.float32, np.float64):
        data = agent.real_data[:]
        moves = 0.1 * agent.world_model.unscale_actions(data.actions) @ th.as_tensor(PointEnv.gains.T).float()
        assert th.allclose(data.next_observations - data.observations, moves, atol=1e-4)


@pytest.mark.parametrize(("name", "n_envs"), [*((name, 1) for name in ACTION_SPACES), ("matrix", 2)])
def test_action_spaces(make_agent, tmp_path, algorithm, name, n_envs):
    train(make_agent, tmp_path, algorithm, OBSERVATION_SPACES["matrix"], ACTION_SPACES[name], n_envs)


def test_user_functions_get_flat_vectors_in_environment_units(make_agent):
    seen = []

    def reward_fn(observations, actions, next_observations):
        seen.append((observations.shape, actions.shape, next_observations.shape, actions.detach().reshape(-1, 2)))
        return next_observations[..., 0]

    env = PointEnv(OBSERVATION_SPACES["tensor"], ACTION_SPACES["matrix"])
    make_agent(env, reward_fn=reward_fn).learn(30)
    assert len(seen) > 2
    for observations, actions, next_observations, _ in seen:
        assert observations == next_observations
        assert observations[:-1] == actions[:-1]
        assert (observations[-1], actions[-1]) == (3, 2)
    actions = th.cat([actions for *_, actions in seen[1:]])  # the first call checks its shape
    low, high = (th.as_tensor(bound.reshape(-1)) for bound in (env.action_space.low, env.action_space.high))
    assert ((actions >= low - 1e-6) & (actions <= high + 1e-6)).all()
    assert (actions.amax(dim=0) - actions.amin(dim=0) > 0.25 * (high - low)).all()
