"""
The benchmark's page: from the result files to tables and figures, with one command.

    python benchmarks/report.py

Every number comes from the CSV files in ``benchmarks/results``. In ``docs/benchmark.md`` only what stands between the marks
``<!-- generated: NAME -->`` and ``<!-- end -->`` is rewritten; the words around them are kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from records import EVAL_SEED, ROOT, read_csv

mpl.use("Agg")
import matplotlib.pyplot as plt

BASELINES = ("sac", "tqc", "crossq")
NAMES = {"maac": "MAAC", "memb": "MEMB", "mpdp": "MPDP", "svg1": "SVG(1)", "sac": "SAC", "tqc": "TQC", "crossq": "CrossQ"}
# Okabe and Ito's colours, told apart by the colour-blind too; ours are solid, the model-free algorithms dashed
COLORS = {
    "maac": "#D55E00", "memb": "#009E73", "mpdp": "#0072B2", "svg1": "#CC79A7", "sac": "#000000", "tqc": "#E69F00",
    "crossq": "#56B4E9",
}  # fmt: skip
BOOTSTRAP_REPETITIONS = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Task:
    """
    What the benchmark asks of a task.

    :param steps: environment steps
    :param milestones: steps at which the tables look
    :param goal: return to reach
    :param goal_text: the goal in words
    :param goal_step: step at which the goal counts
    :param every_seed: whether each seed has to reach it, not only the interquartile mean
    :param above_baselines_from: step from which the best of ours has to be above SAC and CrossQ
    """

    steps: int
    milestones: tuple[int, ...]
    goal: float
    goal_text: str
    goal_step: int
    every_seed: bool = False
    above_baselines_from: int | None = None


TASKS = {
    "Pendulum-v1": Task(5_000, (1_000, 2_000, 3_000, 5_000), -155, "−155 at 5k", 5_000),
    "InvertedPendulum-v4": Task(10_000, (2_000, 5_000, 10_000), 1_000, "1000 on every seed by 5k", 5_000, every_seed=True),
    "Hopper-v4": Task(30_000, (10_000, 20_000, 30_000), 3_000, "3000 at 30k", 30_000, above_baselines_from=10_000),
    "HalfCheetah-v4": Task(30_000, (10_000, 20_000, 30_000), 6_000, "6000 at 30k", 30_000, above_baselines_from=10_000),
}


# --------------------------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Result:
    """
    One finished run.

    :param file: name of its file
    :param header: what the file says about itself
    :param columns: numbers by column, one per evaluation; NaN where the file has a blank
    """

    file: str
    header: dict[str, str]
    columns: dict[str, np.ndarray]

    @property
    def env(self) -> str:
        """Gymnasium id of the task."""
        return self.header["env"]

    @property
    def algo(self) -> str:
        """RL Zoo name of the algorithm."""
        return self.header["algo"]

    @property
    def label(self) -> str:
        """Name of the variant; empty for the settings that are published as the default."""
        return self.header["label"]

    @property
    def seed(self) -> int:
        """Training seed."""
        return int(self.header["seed"])

    @property
    def steps(self) -> np.ndarray:
        """Environment steps of the evaluations."""
        return self.columns["env_step"].astype(int)

    def at(self, step: int, column: str = "return_mean") -> float:
        """
        :param step: environment step
        :param column: name of a column
        :return: its value at the evaluation at this step; NaN where the run has none
        """
        found = np.flatnonzero(self.steps == step)
        return float(self.columns[column][found[0]]) if len(found) and column in self.columns else float("nan")


def number(text: str) -> float:
    """
    :param text: a cell
    :return: its number; NaN for a blank or a text
    """
    try:
        return float(text)
    except ValueError:
        return float("nan")


def load(folder: Path) -> tuple[list[Result], list[str]]:
    """
    Read all results that may be published: finished, and measured on the benchmark's own evaluation seeds.

    :param folder: with the CSV files
    :return: the results, and a remark on each file that was left out
    """
    results, left_out = [], []
    for path in sorted(folder.glob("*.csv")):
        header, rows = read_csv(path)
        if "status" not in header:
            continue  # a table of another script
        if header["status"] != "finished":
            left_out.append(f"{path.name}: {header['status']}")
        elif json.loads(header["evaluation"])["seeds_from"] != EVAL_SEED:
            left_out.append(f"{path.name}: measured on other evaluation seeds, for tuning")
        else:
            columns = {name: np.array([number(row[name]) for row in rows]) for name in rows[0]}
            results.append(Result(path.name, header, columns))
    return results, left_out


Groups = dict[tuple[str, str], list[Result]]


def grouped(results: Sequence[Result], env: str) -> Groups:
    """
    :param results: of all tasks
    :param env: a task
    :return: its results by algorithm and label, ours first
    """
    groups: Groups = {}
    known = list(NAMES)
    order = sorted(results, key=lambda run: (known.index(run.algo) if run.algo in known else 99, run.label, run.seed))
    for result in order:
        if result.env == env:
            groups.setdefault((result.algo, result.label), []).append(result)
    return groups


def display_name(algo: str, label: str = "") -> str:
    """
    :param algo: RL Zoo name
    :param label: name of a variant
    :return: the name as it is printed
    """
    return NAMES.get(algo, algo.upper()) + (f" ({label})" if label else "")


# --------------------------------------------------------------------------------------------------------------------
# Statistics
# --------------------------------------------------------------------------------------------------------------------
def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """
    Mean of the middle half of the scores of all runs on all tasks. Of three runs of one task that is their mean, because a
    quarter of three is less than one run.

    :param scores: [runs, tasks, points]
    :return: [points]
    """
    flat = np.sort(scores.reshape(-1, scores.shape[-1]), axis=0)
    cut = int(0.25 * len(flat))
    return flat[cut : len(flat) - cut].mean(axis=0)


def _bootstrap(scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """What rliable computes, with the same draws (see :func:`interval`)."""
    draws = np.random.RandomState(0)  # the generator that rliable draws from
    others = np.ogrid[tuple(slice(size) for size in (0, *scores.shape[1:]))][1:]
    samples = [
        statistic(scores[(draws.choice(len(scores), scores.shape, replace=True), *others)])
        for _ in range(BOOTSTRAP_REPETITIONS)
    ]
    tail = 100 * (1 - CONFIDENCE) / 2
    return np.percentile(samples, [tail, 100 - tail], axis=0)


def _bootstrap_rliable(scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The same through rliable."""
    from rliable.library import get_interval_estimates

    np.random.seed(0)  # noqa: NPY002 (rliable 1.2 draws from the global generator, whatever random_state it is given)
    _, intervals = get_interval_estimates(
        {"": scores}, statistic, reps=BOOTSTRAP_REPETITIONS, confidence_interval_size=CONFIDENCE
    )
    return intervals[""]


@functools.cache
def choose_bootstrap() -> Callable[[np.ndarray, Callable[[np.ndarray], np.ndarray]], np.ndarray]:
    """
    :return: rliable's bootstrap where rliable can be imported, else the same computed here
    """
    try:
        import rliable.library  # noqa: F401
    except Exception as error:  # with pandas 3 its dependency arch 7 raises a TypeError
        warnings.warn(
            f"rliable cannot be imported ({type(error).__name__}: {error}); computing its bootstrap here.", stacklevel=2
        )
        return _bootstrap
    return _bootstrap_rliable


def interval(scores: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean) -> np.ndarray:
    """
    Percentile bootstrap over runs, stratified by task.

    :param scores: [runs, tasks, points]
    :param statistic: from scores to [points]
    :return: lower and upper end, [2, points]
    """
    return choose_bootstrap()(scores, statistic)


def profile(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    Performance profile: the share of runs, over all tasks, with a score above each threshold.

    :param scores: [runs, tasks]
    :param thresholds: [points]
    :return: [points]
    """
    return (scores[..., None] > thresholds).mean(axis=(0, 1))


def curve(runs: Sequence[Result], column: str = "return_mean") -> tuple[np.ndarray, np.ndarray]:
    """
    Line runs up at the evaluations that all of them have.

    :param runs: of one algorithm on one task
    :param column: what to read
    :return: environment steps [points] and values [runs, points]
    """
    common = sorted(set.intersection(*(set(run.steps.tolist()) for run in runs)))
    return np.array(common), np.array([[run.at(step, column) for step in common] for run in runs])


def at_milestone(runs: Sequence[Result], step: int, column: str = "return_mean") -> np.ndarray:
    """
    :param runs: of one algorithm on one task
    :param step: environment step
    :param column: what to read
    :return: values of the runs that got there
    """
    values = np.array([run.at(step, column) for run in runs])
    return values[np.isfinite(values)]


# --------------------------------------------------------------------------------------------------------------------
# Tables
# --------------------------------------------------------------------------------------------------------------------
def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """
    :param head: column titles
    :param rows: cells
    :return: a Markdown table
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plain(value: float) -> str:
    """
    :param value: a return or an error
    :return: it with three or four digits and a real minus sign
    """
    if not np.isfinite(value):
        return "–"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3
    return f"{value:.{digits}f}".replace("-", "−")


def step_name(step: int) -> str:
    """
    :param step: environment steps
    :return: for example ``10k``
    """
    return f"{step / 1000:g}k" if step >= 1000 else str(step)


def milestones(env: str, results: Sequence[Result]) -> tuple[int, ...]:
    """
    :param env: a task
    :param results: of this task
    :return: the steps at which its table looks
    """
    if env in TASKS:
        return TASKS[env].milestones
    steps = sorted(set.union(*(set(run.steps.tolist()) for run in results)) - {0})
    return tuple(dict.fromkeys(steps[max(0, round(len(steps) * share) - 1)] for share in (1 / 3, 2 / 3, 1)))


def returns_table(groups: Groups, steps: Sequence[int]) -> str:
    """
    :param groups: runs of one task by algorithm and label
    :param steps: milestones
    :return: interquartile means with intervals, the last return of every seed, and the cost
    """
    rows = []
    for (algo, label), runs in groups.items():
        cells = [display_name(algo, label), str(len(runs))]
        for step in steps:
            values = at_milestone(runs, step)
            if not len(values):
                cells.append("–")
                continue
            short = f" ({len(values)} seeds)" if len(values) < len(runs) else ""
            cell = plain(interquartile_mean(values[:, None, None])[0])
            if len(values) > 1:  # one seed has no interval
                low, high = interval(values[:, None, None])[:, 0]
                cell += f" [{plain(low)}, {plain(high)}]"
            cells.append(cell + short)
        cells.append(", ".join(plain(run.at(steps[-1])) for run in runs))
        minutes = at_milestone(runs, steps[-1], "cpu_s") / 60
        updates = at_milestone(runs, steps[-1], "updates") / steps[-1]
        cells.append(f"{minutes.mean():.1f}" if len(minutes) else "–")
        cells.append(f"{updates.mean():.2g}" if len(updates) else "–")
        rows.append(cells)
    last = step_name(steps[-1])
    head = ["", "seeds", *map(step_name, steps), f"each seed at {last}", f"CPU minutes to {last}", "updates per step"]
    return table(head, rows)


def goal_row(env: str, task: Task, groups: Groups) -> list[str] | None:
    """
    Compare the best of ours with the goal of a task.

    :param env: the task
    :param task: its goal
    :param groups: its runs, without variants
    :return: cells: task, goal, best of ours, its return, and what was reached; None without runs of ours
    """
    final = {algo: at_milestone(runs, task.goal_step) for (algo, _), runs in groups.items()}
    ours = {algo: values for algo, values in final.items() if algo not in BASELINES and len(values)}
    if not ours:
        return None

    def score(algo: str) -> float:
        return float(ours[algo].min() if task.every_seed else interquartile_mean(ours[algo][:, None, None])[0])

    # One lucky seed is not better than the mean of several
    most = max(map(len, ours.values()))
    best = max((algo for algo in ours if len(ours[algo]) == most), key=score)
    verdicts = [("return: " + ("reached" if score(best) >= task.goal else "**not reached**"))]
    goal = task.goal_text
    if task.above_baselines_from is not None:
        goal += f", above SAC and CrossQ from {step_name(task.above_baselines_from)} on"
        verdicts += [above(groups, best, baseline, task.above_baselines_from) for baseline in ("sac", "crossq")]
    what = "worst seed " if task.every_seed else ""
    return [env, goal, display_name(best), f"{what}{plain(score(best))} ({most} seed{'s' * (most > 1)})", "; ".join(verdicts)]


def above(groups: Groups, algo: str, baseline: str, since: int) -> str:
    """
    :param groups: runs of one task
    :param algo: one of ours
    :param baseline: a model-free algorithm
    :param since: environment step
    :return: at how many of the evaluations from then on the interquartile mean of ours is above the other
    """
    if (baseline, "") not in groups:
        return f"{display_name(baseline)}: not run"
    means = []
    for name in (algo, baseline):
        steps, returns = curve(groups[name, ""])
        means.append(dict(zip(steps.tolist(), interquartile_mean(returns[:, None, :]), strict=True)))
    common = [step for step in means[0] if step in means[1] and step >= since]
    wins = sum(means[0][step] > means[1][step] for step in common)
    text = f"above {display_name(baseline)} at {wins} of {len(common)} evaluations"
    return text if wins == len(common) else f"**{text}**"


def provenance_table(results: Sequence[Result]) -> str:
    """
    :param results: all of them
    :return: what was run, with which code, on what and for how long
    """
    rows = []
    for env in dict.fromkeys(run.env for run in results):
        for (algo, label), runs in grouped(results, env).items():
            commits = sorted({part.split(" from step ")[0] for run in runs for part in run.header["git_commit"].split("; ")})
            machines = sorted({part.split(" from step ")[0] for run in runs for part in run.header["machine"].split("; ")})
            wall = sum(float(run.columns["wall_s"][-1] + run.columns["eval_wall_s"][-1]) for run in runs) / 3600
            cpu = sum(float(run.columns["cpu_s"][-1] + run.columns["eval_cpu_s"][-1]) for run in runs) / 3600
            command = re.sub(r"--seeds \d+", "--seeds " + " ".join(str(run.seed) for run in runs), runs[0].header["command"])
            resumed = sum(run.header["resumed_at"] != "[]" for run in runs)
            rows.append(
                [
                    env, display_name(algo, label), f"`{command}`", f"{wall:.2f} / {cpu:.2f}", ", ".join(commits),
                    "; ".join(machines), str(resumed),
                ]
            )  # fmt: skip
    head = (
        "A command makes these runs at their commit. Where a task's entry has changed since, its old runs were renamed to "
        "variants: their command has no label."
    )
    columns = ["task", "algorithm", "command", "hours: wall / CPU", "commit", "machine", "resumed runs"]
    return f"{head}\n\n{table(columns, rows)}"


def diagnostics_table(results: Sequence[Result]) -> str:
    """
    :param results: all of them
    :return: what our algorithms logged at their last evaluation, mean over seeds
    """
    shown = {
        "model_error": "model error",
        "imagined_transitions": "imagined transitions",
        "train/actor_grad_norm": "actor gradient norm",
        "train/horizon_mean": "mean horizon",
        "train/ent_coef": "entropy coefficient",
        "train/q_value": "Q",
    }
    rows = []
    for env in dict.fromkeys(run.env for run in results):
        for (algo, label), runs in grouped(results, env).items():
            if algo in BASELINES:
                continue
            values = [np.array([run.columns[name][-1] for run in runs if name in run.columns]) for name in shown]
            means = [float(known[np.isfinite(known)].mean()) if np.isfinite(known).any() else float("nan") for known in values]
            cells = [f"{mean:.3g}".replace("-", "−") if np.isfinite(mean) else "–" for mean in means]
            rows.append([env, display_name(algo, label), step_name(int(runs[0].steps[-1])), *cells])
    return table(["task", "algorithm", "at step", *shown.values()], rows) if rows else "No runs of ours yet."


@dataclass(frozen=True)
class Evidence:
    """
    What ``evidence.py`` found out about one run.

    :param header: what the file says about itself
    :param values: by quantity and k; k is 0 where it has no meaning
    """

    header: dict[str, str]
    values: dict[tuple[str, int], float]


def load_evidence(folder: Path) -> dict[tuple[str, str, str], list[Evidence]]:
    """
    :param folder: with the CSV files of ``evidence.py``
    :return: by task, algorithm and label
    """
    groups: dict[tuple[str, str, str], list[Evidence]] = {}
    for path in sorted(folder.glob("*.csv")):
        header, rows = read_csv(path)
        values = {(row["quantity"], int(row["k"] or 0)): number(row["value"]) for row in rows}
        groups.setdefault((header["env"], header["algo"], header["label"]), []).append(Evidence(header, values))
    return groups


def evidence_mean(group: Sequence[Evidence], quantity: str, k: int = 0) -> float:
    """
    :param group: runs of one algorithm on one task
    :param quantity: name of a quantity
    :param k: model steps ahead
    :return: mean over the runs that have it; NaN if none has
    """
    values = [evidence.values[quantity, k] for evidence in group if (quantity, k) in evidence.values]
    return float(np.mean(values)) if values else float("nan")


def evidence_table(groups: dict[tuple[str, str, str], list[Evidence]]) -> str:
    """
    :param groups: by task, algorithm and label
    :return: value bias, model error and the distance of imagined from real states
    """
    rows = []
    for (env, algo, label), group in groups.items():
        cells = [env, display_name(algo, label), f"{len(group)}", step_name(int(group[0].header["env_step"]))]
        cells += [plain(evidence_mean(group, name)) for name in ("value", "return", "value_bias_share")]
        for quantity, beside in (("model_error", "model_error_no_change"), ("state_distance", "state_distance_real_halves")):
            for k in (1, 5, 20):
                value, reference = evidence_mean(group, quantity, k), evidence_mean(group, beside, k)
                cells.append(f"{plain(value)} ({plain(reference)})" if np.isfinite(value) else "–")
        rows.append(cells)
    head = ["task", "algorithm", "runs", "at step", "critics", "Monte Carlo", "bias / return"]
    head += [f"error, k = {k}" for k in (1, 5, 20)] + [f"distance, k = {k}" for k in (1, 5, 20)]
    return table(head, rows)


EVIDENCE_TEXT = """Computed by `benchmarks/evidence.py` from the last checkpoint of each run, on real episodes of the
stochastic policy; means over runs. *critics* and *Monte Carlo*: soft discounted value as the critics see it and as it came.
*error*: the model follows real actions for k steps, in standard deviations of the visited states (in brackets: assuming that
nothing changes). *distance*: Wasserstein-1 between imagined and real states k steps on, in the same unit (in brackets, for
scale: between two halves of the real states)."""


# --------------------------------------------------------------------------------------------------------------------
# Figures
# --------------------------------------------------------------------------------------------------------------------
def plot_task(env: str, groups: Groups, path: Path) -> None:
    """
    Return against environment steps and against CPU time.

    :param env: the task
    :param groups: its runs
    :param path: where to save the figure
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    palette = mpl.colormaps["tab10"]
    for index, ((algo, label), runs) in enumerate(groups.items()):
        color = palette(index % 10) if label else COLORS.get(algo, palette(index % 10))
        style = "--" if algo in BASELINES else "-"
        steps, returns = curve(runs)
        _, seconds = curve(runs, "cpu_s")
        mean = interquartile_mean(returns[:, None, :])
        low, high = interval(returns[:, None, :])
        text = f"{display_name(algo, label)} ({len(runs)} seeds)"
        for axis, x, xs in ((axes[0], steps, [steps] * len(runs)), (axes[1], seconds.mean(axis=0) / 60, seconds / 60)):
            axis.plot(x, mean, style, color=color, linewidth=2, label=text)
            axis.fill_between(x, low, high, color=color, alpha=0.12, linewidth=0)
            for run_x, values in zip(xs, returns, strict=True):
                axis.plot(run_x, values, style, color=color, linewidth=0.7, alpha=0.55)
    if env in TASKS:
        for axis in axes:
            axis.axhline(TASKS[env].goal, color="grey", linewidth=1, linestyle=":")
        axes[0].annotate("goal", (0, TASKS[env].goal), color="grey", fontsize=8, va="bottom")
    axes[0].set(xlabel="environment steps", ylabel="return, mean of 10 deterministic episodes", title=env)
    axes[1].set(xlabel="CPU minutes of training, one thread")
    axes[1].legend(fontsize=8, frameon=False)
    save(figure, path)


def normalized_scores(results: Sequence[Result]) -> dict[str, np.ndarray]:
    """
    Scores over the tasks of the benchmark: 0 is the mean return of all untrained agents of the task, 1 its goal.

    :param results: without variants
    :return: [runs, tasks] by algorithm, for the algorithms that have runs on every task there are runs for
    """
    groups = {env: grouped(results, env) for env in TASKS}
    groups = {env: by_algo for env, by_algo in groups.items() if by_algo}
    scores = {}
    for algo in dict.fromkeys(algo for by_algo in groups.values() for algo, _ in by_algo):
        columns = []
        for env, by_algo in groups.items():
            values = at_milestone(by_algo.get((algo, ""), []), TASKS[env].steps)
            untrained = np.mean([run.columns["return_mean"][0] for runs in by_algo.values() for run in runs])
            columns.append((values - untrained) / (TASKS[env].goal - untrained))
        seeds = min(map(len, columns))
        if seeds:
            scores[algo] = np.stack([column[:seeds] for column in columns], axis=1)
    return scores


def plot_profiles(scores: dict[str, np.ndarray], path: Path) -> None:
    """
    Share of runs above each normalised score.

    :param scores: [runs, tasks] by algorithm
    :param path: where to save the figure
    """
    figure, axis = plt.subplots(figsize=(5.5, 4), layout="constrained")
    highest = max(float(values.max()) for values in scores.values())
    thresholds = np.linspace(0, max(1.05, 1.02 * highest), 150)
    for algo, values in scores.items():
        style, color = "--" if algo in BASELINES else "-", COLORS.get(algo)
        low, high = interval(values[..., None], lambda sample: profile(sample[..., 0], thresholds))
        axis.plot(thresholds, profile(values, thresholds), style, color=color, label=display_name(algo))
        axis.fill_between(thresholds, low, high, color=color, alpha=0.12, linewidth=0)
    axis.axvline(1, color="grey", linewidth=1, linestyle=":")
    axis.set(xlabel="normalised return τ (0 untrained, 1 the goal)", ylabel="share of runs above τ", ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, frameon=False)
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """
    :param figure: a figure
    :param path: where to; without the software's version in it, so that the same data give the same file
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


# --------------------------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------------------------
SKELETON = """# Learning benchmark

<!-- generated: summary -->
<!-- end -->

## Goals

<!-- generated: goals -->
<!-- end -->

## Results

<!-- generated: results -->
<!-- end -->

## Over all tasks

<!-- generated: profiles -->
<!-- end -->

## Variants

<!-- generated: variants -->
<!-- end -->

## What explains the curves

Logged by our algorithms, at the last evaluation, mean over seeds:

<!-- generated: diagnostics -->
<!-- end -->

<!-- generated: evidence -->
<!-- end -->

## What was run

<!-- generated: provenance -->
<!-- end -->
"""


def sections(
    results: list[Result], left_out: list[str], evidence: dict[tuple[str, str, str], list[Evidence]], images: Path
) -> dict[str, str]:
    """
    Draw the figures and write the text of every generated part.

    :param results: all of them
    :param left_out: remarks on files that were not used
    :param evidence: by task, algorithm and label
    :param images: folder of the figures
    :return: Markdown by name of the part
    """
    main = [run for run in results if not run.label]
    envs = [
        env for env in (*TASKS, *sorted({run.env for run in results} - set(TASKS))) if any(run.env == env for run in results)
    ]
    goals, parts, variants = [], [], []
    for env in envs:
        steps = milestones(env, [run for run in results if run.env == env])
        groups = grouped(main, env)
        if groups:
            figure = images / f"benchmark_{env}.png"
            plot_task(env, groups, figure)
            parts.append(f"### {env}\n\n{returns_table(groups, steps)}\n\n![{env}](images/{figure.name})")
        row = goal_row(env, TASKS[env], groups) if env in TASKS else None
        if row:
            goals.append(row)
        # Variants are read beside what they vary
        labelled = grouped(results, env)
        varied = {algo for algo, label in labelled if label}
        labelled = {key: runs for key, runs in labelled.items() if key[0] in varied}
        if labelled:
            figure = images / f"benchmark_{env}_variants.png"
            plot_task(env, labelled, figure)
            variants.append(f"### {env}\n\n{returns_table(labelled, steps)}\n\n![{env}, variants](images/{figure.name})")
    scores = normalized_scores(main)
    if scores:
        plot_profiles(scores, images / "benchmark_profiles.png")
    hours = sum(float(run.columns["wall_s"][-1] + run.columns["eval_wall_s"][-1]) for run in results) / 3600
    summary = (
        f"{len(results)} finished runs, {hours:.1f} hours on the clock. A cell of a table is the interquartile mean over the "
        "seeds of the mean return of 10 deterministic episodes, with a 95 % interval (percentile bootstrap over seeds, "
        f"stratified by task, {BOOTSTRAP_REPETITIONS} repetitions, as rliable computes it). With three seeds the "
        "interquartile mean of one task is the plain mean, and an interval can only lie between the worst and the best seed: "
        "read the seeds, too."
    )
    if left_out:
        summary += "\n\nNot used: " + "; ".join(left_out) + "."
    return {
        "summary": summary,
        "goals": table(["task", "goal", "best of ours", "its return", "verdict"], goals) if goals else "No runs of ours yet.",
        "results": "\n\n".join(parts) or "No runs yet.",
        "profiles": profiles_text(scores, main) if scores else "No runs yet.",
        "variants": "\n\n".join(variants) or "None yet.",
        "diagnostics": diagnostics_table(results),
        "evidence": f"{EVIDENCE_TEXT}\n\n{evidence_table(evidence)}" if evidence else "None yet.",
        "provenance": provenance_table(results) if results else "No runs yet.",
    }


def profiles_text(scores: dict[str, np.ndarray], results: Sequence[Result]) -> str:
    """
    :param scores: what :func:`normalized_scores` returned
    :param results: that they are of
    :return: the figure, and who is in it
    """
    shown = ", ".join(f"{display_name(algo)} ({len(values)} per task)" for algo, values in scores.items())
    missing = dict.fromkeys(run.algo for run in results if run.env in TASKS and run.algo not in scores)
    text = f"![Performance profiles](images/benchmark_profiles.png)\n\nRuns to the end on every task with a goal: {shown}."
    return text + (f" Not in the figure, for want of some: {', '.join(map(display_name, missing))}." if missing else "")


def fill(page: str, texts: dict[str, str]) -> str:
    """
    Replace the generated parts of a page.

    :param page: the page, with marks
    :param texts: Markdown by name of the part
    :return: the new page
    """
    for name, text in texts.items():
        mark = f"<!-- generated: {name} -->"
        if mark not in page:
            raise ValueError(f"The page has no part {name!r}: add the lines {mark} and <!-- end --> where it belongs.")
        before, rest = page.split(mark, 1)
        _, end, after = rest.partition("<!-- end -->")
        page = f"{before}{mark}\n{text}\n{end}{after}"
    return page


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line, without the program's name
    :return: exit status
    """
    parser = argparse.ArgumentParser(description="Tables and figures from the benchmark's result files.")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmark.md", help="page to write")
    arguments = parser.parse_args(argv)
    results, left_out = load(arguments.results)
    evidence, images = load_evidence(arguments.results / "evidence"), arguments.page.parent / "images"
    page = arguments.page.read_text() if arguments.page.exists() else SKELETON
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(fill(page, sections(results, left_out, evidence, images)))
    print(f"{arguments.page}: {len(results)} runs, {len(left_out)} files left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
