"""The examples run, and the figure that one of them draws shows what the paper says."""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_modelbased import MAAC
from sb3_modelbased.common.imagination import imagine
from sb3_modelbased.common.model_trainer import ModelTrainer

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def experiment():
    """The module of examples/maac_gradient_error.py."""
    spec = importlib.util.spec_from_file_location("maac_gradient_error", EXAMPLES / "maac_gradient_error.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("script", ["train_maac.py", "known_reward_and_termination.py"])
def test_script_runs(script, monkeypatch, tmp_path):
    # Everything but the length of training and fits is what the user would run
    learn = MAAC.learn
    monkeypatch.setattr(MAAC, "learn", lambda self, total_timesteps, **kwargs: learn(self, 510, **kwargs))
    fit = ModelTrainer.fit
    monkeypatch.setattr(ModelTrainer, "fit", lambda self, data: vars(self).update(max_gradient_steps=20) or fit(self, data))
    monkeypatch.chdir(tmp_path)
    variables = runpy.run_path(str(EXAMPLES / script))
    assert variables["model"].num_timesteps == 510
    assert variables["model"].world_model.fitted


def test_analytic_gradient_against_finite_differences(experiment):
    starts = th.tensor([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]], dtype=th.float64)
    a, b, gamma = experiment.A.double(), experiment.B.double(), experiment.GAMMA
    state_cost, action_cost = experiment.STATE_COST.double(), experiment.ACTION_COST.double()

    def simulated_return(gain):
        states, total = starts, 0.0
        for t in range(600):
            actions = -states @ gain.T
            cost = ((states @ state_cost) * states).sum(1) + ((actions @ action_cost) * actions).sum(1)
            total -= gamma**t * cost.mean().item()
            states = states @ a.T + actions @ b.T
        return total

    gain, delta = experiment.GAIN.double(), 1e-5
    differences = [
        (simulated_return(gain + shift) - simulated_return(gain - shift)) / (2 * delta)
        for shift in delta * th.eye(2).unsqueeze(1)
    ]
    gradient = experiment.analytic_gradient(experiment.GAIN, starts)
    np.testing.assert_allclose(gradient.numpy().ravel(), differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("horizon", [0, 1, 4])
def test_gradient_with_exact_parts(experiment, horizon):
    """With true dynamics and the true Q-function the gradient is the policy gradient's sum up to step H."""
    starts = th.tensor([[1.0, -0.5], [0.3, 0.8], [-0.7, 0.2]])
    p = experiment.value_matrix(experiment.GAIN).float()

    def exact_q(inputs):
        states, actions = inputs[:, :2], inputs[:, 2:]
        following = experiment.TrueDynamics().step(states, actions)
        values = following.rewards - experiment.GAMMA * ((following.next_observations @ p) * following.next_observations).sum(
            1
        )
        return values.reshape(1, -1, 1)

    gradient = experiment.maac_gradient(experiment.TrueDynamics(), exact_q, starts, horizon)

    # grad J = sum_t gamma^t E[dQ(s_t, a_t)/da * d(-K s_t)/dK], term by term with a numerical dQ/da
    expected, states, delta = th.zeros(2, dtype=th.float64), starts, 0.25  # exact for a quadratic, whatever the step
    for t in range(horizon + 1):
        actions = -states @ experiment.GAIN.T
        above, below = (exact_q(th.cat([states, actions + shift], dim=1)).ravel() for shift in (delta, -delta))
        slope = ((above - below) / (2 * delta)).unsqueeze(1)
        expected += experiment.GAMMA**t * (slope * -states).mean(dim=0).double()
        states = states @ experiment.A.T + actions @ experiment.B.T
    np.testing.assert_allclose(gradient.numpy().ravel(), expected.numpy(), rtol=1e-4)


def test_learned_dynamics_follow_the_true_ones(experiment):
    th.manual_seed(0)
    model = experiment.learn_dynamics(experiment.collect(50), gradient_steps=300)
    starts, policy = experiment.start_states(500), experiment.linear_policy(experiment.GAIN)
    with th.no_grad():
        learned, true = (imagine(dynamics, policy, starts, 5) for dynamics in (model, experiment.TrueDynamics()))
    # The states have a size of about 0.6
    assert (learned.observations[-1] - true.observations[-1]).abs().mean() < 0.1


def test_figure_3(experiment, tmp_path):
    horizons = (0, 10, 30)
    rows = [row for seed in range(2) for row in experiment.run(seed, horizons, n_starts=500)]
    learned, true = (experiment.errors(rows, name).mean(axis=0) for name in ("learned", "true"))
    assert learned[1] < 0.5 * learned[0], "the learned curve must fall"
    assert learned[2] > learned[1], "and rise again"
    assert true[0] > 2 * true[1] > 4 * true[2], "the true one must fall"
    assert true[2] < 0.1 * learned[2]

    pytest.importorskip("matplotlib")
    experiment.plot(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
