r"""
The error of MAAC's policy gradient against the horizon: figure 3 of the paper (Clavera et al., 2020, section 5.2).

    python examples/maac_gradient_error.py

A double integrator with a quadratic cost and a linear policy :math:`u = -K s` has its policy gradient in closed form.
MAAC's objective for the horizon H is compared with it twice, both times with the same learned Q-function behind the last
step: imagined with learned and with true dynamics. With the true dynamics only the end errs: the Q-function is approximate,
and it is held fixed, so that what the policy does after step H adds nothing to the gradient. Both are weighted by
:math:`\gamma^H`. The error of learned dynamics grows with H, so that there is a best horizon in between.

Model and Q-function are those of an agent that has just started: 200 transitions, and few gradient steps. The system is
deterministic and the start states are given. The closed form is then the exact gradient for these very states: nothing in
the error comes from sampling them.
"""

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_modelbased.common.buffers import ReplayMirror
from sb3_modelbased.common.ensemble import EnsembleMLP
from sb3_modelbased.common.imagination import imagine
from sb3_modelbased.common.model_trainer import ModelTrainer
from sb3_modelbased.common.returns import discounted_sum
from sb3_modelbased.common.termination_fns import NeverTerminates
from sb3_modelbased.common.type_aliases import PolicyFn, Transitions
from sb3_modelbased.common.world_model import Dynamics, ModelStep, WorldModel

QFunction = Callable[[th.Tensor], th.Tensor]

ROOT = Path(__file__).resolve().parent.parent
HORIZONS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 20, 25, 30)
GAMMA = 0.95
TIME_STEP = 0.5  # s
# State (position in m, velocity in m/s), action: acceleration in m/s^2
A = th.tensor([[1.0, TIME_STEP], [0.0, 1.0]])
B = th.tensor([[0.5 * TIME_STEP**2], [TIME_STEP]])
STATE_COST = th.diag(th.tensor([1.0, 0.1]))
ACTION_COST = th.tensor([[0.1]])
GAIN = th.tensor([[0.8, 0.8]])  # a stable policy, far from the optimal one


# -- The analytic gradient --------------------------------------------------------------------------------------------


def discounted_lyapunov(matrix: th.Tensor, constant: th.Tensor) -> th.Tensor:
    r"""
    Solve :math:`X = C + \gamma M X M^\top`.

    :param matrix: M, [n, n]
    :param constant: C, [n, n]
    :return: X, [n, n]
    """
    n = len(matrix)
    matrix, constant = matrix.double(), constant.double()
    vectorised = th.eye(n * n, dtype=th.float64) - GAMMA * th.kron(matrix, matrix)
    return th.linalg.solve(vectorised, constant.reshape(-1)).reshape(n, n)


def value_matrix(gain: th.Tensor) -> th.Tensor:
    r"""
    :param gain: K, [1, 2]
    :return: P of the value :math:`V(s) = -s^\top P s` of the policy, [2, 2]
    """
    gain = gain.double()
    return discounted_lyapunov((A.double() - B.double() @ gain).T, STATE_COST + gain.T @ ACTION_COST.double() @ gain)


def analytic_gradient(gain: th.Tensor, starts: th.Tensor) -> th.Tensor:
    r"""
    :math:`\nabla_K J = -2 [(R + \gamma B^\top P B) K - \gamma B^\top P A] \Sigma_K`, where :math:`\Sigma_K` is the
    discounted second moment of the visited states (Fazel et al., 2018, lemma 1).

    :param gain: K, [1, 2]
    :param starts: start states, [N, 2]
    :return: gradient of the mean return of these start states, [1, 2]
    """
    gain, starts = gain.double(), starts.double()
    a, b, r = A.double(), B.double(), ACTION_COST.double()
    p = value_matrix(gain)
    visited = discounted_lyapunov(a - b @ gain, starts.T @ starts / len(starts))
    return -2 * ((r + GAMMA * b.T @ p @ b) @ gain - GAMMA * b.T @ p @ a) @ visited


# -- What is learned --------------------------------------------------------------------------------------------------


def reward_fn(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    """The negative quadratic cost. MAAC's published results use known rewards, and so does this experiment."""
    return -((observations @ STATE_COST) * observations).sum(-1) - ((actions @ ACTION_COST) * actions).sum(-1)


class TrueDynamics:
    """The double integrator itself."""

    def step(self, observations: th.Tensor, actions: th.Tensor) -> ModelStep:
        next_observations = observations @ A.T + actions @ B.T
        rewards = reward_fn(observations, actions, next_observations)
        return ModelStep(next_observations, rewards, th.zeros_like(rewards))


def linear_policy(gain: th.Tensor) -> PolicyFn:
    """
    :param gain: K, [1, 2]
    :return: the policy u = -K s, deterministic
    """
    return lambda observations, step: (-observations @ gain.T, observations.new_zeros(len(observations)))


def collect(n_episodes: int, length: int = 20, noise: float = 0.5) -> ReplayMirror:
    """
    :param n_episodes: number of episodes from random states
    :param length: steps of each
    :param noise: standard deviation of the exploration
    :return: transitions of the policy with exploration
    """
    data = ReplayMirror(n_episodes * length, observation_dim=2, action_dim=1)
    states = start_states(n_episodes)
    for _ in range(length):
        actions = -states @ GAIN.T + noise * th.randn(n_episodes, 1)
        step = TrueDynamics().step(states, actions)
        data.extend(Transitions(states, actions, step.next_observations, step.rewards, step.terminated))
        states = step.next_observations
    return data


def start_states(n: int) -> th.Tensor:
    """
    :param n: number of states
    :return: uniform states, [n, 2]
    """
    return 2 * th.rand(n, 2) - 1


def learn_dynamics(data: ReplayMirror, gradient_steps: int) -> WorldModel:
    """
    :param data: transitions
    :param gradient_steps: of the model
    :return: the package's own ensemble, fitted
    """
    model = WorldModel(
        observation_dim=2,
        action_space=spaces.Box(-1, 1, (1,)),  # actions need no scaling
        ensemble_size=5,
        n_elites=3,
        net_arch=(64, 64),
        reward_fn=reward_fn,
        termination_fn=NeverTerminates(),
    )
    ModelTrainer(model, max_gradient_steps=gradient_steps).fit(data)
    return model


def learn_q_function(data: ReplayMirror, gradient_steps: int) -> EnsembleMLP:
    """
    Twin critics of the policy by one-step temporal differences, as an actor-critic has them: approximate.

    :param data: transitions
    :param gradient_steps: of the critics
    :return: (state, action) [B, 3] to values [2, B, 1]
    """
    q_function, target = (EnsembleMLP(2, 3, 1, (64, 64)) for _ in range(2))
    target.load_state_dict(q_function.state_dict())
    optimizer = th.optim.Adam(q_function.parameters(), lr=1e-3)
    for _ in range(gradient_steps):
        batch = data[data.random_rows(256)]
        with th.no_grad():
            next_inputs = th.cat([batch.next_observations, -batch.next_observations @ GAIN.T], dim=1)
            targets = batch.rewards.unsqueeze(-1) + GAMMA * target(next_inputs).amin(dim=0)
        loss = (q_function(th.cat([batch.observations, batch.actions], dim=1)) - targets).square().mean(dim=1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with th.no_grad():
            th._foreach_lerp_(list(target.parameters()), list(q_function.parameters()), 0.01)
    return q_function


# -- The experiment ---------------------------------------------------------------------------------------------------


def maac_gradient(dynamics: Dynamics, q_function: QFunction, starts: th.Tensor, horizon: int) -> th.Tensor:
    r"""
    The gradient of :math:`J = E[\sum_{t<H} \gamma^t r(s_t, a_t) + \gamma^H \min_j Q_j(s_H, a_H)]` with respect to K.

    :param dynamics: learned or true
    :param q_function: (state, action) [B, 3] to values [n_critics, B, 1]
    :param starts: start states, [B, 2]
    :param horizon: H
    :return: [1, 2]
    """
    gain = GAIN.clone().requires_grad_()
    policy = linear_policy(gain)
    trajectory = imagine(dynamics, policy, starts, horizon)
    last_states = trajectory.observations[-1]
    last_actions, _ = policy(last_states, horizon)
    last_values = q_function(th.cat([last_states, last_actions], dim=1)).amin(dim=0).squeeze(-1)
    objective = discounted_sum(trajectory.rewards, GAMMA * (1 - trajectory.terminated), last_values).mean()
    return th.autograd.grad(objective, gain)[0]


class Row(NamedTuple):
    """One measured point: the L1 error of the gradient."""

    seed: int
    horizon: int
    dynamics: str
    l1_error: float


def run(
    seed: int,
    horizons: Sequence[int] = HORIZONS,
    n_episodes: int = 10,
    model_steps: int = 100,
    q_steps: int = 500,
    n_starts: int = 2000,
) -> list[Row]:
    """
    :param seed: of the data, the networks and their training
    :param horizons: H to measure
    :param n_episodes: data to learn from
    :param model_steps: gradient steps of the model
    :param q_steps: gradient steps of the Q-function
    :param n_starts: start states of the gradient
    :return: errors with learned and with true dynamics
    """
    th.manual_seed(seed)
    data = collect(n_episodes)
    q_function = learn_q_function(data, q_steps)
    dynamics: dict[str, Dynamics] = {"learned": learn_dynamics(data, model_steps), "true": TrueDynamics()}
    starts = start_states(n_starts)
    reference = analytic_gradient(GAIN, starts)
    return [
        Row(seed, horizon, name, (maac_gradient(model, q_function, starts, horizon) - reference).abs().sum().item())
        for name, model in dynamics.items()
        for horizon in horizons
    ]


def errors(rows: list[Row], dynamics: str) -> np.ndarray:
    """
    :param rows: of all seeds
    :param dynamics: "learned" or "true"
    :return: errors, [seeds, horizons]
    """
    horizons = sorted({row.horizon for row in rows})
    return np.array([[row.l1_error for row in rows if (row.horizon, row.dynamics) == (h, dynamics)] for h in horizons]).T


def plot(rows: list[Row], path: Path) -> None:
    """
    :param rows: of all seeds
    :param path: of the figure
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    horizons = sorted({row.horizon for row in rows})
    figure, axes = plt.subplots(figsize=(6, 3.8), layout="constrained")
    for dynamics, colour in (("learned", "tab:blue"), ("true", "tab:orange")):
        values = errors(rows, dynamics)
        axes.plot(horizons, values.mean(axis=0), "o-", markersize=4, color=colour, label=f"{dynamics} dynamics, mean")
        axes.plot(horizons, values.T, color=colour, alpha=0.3, linewidth=0.7)
    axes.set(xlabel="horizon H (model steps)", ylabel="L1 error of the policy gradient", yscale="log")
    axes.set_title(f"Double integrator, {len(values)} seeds (thin: each seed)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Run all seeds, write the numbers and draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--csv", type=Path, default=ROOT / "benchmarks" / "results" / "maac_gradient_error.csv")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "images" / "maac_gradient_error.png")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    rows = [row for seed in range(arguments.seeds) for row in run(seed)]
    arguments.csv.parent.mkdir(parents=True, exist_ok=True)
    with arguments.csv.open("w", newline="") as file:
        file.write(f"# command: python examples/maac_gradient_error.py --seeds {arguments.seeds}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows(rows)
    plot(rows, arguments.figure)
    learned, true = (errors(rows, name) for name in ("learned", "true"))
    print(" H   learned dynamics   true dynamics   (L1 error: mean +- standard deviation over seeds)")
    for index, horizon in enumerate(HORIZONS):
        cells = (f"{values[:, index].mean():.4f} +- {values[:, index].std(ddof=1):.4f}" for values in (learned, true))
        print(f"{horizon:2d}   {'   '.join(cells)}")


if __name__ == "__main__":
    main()
