"""
Figures 2, 3 and 4 of MEMB's paper (Tan et al., 2020, appendix B), shortened.

    python benchmarks/memb_figures.py --figures 2b 4 --seeds 0 1 2
    python benchmarks/memb_figures.py --plot

- *Figure 2a*: SVG(1) against MEMB on HalfCheetah-v4, and both without the entropy bonus but with noise on the actions. MEMB's
  curve is that of the learning benchmark's variant "k1" (``benchmarks/learning.py``), which has the same settings.
- *Figure 2b*: value expansion with H = 1, 2 and 5 on Pendulum-v1.
- *Figure 3*: the error of the model over MEMB's training on HalfCheetah-v4, per dimension.
- *Figure 4*: the true model against the learned one on Pendulum-v1.

All else is the task's entry in ``hyperparams/memb.yml``, but on HalfCheetah-v4 one model step in the actor's objective. One
run after the other, one thread; a run whose file is complete is skipped. Writes one CSV per run to ``benchmarks/results/`` and
the plot to ``docs/images/``.
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch as th
import yaml
from records import EVAL_SEED, ROOT, cpu_model, git_commit, read_csv, versions, write_csv, zoo_settings
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise

from sb3_modelbased import MEMB, SVG1
from sb3_modelbased.common.type_aliases import Transitions
from sb3_modelbased.common.world_model import WorldModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Standard deviation of the noise that explores where there is no entropy bonus
NOISE = 0.3
COLUMNS = ["env_step", "return_mean", "w1_state", "w1_reward", "cpu_s"]


@dataclass(frozen=True)
class Variant:
    """
    :param env: Gymnasium id of the task
    :param algorithm: what is trained
    :param overrides: arguments on top of the task's entry
    :param steps: environment steps
    """

    env: str
    algorithm: type[MEMB] = MEMB
    overrides: dict[str, Any] = field(default_factory=dict)
    steps: int = 20_000


CHEETAH, PENDULUM = "HalfCheetah-v4", "Pendulum-v1"
# The task's entry looks further ahead, the paper and SVG(1) do not
ONE_STEP = {"imagination_horizon": 1}
VARIANTS = {
    "svg1": Variant(CHEETAH, SVG1, ONE_STEP),
    "memb_alpha0": Variant(CHEETAH, MEMB, ONE_STEP | {"ent_coef": 0.0}),
    "svg1_alpha0": Variant(CHEETAH, SVG1, ONE_STEP | {"ent_coef": 0.0}),
    "model_error": Variant(CHEETAH, MEMB, ONE_STEP, steps=5000),
    "expansion1": Variant(PENDULUM, steps=5000),
    "expansion2": Variant(PENDULUM, MEMB, {"value_expansion_horizon": 2}, steps=5000),
    "expansion5": Variant(PENDULUM, MEMB, {"value_expansion_horizon": 5}, steps=5000),
    "true_model": Variant(PENDULUM, MEMB, {"true_model": "gymnasium"}, steps=5000),
}
# Figure -> variants in it, column, title
FIGURES = {
    "2a": (("memb", "svg1", "memb_alpha0", "svg1_alpha0"), "return_mean", "HalfCheetah-v4: return (figure 2a)"),
    "2b": (("expansion1", "expansion2", "expansion5"), "return_mean", "Pendulum-v1: value expansion (figure 2b)"),
    "3": (("model_error",), "w1_state", "HalfCheetah-v4: model error (figure 3)"),
    "4": (("expansion1", "true_model"), "return_mean", "Pendulum-v1: true model (figure 4)"),
}
# Curve of a figure -> files of the learning benchmark that it comes from
FROM_BENCHMARK = {"memb": f"{CHEETAH}_memb_k1_s*.csv"}


def wasserstein_errors(model: WorldModel, transitions: Transitions) -> th.Tensor:
    r"""
    The Wasserstein-1 distance, per dimension, between the model's prediction and what happened, averaged over transitions.

    The tasks are deterministic: the true distribution is a point, and its distance to any other is the mean distance to the
    point, :math:`W_1(\hat p, \delta_{s'}) = E_{\hat s' \sim \hat p} |\hat s' - s'|`.

    :param model: a fitted model that learns its reward
    :param transitions: that it was not fitted to, [B, ...]
    :return: of the next observation and the reward, in standard deviations of the change and the reward, [O + 1]
    """
    with th.no_grad():
        step = model.step(transitions.observations, transitions.actions)
    predicted = model.targets(transitions._replace(next_observations=step.next_observations, rewards=step.rewards))
    return ((predicted - model.targets(transitions)).abs() / model.target_normalizer.std).mean(dim=0)


class Record(BaseCallback):
    """
    A row per evaluation.

    :param env: Gymnasium id of the task
    :param interval: env steps between two evaluations
    :param episodes: deterministic evaluation episodes
    """

    model: MEMB

    def __init__(self, env: str, interval: int, episodes: int) -> None:
        super().__init__()
        self.eval_env = gym.make(env)
        self.interval, self.episodes = interval, episodes
        self.rows: list[dict[str, Any]] = []
        self.measuring_cpu_s = 0.0
        self.started = time.process_time()

    def _on_step(self) -> bool:
        if self.num_timesteps % self.interval:
            return True
        start = time.process_time()
        row: dict[str, Any] = {"env_step": self.num_timesteps, "return_mean": self._evaluate()}
        row |= self._model_errors()
        self.measuring_cpu_s += time.process_time() - start
        row["cpu_s"] = time.process_time() - self.started - self.measuring_cpu_s
        self.rows.append(row)
        return True

    def _model_errors(self) -> dict[str, float]:
        """
        :return: Wasserstein distances on rows that were held out of every fit, in normalised units
        """
        if self.model.model_fit_at is None:
            return {}
        trainer, data = self.model.model_trainer, self.model.real_data
        # Errors must not take random numbers from the training
        with th.random.fork_rng(devices=[]):
            _, held_out = data.holdout_split(trainer.holdout_ratio, trainer.max_holdout_rows)
            errors = wasserstein_errors(self.model.world_model, data[held_out]).tolist()
        named = {f"w1_{dimension}": error for dimension, error in enumerate(errors[:-1])}
        return {"w1_state": float(np.mean(errors[:-1])), "w1_reward": errors[-1], **named}

    def _evaluate(self) -> float:
        """
        :return: mean return of deterministic episodes
        """
        returns = []
        for episode in range(self.episodes):
            observation, _ = self.eval_env.reset(seed=EVAL_SEED + episode)
            total, done = 0.0, False
            while not done:
                action, _ = self.model.predict(observation, deterministic=True)
                observation, reward, terminated, truncated, _ = self.eval_env.step(action)
                total += float(reward)
                done = terminated or truncated
            returns.append(total)
        return float(np.mean(returns))


def make_agent(variant: Variant, seed: int, overrides: dict[str, Any]) -> tuple[MEMB, dict[str, Any]]:
    """
    :param variant: what to train
    :param seed: training seed
    :param overrides: of the command line
    :return: the agent, and its arguments apart from policy and seed
    """
    settings = zoo_settings("memb", variant.env) | variant.overrides | overrides
    n_actions = gym.make(variant.env).action_space.shape[0]  # type: ignore[index]
    noise = NormalActionNoise(np.zeros(n_actions), np.full(n_actions, NOISE)) if settings.get("ent_coef") == 0 else None
    return variant.algorithm("MlpPolicy", variant.env, seed=seed, device="cpu", action_noise=noise, **settings), settings


def train(name: str, seed: int, arguments: argparse.Namespace) -> None:
    """
    :param name: a key of ``VARIANTS``
    :param seed: training seed
    :param arguments: of the command line
    """
    variant = VARIANTS[name]
    steps = arguments.steps or variant.steps
    path = arguments.results / f"memb_figures_{name}_s{seed}.csv"
    if path.exists() and int(read_csv(path)[0]["steps"]) >= steps:
        return
    model, settings = make_agent(variant, seed, arguments.override)
    record = Record(variant.env, arguments.interval, arguments.episodes)
    model.learn(steps, callback=record, log_interval=None)  # type: ignore[arg-type]
    command = ["python", "benchmarks/memb_figures.py", "--only", name, "--seeds", str(seed), "--steps", str(steps)]
    command += ["--interval", str(arguments.interval), "--episodes", str(arguments.episodes)]
    command += [word for key, value in arguments.override.items() for word in ("--override", f"{key}={value}")]
    header = {
        "command": shlex.join(command), "env": variant.env, "algorithm": variant.algorithm.__name__, "seed": seed,
        "steps": steps, "settings": settings, "interval": arguments.interval, "episodes": arguments.episodes,
        "commit": git_commit(), "cpu": cpu_model(), "threads": 1, "versions": versions(),
    }  # fmt: skip
    dimensions = sorted({column for row in record.rows for column in row} - set(COLUMNS), key=lambda column: int(column[3:]))
    write_csv(path, header, record.rows, [*COLUMNS, *dimensions])
    print(path.name, f"return {record.rows[-1]['return_mean']:.0f}", flush=True)


def curves(name: str, column: str, folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """
    :param name: a key of ``VARIANTS`` or ``FROM_BENCHMARK``
    :param column: of the files
    :param folder: of the results
    :return: env steps [N] and values by seed [S, N] where every seed has one; None where there are none
    """
    pattern = FROM_BENCHMARK.get(name, f"memb_figures_{name}_s*.csv")
    tables = [read_csv(file)[1] for file in sorted(folder.glob(pattern))]
    if not tables:
        return None
    by_step = [{int(row["env_step"]): row for row in table} for table in tables]
    common = sorted(set.intersection(*map(set, by_step)))
    rows = [[table[step] for table in by_step] for step in common]
    rows = [row for row in rows if all(entry.get(column) for entry in row)]
    if not rows:
        return None
    steps = np.array([int(row[0]["env_step"]) for row in rows])
    return steps, np.array([[float(entry[column]) for entry in row] for row in rows]).T


def draw(ax: Axes, curve: tuple[np.ndarray, np.ndarray] | None, label: str) -> None:
    """
    :param ax: where to draw the mean over seeds and the range from the lowest to the highest
    :param curve: what :func:`curves` returned
    :param label: for the legend
    """
    if curve is None:
        return
    steps, values = curve
    (line,) = ax.plot(steps, values.mean(axis=0), label=label)
    ax.fill_between(steps, values.min(axis=0), values.max(axis=0), alpha=0.2, color=line.get_color(), lw=0)


def draw_model_errors(ax: Axes, name: str, folder: Path) -> None:
    """
    :param ax: where to draw each dimension of the state, their mean, and the reward
    :param name: a key of ``VARIANTS``
    :param folder: of the results
    """
    for dimension in itertools.count():
        found = curves(name, f"w1_{dimension}", folder)
        if found is None:
            break
        ax.plot(
            found[0], found[1].mean(axis=0), color="lightgray", lw=0.8, label=None if dimension else "each state dimension"
        )
    draw(ax, curves(name, "w1_state", folder), "their mean")
    draw(ax, curves(name, "w1_reward", folder), "reward")
    ax.set(ylabel="W1, in standard deviations of the target", yscale="log")


def plot(folder: Path, images: Path) -> None:
    """
    :param folder: of the results
    :param images: folder of the plot
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    figure, axes = plt.subplots(1, len(FIGURES), figsize=(17, 3.8), layout="constrained")
    for ax, (names, column, title) in zip(axes, FIGURES.values(), strict=True):
        for name in names:
            if column == "w1_state":
                draw_model_errors(ax, name, folder)
            else:
                draw(ax, curves(name, column, folder), name)
        ax.set(title=title, xlabel="env steps", xlim=(0, VARIANTS[names[-1]].steps))
        ax.xaxis.set_major_locator(MaxNLocator(5))
        if ax.get_legend_handles_labels()[1]:
            ax.legend(frameon=False)
        ax.spines[["top", "right"]].set_visible(False)
    images.mkdir(parents=True, exist_ok=True)
    figure.savefig(images / "memb_figures.png", dpi=110, metadata={"Software": None})


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
    parser.add_argument("--figures", nargs="+", choices=list(FIGURES), default=list(FIGURES))
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), help="variants to run, instead of whole figures")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="environment steps; by default the variant's own")
    parser.add_argument("--interval", type=int, default=500, help="environment steps between evaluations")
    parser.add_argument("--episodes", type=int, default=10, help="deterministic episodes per evaluation")
    parser.add_argument("--override", type=override, action="append", default=[], help="key=value on top of the YAML entry")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--images", type=Path, default=ROOT / "docs" / "images", help="folder of the plot")
    parser.add_argument("--plot", action="store_true", help="only draw what there is")
    arguments = parser.parse_args(argv)
    arguments.override = dict(arguments.override)
    th.set_num_threads(1)
    in_figures = dict.fromkeys(name for figure in arguments.figures for name in FIGURES[figure][0])
    names = arguments.only or [name for name in in_figures if name in VARIANTS]
    if not arguments.plot:
        for seed in arguments.seeds:
            for name in names:
                train(name, seed, arguments)
    plot(arguments.results, arguments.images)


if __name__ == "__main__":
    sys.exit(main())
