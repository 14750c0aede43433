"""Rollouts through a model that can be followed by hand."""

import pytest
import torch as th

from sb3_modelbased.common import imagination
from sb3_modelbased.common.buffers import ImaginaryBuffer
from sb3_modelbased.common.imagination import branched_rollouts, imagine
from sb3_modelbased.common.world_model import ModelStep


class Counter:
    """A known model: s' = 2 s + a, reward s_0 * a, terminal where s'_0 exceeds ten."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def step(self, observations: th.Tensor, actions: th.Tensor) -> ModelStep:
        self.calls.append(len(observations))
        next_observations = 2 * observations + actions
        return ModelStep(next_observations, observations[:, 0] * actions[:, 0], (next_observations[:, 0] > 10).float())


class Policy:
    """a = w_t s_0, log-probability -s_0."""

    def __init__(self, *weights: float) -> None:
        self.weights = [th.tensor(weight, requires_grad=True) for weight in weights]

    def __call__(self, observations: th.Tensor, step: int) -> tuple[th.Tensor, th.Tensor]:
        return self.weights[step] * observations[:, :1], -observations[:, 0]


def test_imagine_by_hand():
    trajectory = imagine(Counter(), Policy(1.0, -1.0), th.tensor([[1.0], [5.0]]), 2)
    # 1 -> 2 + 1 = 3 -> 6 - 3 = 3 and 5 -> 10 + 5 = 15 -> 30 - 15 = 15: a rollout goes on behind a terminal step
    assert trajectory.observations.squeeze(-1).tolist() == [[1.0, 5.0], [3.0, 15.0], [3.0, 15.0]]
    assert trajectory.actions.squeeze(-1).tolist() == [[1.0, 5.0], [-3.0, -15.0]]
    assert trajectory.log_probs.tolist() == [[-1.0, -5.0], [-3.0, -15.0]]
    assert trajectory.rewards.tolist() == [[1.0, 25.0], [-9.0, -225.0]]
    assert trajectory.terminated.tolist() == [[0.0, 1.0], [0.0, 1.0]]


def test_the_gradient_runs_through_model_and_policy_at_every_step():
    policy = Policy(0.5, 0.25)
    start = th.tensor([[3.0]], requires_grad=True)
    imagine(Counter(), policy, start, 2).observations[-1].sum().backward()
    # s_2 = (2 + w_1) (2 + w_0) s_0
    assert policy.weights[0].grad.item() == pytest.approx(2.25 * 3.0)
    assert policy.weights[1].grad.item() == pytest.approx(2.5 * 3.0)
    assert start.grad.item() == pytest.approx(2.25 * 2.5)


def test_a_horizon_of_zero_asks_neither_model_nor_policy():
    model, start = Counter(), th.randn(4, 3)
    trajectory = imagine(model, Policy(), start, 0)
    assert trajectory.observations.equal(start.unsqueeze(0))
    assert trajectory.rewards.shape == trajectory.log_probs.shape == trajectory.terminated.shape == (0, 4)
    assert len(trajectory.actions) == 0
    assert not model.calls


@pytest.mark.parametrize("rows_per_pass", [2, 4096])
def test_branched_rollouts_end_at_imagined_terminals(monkeypatch, rows_per_pass):
    monkeypatch.setattr(imagination, "ROWS_PER_PASS", rows_per_pass)
    starts = [1.0, 4.0, -1.0, 2.0, 20.0]
    model, buffer = Counter(), ImaginaryBuffer(100, 1, 1)
    imagined = branched_rollouts(model, Policy(1.0, 0.0, 0.0), th.tensor(starts).unsqueeze(1), 3, buffer)
    expected = []
    for state in starts:
        for weight in (1.0, 0.0, 0.0):
            action = weight * state
            following = 2 * state + action
            expected.append((state, action, following, state * action, float(following > 10)))
            if following > 10:
                break
            state = following
    # 1, 3, 6 | 4 | -1, -3, -6 | 2, 6 | 20
    assert len(expected) == 10
    assert imagined == sum(model.calls) == len(buffer) == 10
    stored = buffer[:]
    rows = zip(*(field.flatten().tolist() for field in stored), strict=True)
    assert sorted(rows) == sorted(expected)
    assert not any(field.requires_grad for field in stored)


def test_branched_rollouts_stop_when_all_have_ended():
    model, buffer = Counter(), ImaginaryBuffer(100, 1, 1)
    assert branched_rollouts(model, Policy(*[1.0] * 50), th.tensor([[1.0], [3.0]]), 50, buffer) == 5
    # 1 -> 3 -> 9 -> 27 and 3 -> 9 -> 27: in order 2 rows, 2 rows, and the one that is left
    assert model.calls == [2, 2, 1]


def test_branched_rollouts_leave_no_gradient():
    policy = Policy(1.0)
    buffer = ImaginaryBuffer(100, 1, 1)
    branched_rollouts(Counter(), policy, th.ones(3, 1, requires_grad=True), 1, buffer)
    assert not any(field.requires_grad for field in buffer.sample(5)[:5])
    assert policy.weights[0].grad is None
