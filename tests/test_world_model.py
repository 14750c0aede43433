"""One imagined step against its members, one by one."""

import copy

import numpy as np
import pytest
import torch as th
from model_helpers import ACTION_SPACE, ACTIONS, OBSERVATIONS, make_world_model, random_transitions
from test_ensemble import member_networks

BATCH = 7  # no multiple of the number of elites


def member_steps(model, observations, actions):
    """Mean prediction of every member (next observation, reward, termination logit), each by its own torch.nn network."""
    inputs = (th.cat([observations, actions], dim=-1) - model.input_normalizer.mean) / model.input_normalizer.std
    steps = []
    for network in member_networks(model.ensemble.mlp):
        outputs = network(inputs)
        targets = outputs[:, : OBSERVATIONS + 1] * model.target_normalizer.std + model.target_normalizer.mean
        steps.append((observations + targets[:, :OBSERVATIONS], targets[:, OBSERVATIONS], outputs[:, -1]))
    return steps


def batch(n=BATCH):
    return th.randn(n, OBSERVATIONS), 2 * th.rand(n, ACTIONS) - 1


@pytest.mark.parametrize("n", [1, 2, BATCH, 9])
def test_every_row_is_the_step_of_exactly_one_elite(n):
    model = make_world_model(deterministic=True)
    model.elites.copy_(th.tensor([3, 0, 1]))  # member 2 must never be asked
    model.terminations_seen.fill_(True)
    model.refresh_elites()
    observations, actions = batch(n)
    step = model.step(observations, actions)
    assert step.next_observations.shape == (n, OBSERVATIONS)
    assert step.rewards.shape == step.terminated.shape == (n,)
    members = member_steps(model, observations, actions)
    for row in range(n):
        same = [
            i
            for i, (next_observations, rewards, logits) in enumerate(members)
            if th.allclose(next_observations[row], step.next_observations[row], atol=1e-5)
            and th.allclose(rewards[row], step.rewards[row], atol=1e-5)
            and th.allclose(logits[row].sigmoid(), step.terminated[row], atol=1e-5)
        ]
        assert len(same) == 1
        assert same[0] in (3, 0, 1)


def test_the_elite_of_a_row_is_uniform():
    model = make_world_model(deterministic=True)
    observations, actions = batch()
    rewards = th.stack([reward for _, reward, _ in member_steps(model, observations, actions)])  # [members, rows]
    draws = 2000
    counts = th.zeros(model.ensemble_size, BATCH)
    for _ in range(draws):
        step = model.step(observations, actions)
        counts[(rewards - step.rewards).abs().argmin(dim=0), th.arange(BATCH)] += 1
    assert not counts[3].any()  # no elite
    # Five standard deviations of a binomial count
    p = 1 / 3
    assert ((counts[:3] - draws * p).abs() < 5 * (draws * p * (1 - p)) ** 0.5).all()


def test_the_sample_has_the_predicted_mean_and_deviation():
    model = make_world_model(n_elites=1)
    observations, actions = batch(1)
    n = 40_000
    with th.no_grad():
        step = model.step(observations.expand(n, -1), actions.expand(n, -1))
        _, log_var, _ = model.ensemble(model.inputs(observations, actions))
    (next_observations, reward, _), *_ = member_steps(model, observations, actions)
    expected_mean = th.cat([next_observations[0], reward])
    expected_std = (0.5 * log_var[0, 0]).exp() * model.target_normalizer.std
    samples = th.cat([step.next_observations, step.rewards.unsqueeze(-1)], dim=-1)
    assert ((samples.mean(dim=0) - expected_mean).abs() < 5 * expected_std / n**0.5).all()
    assert th.allclose(samples.std(dim=0), expected_std, rtol=0.03)
    correlation = th.corrcoef(samples.T) - th.eye(OBSERVATIONS + 1)
    assert correlation.abs().max() < 0.03


def test_gradients_reach_observations_and_actions_but_no_weights():
    model = make_world_model()
    model.terminations_seen.fill_(True)
    observations, actions = (x.requires_grad_() for x in batch())
    for field in model.step(observations, actions):
        gradients = th.autograd.grad(field.sum(), (observations, actions), retain_graph=True)
        assert all((gradient.abs().sum(dim=-1) > 0).all() for gradient in gradients)
    sum(field.sum() for field in model.step(observations, actions)).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.elite_ensemble.parameters())


def test_gradient_against_finite_differences():
    model = make_world_model(deterministic=True, ensemble_size=2, n_elites=1).double()
    model.ensemble.max_log_var.data.fill_(-200.0)
    model.ensemble.min_log_var.data.fill_(-201.0)
    model.terminations_seen.fill_(True)
    model.refresh_elites()
    observations, actions = (x.double().requires_grad_() for x in batch(4))
    assert th.autograd.gradcheck(lambda s, a: tuple(model.step(s, a)), (observations, actions))


def test_step_members_gives_each_elite_its_own_block():
    model = make_world_model(deterministic=True)
    model.elites.copy_(th.tensor([2, 3, 1]))
    model.refresh_elites()
    observations, actions = th.randn(3, BATCH, OBSERVATIONS), 2 * th.rand(3, BATCH, ACTIONS) - 1
    step = model.step_members(observations, actions)
    for block, member in enumerate([2, 3, 1]):
        next_observations, rewards, _ = member_steps(model, observations[block], actions[block])[member]
        assert th.allclose(step.next_observations[block], next_observations, atol=1e-5)
        assert th.allclose(step.rewards[block], rewards, atol=1e-5)


def test_a_known_reward_gets_environment_units():
    calls = []

    def reward_fn(observations, actions, next_observations):
        calls.append((observations, actions, next_observations))
        return observations[..., 0] + 10 * actions[..., 1] + 100 * next_observations[..., 2]

    model = make_world_model(deterministic=True, reward_fn=reward_fn)
    assert model.target_dim == OBSERVATIONS
    assert model.target_normalizer.mean.shape == (OBSERVATIONS,)
    observations, _ = batch()
    actions = th.tensor([[-1.0, 1.0]]).expand(BATCH, -1)
    step = model.step(observations, actions)
    # [-1, 1] is (lower bound of the first, upper bound of the second)
    assert th.allclose(calls[0][1], th.tensor([-1.0, 2.5]).expand_as(calls[0][1]))
    expected = observations[:, 0] + 25.0 + 100 * step.next_observations[:, 2]
    assert th.allclose(step.rewards, expected, rtol=1e-5)


def test_unscaled_actions():
    model = make_world_model()
    actions = th.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [-0.5, 0.5]])
    expected = th.tensor([[-1.0, 2.0], [3.0, 2.5], [1.0, 2.25], [0.0, 2.375]])
    assert th.allclose(model.unscale_actions(actions), expected)
    assert np.all(ACTION_SPACE.low == expected[0].numpy())


def test_a_known_termination_decides_alone():
    model = make_world_model(deterministic=True, termination_fn=lambda s, a, s2: (s2[..., 0] > s[..., 0]) & (a[..., 1] > 2.25))
    assert model.ensemble.n_logits == 0
    observations, actions = batch(50)
    step = model.step(observations, actions)
    expected = (step.next_observations[:, 0] > observations[:, 0]) & (actions[:, 1] > 0)
    assert step.terminated.dtype == th.float32
    assert step.terminated.equal(expected.float())
    assert 0 < expected.sum() < 50


def test_no_termination_is_predicted_before_one_was_seen():
    model = make_world_model()
    assert not model.step(*batch()).terminated.any()
    model.fit_normalizers(random_transitions(50))
    assert not model.step(*batch()).terminated.any()
    model.fit_normalizers(random_transitions(50, terminations=True))
    assert (model.step(*batch()).terminated > 0).all()


def test_predictions_stay_within_half_a_range_of_the_data():
    model = make_world_model()
    data = random_transitions(200)
    model.fit_normalizers(data)
    low, high = data.next_observations.amin(dim=0), data.next_observations.amax(dim=0)
    far = th.full((3, OBSERVATIONS), 1e6) * th.tensor([[1.0], [-1.0], [0.0]])
    step = model.step(far, th.zeros(3, ACTIONS))
    assert th.allclose(step.next_observations[0], high + 0.5 * (high - low))
    assert th.allclose(step.next_observations[1], low - 0.5 * (high - low))


def test_targets_and_normalisers():
    model = make_world_model()
    data = random_transitions(200)
    targets = np.concatenate([data.next_observations - data.observations, data.rewards[:, None]], axis=1)
    np.testing.assert_allclose(model.targets(data), targets, atol=1e-6)
    model.fit_normalizers(data)
    np.testing.assert_allclose(model.target_normalizer.mean, targets.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(model.target_normalizer.std, targets.std(axis=0), atol=1e-5)
    inputs = np.concatenate([data.observations, data.actions], axis=1)
    np.testing.assert_allclose(
        model.inputs(data.observations, data.actions), (inputs - inputs.mean(axis=0)) / inputs.std(axis=0), atol=1e-4
    )


def test_statistics_of_large_data_are_those_of_a_sample_and_the_range_is_that_of_all(monkeypatch):
    monkeypatch.setattr("sb3_modelbased.common.world_model.STATISTICS_ROWS", 1000)
    model, data = make_world_model(), random_transitions(20_000)
    model.fit_normalizers(data)
    targets = model.targets(data)
    error = 4 * targets.std(dim=0) / 1000**0.5
    assert not model.target_normalizer.mean.equal(targets.mean(dim=0))
    assert ((model.target_normalizer.mean - targets.mean(dim=0)).abs() < error).all()
    assert ((model.target_normalizer.std - targets.std(dim=0)).abs() < error).all()
    low, high = data.next_observations.amin(dim=0), data.next_observations.amax(dim=0)
    assert th.allclose(model.observation_high, high + 0.5 * (high - low))


def test_state_dict_restores_everything_that_imagination_uses():
    model, other = make_world_model(), make_world_model()
    model.elites.copy_(th.tensor([3, 1, 2]))
    model.fit_normalizers(random_transitions(50, terminations=True))
    model.fitted.fill_(True)
    model.refresh_elites()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    observations, actions = batch()
    steps = []
    for world_model in (model, other):
        th.manual_seed(7)
        steps.append(world_model.step(observations, actions))
    for ours, theirs in zip(*steps, strict=True):
        assert ours.equal(theirs)
    assert bool(other.fitted)


def test_elites_change_what_is_imagined_only_when_refreshed():
    model = make_world_model(deterministic=True)
    observations, actions = (x.expand(3, -1, -1) for x in batch())
    first = model.step_members(observations, actions).rewards
    for parameter in model.ensemble.parameters():
        parameter.data *= 2
    assert model.step_members(observations, actions).rewards.equal(first)
    model.refresh_elites()
    assert not th.allclose(model.step_members(observations, actions).rewards, first, atol=1e-3)
