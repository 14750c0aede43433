"""The entropy coefficient: fixed, and learned as SB3's SAC learns it."""

import math

import pytest
import torch as th

from sb3_modelbased.common.entropy import FixedEntropyCoef, LearnedEntropyCoef, make_entropy_coef


def test_a_fixed_one_stays():
    coef = make_entropy_coef(0.3, "auto", 2, 1e-2)
    assert isinstance(coef, FixedEntropyCoef)
    assert coef.optimizer is None
    assert coef.update(th.randn(5)) is None
    assert coef().item() == pytest.approx(0.3)
    assert not coef().requires_grad
    assert make_entropy_coef("0.3", "auto", 2, 1e-2)().item() == pytest.approx(0.3)  # as a YAML file may have it
    assert make_entropy_coef(0, "auto", 2, 1e-2)().item() == 0.0


@pytest.mark.parametrize(("ent_coef", "start"), [("auto", 1.0), ("auto_0.1", 0.1), ("auto_1e-3", 1e-3)])
@pytest.mark.parametrize(("target", "expected_target"), [("auto", -3.0), (-1.5, -1.5), ("-0.5", -0.5)])
def test_starts_and_targets(ent_coef, start, target, expected_target):
    coef = make_entropy_coef(ent_coef, target, 3, 1e-2)
    assert isinstance(coef, LearnedEntropyCoef)
    assert coef().item() == pytest.approx(start)
    assert coef.target_entropy == expected_target


def test_updates_against_sb3s_lines():
    """SAC.train's lines on the logarithm of alpha."""
    coef = LearnedEntropyCoef(0.5, -2.0, learning_rate=0.05)
    log_ent_coef = th.log(th.ones(1) * 0.5).requires_grad_(True)
    optimizer = th.optim.Adam([log_ent_coef], lr=0.05)
    for log_probs in th.randn(10, 7) + 2:
        loss = coef.update(log_probs)
        expected = -(log_ent_coef * (log_probs.reshape(-1, 1) - 2.0).detach()).mean()
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert not loss.requires_grad
        assert coef().item() == pytest.approx(log_ent_coef.exp().item(), rel=1e-5)


def test_it_steers_to_the_target():
    coef = LearnedEntropyCoef(1.0, -2.0, learning_rate=0.1)
    coef.update(th.full((4,), 5.0))  # entropy -5: too low, alpha must grow; Adam's first step is the learning rate
    assert coef().item() == pytest.approx(math.exp(0.1), rel=1e-4)
    coef = LearnedEntropyCoef(1.0, -2.0, learning_rate=0.1)
    coef.update(th.full((4,), -5.0))
    assert coef().item() == pytest.approx(math.exp(-0.1), rel=1e-4)


def test_it_leaves_no_gradient_with_the_policy():
    log_probs = th.randn(4, requires_grad=True)
    LearnedEntropyCoef(1.0, -2.0, 0.1).update(log_probs * 2)
    assert log_probs.grad is None


@pytest.mark.parametrize(
    ("ent_coef", "target_entropy"),
    [
        ("automatic", "auto"),
        ("auto_0", "auto"),
        ("auto_-1", "auto"),
        ("auto_x", "auto"),
        (-0.1, "auto"),
        (math.nan, "auto"),
        ("learned", "auto"),
        (None, "auto"),
        ("auto", "automatic"),
        ("auto", None),
        ("auto", math.nan),
    ],
)
def test_what_is_refused(ent_coef, target_entropy):
    with pytest.raises(ValueError, match=r"`ent_coef` must be .* and `target_entropy` .* but .* Pass for example") as error:
        make_entropy_coef(ent_coef, target_entropy, 2, 1e-3)
    assert f"ent_coef={ent_coef!r}" in str(error.value)
    assert f"target_entropy={target_entropy!r}" in str(error.value)
