"""Disagreement of an ensemble, against torch.distributions and numbers worked by hand."""

import math

import pytest
import torch as th
from torch.distributions import Independent, Normal, kl_divergence

from sb3_modelbased.common.uncertainty import PENALTIES, one_vs_rest_kl


def reference_one_vs_rest_kl(mean: th.Tensor, log_var: th.Tensor) -> th.Tensor:
    """Equation 8 member by member, with the rest's mean and variance from their definition, in float64."""
    mean, var = mean.double(), log_var.double().exp()
    total = th.zeros(mean.shape[1:-1], dtype=th.float64)
    for i in range(len(mean)):
        rest = [j for j in range(len(mean)) if j != i]
        rest_mean = sum(mean[j] for j in rest) / len(rest)
        rest_var = sum(var[j] + mean[j] ** 2 for j in rest) / len(rest) - rest_mean**2
        member, others = Normal(mean[i], var[i].sqrt()), Normal(rest_mean, rest_var.sqrt())
        total += kl_divergence(Independent(member, 1), Independent(others, 1))
    return total


@pytest.mark.parametrize("members", [2, 3, 7])
@pytest.mark.parametrize("log_var_offset", [-8.0, 0.0])
def test_against_torch_distributions(members: int, log_var_offset: float) -> None:
    generator = th.Generator().manual_seed(members)
    mean = th.randn(members, 50, 4, generator=generator)
    log_var = th.randn(members, 50, 4, generator=generator) + log_var_offset
    expected = reference_one_vs_rest_kl(mean, log_var)
    # float32: members that are thousands of variances apart lose digits of the rest's variance
    th.testing.assert_close(one_vs_rest_kl(mean, log_var).double(), expected, rtol=5e-3, atol=1e-5)
    th.testing.assert_close(one_vs_rest_kl(mean.double(), log_var.double()), expected)


def test_by_hand() -> None:
    # Two members N(0, 1) and N(2, 1): each is the other's rest, KL = 2^2 / 2 = 2, twice
    mean = th.tensor([0.0, 2.0]).reshape(2, 1, 1)
    assert one_vs_rest_kl(mean, th.zeros(2, 1, 1)).item() == pytest.approx(4.0)
    # Variances 1 and 4: KL(1 || 4) + KL(4 || 1) = (1/4 - 1 + log 4) / 2 + (4 - 1 - log 4) / 2
    log_var = th.tensor([1.0, 4.0]).log().reshape(2, 1, 1)
    assert one_vs_rest_kl(th.zeros(2, 1, 1), log_var).item() == pytest.approx((0.25 - 1 + 4 - 1) / 2)


def test_zero_for_identical_members_and_growing_with_their_distance() -> None:
    mean, log_var = th.randn(1, 20, 3).expand(5, -1, -1), th.full((5, 20, 3), -6.0)
    th.testing.assert_close(one_vs_rest_kl(mean, log_var), th.zeros(20), rtol=0, atol=1e-5)
    directions = th.randn(5, 20, 3)
    disagreement = th.stack([one_vs_rest_kl(mean + d * directions, log_var) for d in (0.0, 0.01, 0.1, 1.0)])
    assert (disagreement[1:] > disagreement[:-1]).all()


def test_does_not_depend_on_units() -> None:
    mean, log_var, scale = th.randn(5, 20, 3), th.randn(5, 20, 3), th.tensor([0.01, 1.0, 300.0])
    rescaled = one_vs_rest_kl(mean * scale + 7.0, log_var + 2 * scale.log())
    th.testing.assert_close(rescaled, one_vs_rest_kl(mean, log_var), rtol=1e-3, atol=1e-4)


def test_large_common_mean_and_small_variance_do_not_cancel() -> None:
    # The members' means differ by less than float32's resolution of their squares
    mean = 10 + 1e-2 * th.randn(7, 20, 3)
    log_var = th.full((7, 20, 3), -10.0)
    expected = reference_one_vs_rest_kl(mean, log_var)
    th.testing.assert_close(one_vs_rest_kl(mean, log_var).double(), expected, rtol=1e-3, atol=1e-4)


def test_gradient() -> None:
    mean = th.randn(3, 4, 2, dtype=th.float64, requires_grad=True)
    log_var = th.randn(3, 4, 2, dtype=th.float64, requires_grad=True)
    assert th.autograd.gradcheck(one_vs_rest_kl, (mean, log_var))


def test_penalties() -> None:
    u = th.tensor([0.0, 1.0, 10.0])
    assert PENALTIES["linear"](u).tolist() == u.tolist()
    log_u = PENALTIES["log"](u)
    assert log_u.isfinite().all()
    assert log_u[1:].tolist() == pytest.approx([0.0, math.log(10)], abs=1e-6)
