"""The recursion and its relatives against plain loops over single samples, and against numbers worked by hand."""

import numpy as np
import pytest
import torch as th

from sb3_modelbased.common.returns import alive, discounted_sum, k_step_returns, lambda_returns, steve_weights

BATCH = 6


def random_trajectories(horizon, seed=0):
    """Rewards, discounts with some terminal steps, values and lambdas, [H, B] in double precision."""
    rng = np.random.default_rng(seed)
    rewards, values = rng.normal(size=(2, horizon, BATCH))
    discounts = 0.9 * (rng.random((horizon, BATCH)) > 0.3)
    lambdas = rng.random((horizon, BATCH))
    return rewards, discounts, values, lambdas


def lambda_return_of_one_sample(rewards, discounts, next_values, lambdas, t=0):
    """The definition, written as it is read."""
    if t == len(rewards):
        return next_values[-1]
    following = lambda_return_of_one_sample(rewards, discounts, next_values, lambdas, t + 1)
    return rewards[t] + discounts[t] * ((1 - lambdas[t]) * next_values[t] + lambdas[t] * following)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_lambda_returns_against_a_loop(horizon):
    rewards, discounts, values, lambdas = random_trajectories(horizon)
    result = lambda_returns(*map(th.as_tensor, (rewards, discounts, values, lambdas)))
    for i in range(BATCH):
        for t in range(horizon):
            expected = lambda_return_of_one_sample(rewards[:, i], discounts[:, i], values[:, i], lambdas[:, i], t)
            assert result[t, i].item() == pytest.approx(expected, rel=1e-12)


def test_lambda_returns_by_hand():
    rewards, discounts, values = th.tensor([1.0, 2.0]), th.tensor([0.5, 0.5]), th.tensor([10.0, 20.0])
    # G_1 = 2 + 0.5 * 20 = 12 for every lambda; G_0 = 1 + 0.5 * 12, 1 + 0.5 * 10, 1 + 0.5 * (0.75 * 10 + 0.25 * 12)
    assert lambda_returns(rewards, discounts, values).tolist() == [7.0, 12.0]
    assert lambda_returns(rewards, discounts, values, 0.0).tolist() == [6.0, 12.0]
    assert lambda_returns(rewards, discounts, values, 0.25).tolist() == [6.25, 12.0]


@pytest.mark.parametrize("horizon", [0, 1, 2, 5])
def test_discounted_sum_against_a_loop(horizon):
    rewards, discounts, _, _ = random_trajectories(max(horizon, 1))
    rewards, discounts = rewards[:horizon], discounts[:horizon]
    last_value = np.random.default_rng(1).normal(size=BATCH)
    result = discounted_sum(*map(th.as_tensor, (rewards, discounts, last_value)))
    for i in range(BATCH):
        expected, survival = 0.0, 1.0
        for t in range(horizon):
            expected += survival * rewards[t, i]
            survival *= discounts[t, i]
        assert result[i].item() == pytest.approx(expected + survival * last_value[i], rel=1e-12)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_k_step_returns_against_a_loop(horizon):
    rewards, discounts, values, _ = random_trajectories(horizon)
    result = k_step_returns(*map(th.as_tensor, (rewards, discounts, values)))
    assert result.shape == (horizon, BATCH)
    for i in range(BATCH):
        for k in range(1, horizon + 1):
            expected = values[k - 1, i]
            for t in reversed(range(k)):
                expected = rewards[t, i] + discounts[t, i] * expected
            assert result[k - 1, i].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_nothing_counts_behind_a_terminal_step():
    discounts = th.tensor([0.9, 0.0, 0.9])
    first = (th.tensor([1.0, 2.0, 3.0]), th.tensor([4.0, 5.0, 6.0]))
    second = (th.tensor([1.0, 2.0, -300.0]), th.tensor([4.0, -500.0, -600.0]))
    results = [
        (
            lambda_returns(rewards, discounts, values, 1.0)[:2],
            discounted_sum(rewards, discounts, values[-1]),
            k_step_returns(rewards, discounts, values),
        )
        for rewards, values in (first, second)
    ]
    for one, other in zip(*results, strict=True):
        assert one.equal(other)
    assert results[0][1].item() == pytest.approx(1 + 0.9 * 2)


def test_gradients_are_products_of_discounts():
    rewards = th.tensor([1.0, 2.0, 3.0], requires_grad=True)
    last_value = th.tensor(7.0, requires_grad=True)
    discounted_sum(rewards, th.tensor([0.5, 0.25, 0.5]), last_value).backward()
    assert rewards.grad.tolist() == [1.0, 0.5, 0.125]
    assert last_value.grad.item() == 0.0625


def test_steve_weights_by_hand():
    # 1/1, 1/4 and 1/0.25 are 1, 0.25 and 4: in sum 5.25
    weights = steve_weights(th.tensor([1.0, 4.0, 0.25]))
    assert weights.tolist() == pytest.approx([1 / 5.25, 0.25 / 5.25, 4 / 5.25], rel=1e-6)


def test_steve_weights_are_per_sample_and_finite_without_variance():
    weights = steve_weights(th.tensor([[2.0, 0.0, 0.0], [2.0, 1.0, 0.0]]))
    assert weights.sum(dim=0).tolist() == pytest.approx([1.0, 1.0, 1.0])
    # Equal variances share; a horizon without variance takes it all; two of them share
    assert weights[0].tolist() == pytest.approx([0.5, 1.0, 0.5], abs=1e-6)


def test_alive_is_the_product_of_going_on():
    terminated = th.tensor([[0.0, 0.5, 1.0], [0.25, 0.5, 0.0], [1.0, 0.0, 0.0]])
    assert th.allclose(alive(terminated), th.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 0.0], [0.75, 0.25, 0.0]]))
