"""
Figures 2, 3 and 4 of MPDP's paper (Li et al., 2023) on Hopper-v4, shortened.

    python benchmarks/mpdp_figures.py --steps 15000 --seeds 0 1
    python benchmarks/mpdp_figures.py --plot

- *Figure 2*: the mean length of the plans during training, for several thresholds u_T.
- *Figure 3*: the one-step error of the model on the states that the policy visits, for several penalties beta: the mean L2
  norm over the 250 newest transitions, just before the model is fitted to them.
- *Figure 4*: the return against beta, that of Hopper-v4's entry, and that of plans of one step; the last two are runs of
  the learning benchmark (``Hopper-v4_mpdp_s*.csv`` and ``Hopper-v4_mpdp_h1_s*.csv``).

The paper trains for 100,000 steps with four seeds, 20 updates per step and plans of up to 25 steps. All else is Hopper-v4's
entry in ``hyperparams/mpdp.yml``, but for figure 2, whose plans need room to grow: up to 15 steps, and one update per step.
One run after the other, one thread; a run whose file is complete is skipped. Writes one CSV per run to ``benchmarks/results/``
and the plot to ``docs/images/``.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from records import EVAL_SEED, ROOT, cpu_model, git_commit, read_csv, versions, write_csv, zoo_settings
from stable_baselines3.common.callbacks import BaseCallback

from sb3_modelbased import MPDP

ENV = "Hopper-v4"
THRESHOLDS = (2.5, 3.0, 3.5)
BETAS = (0.2, 0.5, 0.7)
# The paper's values of beta, on the scale on which they weigh as much as Hopper's rewards: see docs/algos/mpdp.md
VARIANTS: dict[str, dict[str, Any]] = {
    **{
        f"threshold{threshold}": {"uncertainty_threshold": threshold, "horizon": 15, "gradient_steps": 1}
        for threshold in THRESHOLDS
    },
    **{f"beta{beta}": {"uncertainty_coef": beta, "uncertainty_penalty": "log"} for beta in BETAS},
}
# Curves of the learning benchmark that belong into figure 4
FROM_BENCHMARK = {"entry": "Hopper-v4_mpdp_s*.csv", "horizon1": "Hopper-v4_mpdp_h1_s*.csv"}
# Env steps between two rows, which is how often the model is fitted, and between two evaluations
INTERVAL = 250
STEPS = 15_000
EVAL_INTERVAL = 1000
COLUMNS = [
    "env_step", "return_mean", "visited_error", "horizon_mean", "horizon_max", "stopped_by_error", "stopped_by_terminal",
    "stopped_by_horizon", "uncertainty", "uncertainty_q10", "uncertainty_q50", "uncertainty_q90", "imagined_transitions",
    "actor_grad_norm", "cpu_s",
]  # fmt: skip


class Record(BaseCallback):
    """
    A row every ``INTERVAL`` env steps.

    :param episodes: deterministic evaluation episodes
    """

    model: MPDP

    def __init__(self, episodes: int) -> None:
        super().__init__()
        self.episodes = episodes
        self.rows: list[dict[str, Any]] = []
        self.eval_env = gym.make(ENV)
        self.evaluation_cpu_s = 0.0
        self.started = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % INTERVAL:
            return True
        row: dict[str, Any] = {"env_step": self.num_timesteps}
        if self.model.model_fit_at is not None:
            row["visited_error"] = self._visited_error()
        means = self.model.metrics.means()
        row |= {name: means[name] for name in COLUMNS if name in means}
        self.model.metrics.clear()
        row["cpu_s"] = time.process_time() - self.started - self.evaluation_cpu_s
        if self.num_timesteps % EVAL_INTERVAL == 0:
            start = time.process_time()
            row["return_mean"] = self._evaluate()
            self.evaluation_cpu_s += time.process_time() - start
        self.rows.append(row)
        return True

    @th.no_grad()
    def _visited_error(self) -> float:
        """
        :return: mean L2 norm of the elites' mean prediction's error on transitions that the model has not seen
        """
        buffer, model = self.model.replay_buffer, self.model.world_model
        assert buffer is not None
        rows = (buffer.pos - 1 - np.arange(INTERVAL)) % buffer.buffer_size
        arrays = (buffer.observations, buffer.actions, buffer.next_observations)
        observations, actions, next_observations = (th.as_tensor(x[rows, 0], dtype=th.float32) for x in arrays)
        predictions = model.predict_members(observations, actions)
        step = model.assemble(observations, actions, predictions.mean.mean(dim=0), predictions.logits.mean(dim=0))
        return (step.next_observations - next_observations).norm(dim=-1).mean().item()

    def _evaluate(self) -> float:
        """
        :return: mean return of deterministic episodes
        """
        returns = []
        for episode in range(self.episodes):
            observation, _ = self.eval_env.reset(seed=EVAL_SEED + episode)
            returns.append(0.0)
            done = False
            while not done:
                action, _ = self.model.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, _ = self.eval_env.step(action)
                returns[-1] += float(reward)
                done = terminated or truncated
        return float(np.mean(returns))


def path_of(variant: str, seed: int, folder: Path) -> Path:
    """
    :param variant: a key of ``VARIANTS``
    :param seed: training seed
    :param folder: of the results
    :return: the run's file
    """
    return folder / f"mpdp_figures_{variant}_s{seed}.csv"


def train(variant: str, seed: int, arguments: argparse.Namespace) -> None:
    """
    :param variant: a key of ``VARIANTS``
    :param seed: training seed
    :param arguments: of the command line
    """
    path = path_of(variant, seed, arguments.results)
    if path.exists() and int(read_csv(path)[0]["steps"]) >= arguments.steps:
        return
    overrides = {**arguments.override, **VARIANTS[variant]}
    settings = {**zoo_settings("mpdp", ENV), **overrides}
    model = MPDP("MlpPolicy", ENV, seed=seed, device="cpu", **settings)
    record = Record(arguments.episodes)
    model.learn(arguments.steps, callback=record, log_interval=None)  # type: ignore[arg-type]
    command = [
        "python",
        "benchmarks/mpdp_figures.py",
        "--steps",
        str(arguments.steps),
        "--seeds",
        str(seed),
        "--only",
        variant,
        "--episodes",
        str(arguments.episodes),
    ]
    for key, value in arguments.override.items():
        command += ["--override", f"{key}={value}"]
    header = {
        "command": shlex.join(command), "env": ENV, "variant": variant, "seed": seed, "steps": arguments.steps,
        "settings": settings, "episodes": arguments.episodes, "commit": git_commit(), "cpu": cpu_model(),
        "threads": 1, "versions": versions(),
    }  # fmt: skip
    write_csv(path, header, record.rows, COLUMNS)
    print(path.name, f"return {record.rows[-1].get('return_mean', float('nan')):.0f}", flush=True)


def curve(variant: str, column: str, folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """
    :param variant: a key of ``VARIANTS`` or ``FROM_BENCHMARK``
    :param column: of the files
    :param folder: of the results
    :return: env steps [N] and values by seed [S, N], or None without files; the values are NaN where a file is blank
    """
    files = sorted(folder.glob(FROM_BENCHMARK.get(variant, f"mpdp_figures_{variant}_s*.csv")))
    tables = [read_csv(file)[1] for file in files]
    if not tables:
        return None
    length = min(map(len, tables))
    steps = np.array([int(row["env_step"]) for row in tables[0][:length]])
    values = np.array([[float(row[column] or "nan") for row in table[:length]] for table in tables])
    return steps, values


def plot(folder: Path, images: Path) -> None:
    """
    :param folder: of the results
    :param images: folder of the plot
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    panels: list[tuple[Any, Sequence[str], str, str]] = [
        (axes[0], [f"threshold{t}" for t in THRESHOLDS], "horizon_mean", "Mean length of the plans (figure 2)"),
        (axes[1], [f"beta{b}" for b in BETAS], "visited_error", "Model error on visited states (figure 3)"),
        (axes[2], [*(f"beta{b}" for b in BETAS), *FROM_BENCHMARK], "return_mean", "Return (figure 4)"),
    ]
    for ax, variants, column, title in panels:
        for variant in variants:
            found = curve(variant, column, folder)
            if found is None:
                continue
            steps, values = found
            known = ~np.isnan(values).any(axis=0)
            steps, values = steps[known], values[:, known]
            if column != "return_mean" and len(steps) >= 4:  # mean of a thousand steps
                kernel = np.ones(4) / 4
                values = np.array([np.convolve(run, kernel, mode="valid") for run in values])
                steps = steps[3:]
            (line,) = ax.plot(steps, values.mean(axis=0), label=variant)
            ax.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color(), lw=0)
        ax.set(title=title, xlabel="env steps", xlim=(0, STEPS))
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    images.mkdir(parents=True, exist_ok=True)
    figure.savefig(images / "mpdp_figures.png", dpi=110, metadata={"Software": None})


def override(text: str) -> tuple[str, Any]:
    """
    :param text: ``key=value``
    :return: the key, and the value as YAML reads it
    """
    key, _, value = text.partition("=")
    return key, yaml.safe_load(value)


def main(argv: list[str] | None = None) -> None:
    """
    :param argv: command line, without the program's name
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="environment steps per run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=sorted(VARIANTS), default=list(VARIANTS), help="variants to run")
    parser.add_argument("--episodes", type=int, default=5, help="deterministic episodes per evaluation")
    parser.add_argument("--override", type=override, action="append", default=[], help="key=value on top of the YAML entry")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the plot")
    parser.add_argument("--plot", action="store_true", help="only draw what there is")
    arguments = parser.parse_args(argv)
    arguments.override = dict(arguments.override)
    th.set_num_threads(1)
    if not arguments.plot:
        for seed in arguments.seeds:
            for variant in arguments.only:
                train(variant, seed, arguments)
    plot(arguments.results, arguments.images)


if __name__ == "__main__":
    sys.exit(main())
