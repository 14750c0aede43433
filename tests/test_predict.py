"""Acting: what a trained agent says, and that it says it in the environment's units."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import PointEnv

LOW, HIGH = np.array([-1.0, 0.0]), np.array([3.0, 0.5])


@pytest.fixture
def agent(make_agent):
    return make_agent().learn(25)


def observations(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


@pytest.mark.parametrize("deterministic", [False, True])
def test_shapes_and_bounds(agent, deterministic):
    action, state = agent.predict(observations(1)[0], deterministic=deterministic)
    assert action.shape == (2,)
    assert state is None
    actions, _ = agent.predict(100 * observations(500), deterministic=deterministic)
    assert actions.shape == (500, 2)
    assert actions.dtype == np.float32
    assert (actions >= LOW).all()
    assert (actions <= HIGH).all()
    # Asymmetric bounds are used on both sides of their middle
    assert actions[:, 0].min() < 1.0 < actions[:, 0].max()


def test_deterministic_actions_are_the_squashed_mean(agent):
    batch = observations(6)
    actions, _ = agent.predict(batch, deterministic=True)
    with th.no_grad():
        mean = np.tanh(agent.actor.get_action_dist_params(th.as_tensor(batch))[0].numpy())
    np.testing.assert_allclose(actions, LOW + 0.5 * (mean + 1) * (HIGH - LOW), atol=1e-5)
    for i in range(6):  # one by one or together
        np.testing.assert_allclose(agent.predict(batch[i], deterministic=True)[0], actions[i], atol=1e-5)


def test_stochastic_actions_differ(agent):
    batch = np.repeat(observations(1), 50, axis=0)
    actions, _ = agent.predict(batch)
    assert len(np.unique(actions, axis=0)) > 40
    assert len(np.unique(agent.predict(batch, deterministic=True)[0], axis=0)) == 1


def test_predict_does_not_train(agent):
    before = [parameter.detach().clone() for parameter in agent.policy.parameters()]
    agent.predict(observations(5))
    assert not agent.policy.training
    assert all(a.equal(b) for a, b in zip(before, agent.policy.parameters(), strict=True))


def test_evaluate_policy(agent):
    mean, std = evaluate_policy(agent, make_vec_env(PointEnv), n_eval_episodes=2)
    assert np.isfinite([mean, std]).all()


def test_under_vec_normalize_the_agent_sees_normalised_observations(make_agent):
    env = VecNormalize(make_vec_env(PointEnv))
    agent = make_agent(env).learn(30)
    raw = observations(4)
    agent._view.refresh()
    ours, _ = agent._policy_fn(th.as_tensor(raw))
    assert ours.shape == (4, 2)
    expected, _ = agent.predict(env.normalize_obs(raw), deterministic=True)
    with th.no_grad():
        seen = agent._view.observations(th.as_tensor(raw))
    np.testing.assert_allclose(agent.predict(seen.numpy(), deterministic=True)[0], expected, rtol=1e-4, atol=1e-5)
