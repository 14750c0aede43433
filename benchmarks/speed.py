"""
Speed: updates and environment steps per second of every algorithm against SB3's own SAC, and the ensemble alone.

    python benchmarks/speed.py

All agents have the same networks, batch and number of updates. They take turns, and every number is the median over the
rounds with its interquartile range. One thread on a CPU is timed in CPU seconds, so that other processes of the machine
count as little as possible; otherwise it is wall-clock time. Writes ``speed.md`` and ``speed.csv``.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import shlex
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from records import ROOT, cpu_model, git_commit, versions
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sb3_modelbased
from sb3_modelbased.common.buffers import ImaginaryBuffer, ReplayMirror
from sb3_modelbased.common.imagination import branched_rollouts
from sb3_modelbased.common.model_trainer import ModelTrainer
from sb3_modelbased.common.termination_fns import NeverTerminates
from sb3_modelbased.common.type_aliases import Transitions
from sb3_modelbased.common.world_model import WorldModel

# Env steps of one measurement: the default interval of model fits and of imagination, so that it has exactly one of each
STEPS = 250
LEARNING_STARTS = 1000
AGENT = {"learning_starts": LEARNING_STARTS, "batch_size": 256, "gradient_steps": 1, "policy_kwargs": {"net_arch": [256, 256]}}
# A patience that never ends: every fit runs to its cap, as fits on much data do
MODEL = {"model_kwargs": {"patience": 1_000_000}, "termination_fn": "gymnasium"}
BFLOAT16 = {"model_bfloat16": True, "policy_kwargs": {**AGENT["policy_kwargs"], "critic_bfloat16": True}}
COMPILED = {"compile_updates": True}
TRUSTED = {"horizon": 5, "uncertainty_threshold": float("inf")}
SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "SAC (SB3)": ("SAC", {}),
    "SAC (sbx)": ("sbx", {}),
    "MAAC, H = 0, one-step targets (MBPO)": ("MAAC", {"horizon": 0, "steve": False, **MODEL}),
    "MAAC, H = 0, one-step targets, bfloat16": ("MAAC", {"horizon": 0, "steve": False, **BFLOAT16, **MODEL}),
    "MAAC, H = 0, one-step targets, compiled": ("MAAC", {"horizon": 0, "steve": False, **COMPILED, **MODEL}),
    "MAAC, H = 0, one-step targets, compiled, bfloat16": (
        "MAAC",
        {"horizon": 0, "steve": False, **COMPILED, **BFLOAT16, **MODEL},
    ),
    "MAAC, H = 3, one-step targets": ("MAAC", {"horizon": 3, "steve": False, **MODEL}),
    "MAAC, H = 3, one-step targets, compiled": ("MAAC", {"horizon": 3, "steve": False, **COMPILED, **MODEL}),
    "MAAC, H = 3, STEVE": ("MAAC", {"horizon": 3, **MODEL}),
    "MAAC, H = 3, STEVE, compiled": ("MAAC", {"horizon": 3, **COMPILED, **MODEL}),
    "MEMB": ("MEMB", dict(MODEL)),
    "MEMB, compiled": ("MEMB", {**COMPILED, **MODEL}),
    "MPDP": ("MPDP", dict(MODEL)),
    "MAAC, H = 5, one-step targets": ("MAAC", {"horizon": 5, "steve": False, **MODEL}),
    "MAAC, H = 5, on-policy critics": ("MAAC", {"horizon": 5, "steve": False, "on_policy_critic": True, **MODEL}),
    "MPDP, H = 5, nothing stops": ("MPDP", {**TRUSTED, **MODEL}),
    "MPDP, H = 5, nothing stops, 5 elites": ("MPDP", {"n_elites": 5, **TRUSTED, **MODEL}),
    "MPDP, H = 5, nothing stops, 3 elites": ("MPDP", {"n_elites": 3, **TRUSTED, **MODEL}),
}
BASELINE = "SAC (SB3)"
# They imagine as many transitions per update: compared with each other
EQUALLY_LONG = [name for name in SUBJECTS if "H = 5" in name]
# The method with which the critics' part of an update begins; their optimiser's step ends it
CRITIC_BEGINS = ("_batch_targets", "_trajectory_targets", "_value_loss", "_critic_targets")
PARTS = ("env", "model fit", "imagination", "batch", "critic", "actor", "updates")

# The ensemble alone: HalfCheetah's size
OBSERVATION_DIM, ACTION_DIM, MEMBERS, NET_ARCH, MODEL_BATCH = 17, 6, 7, (200, 200, 200, 200), 256
IMAGINED_ROWS, MODEL_STEPS, DATA_ROWS = 100_000, 50, 20_000


# -- Measuring --------------------------------------------------------------------------------------------------------


def make_clock(device: str, threads: int) -> Callable[[], float]:
    """
    :param device: torch device
    :param threads: of torch
    :return: a clock in seconds
    """
    if device == "cpu":
        return time.process_time if threads == 1 else time.perf_counter

    def synchronised() -> float:
        th.cuda.synchronize()
        return time.perf_counter()

    return synchronised


class Meter:
    """
    Splits what a training costs into its parts, by wrapping the methods that mark them.

    :param agent: the algorithm to look at
    :param read: a counter that grows: seconds, or floating-point operations
    :param inside: whether to look inside the updates, too: not where they are replayed as CUDA graphs or compiled
    """

    def __init__(self, agent: OffPolicyAlgorithm, read: Callable[[], float], inside: bool = True) -> None:
        self.agent, self.read = agent, read
        self.spent: dict[str, float] = defaultdict(float)
        self._critic_since = 0.0
        self._splits = inside and hasattr(agent, "_sample_batch")
        for method in ("collect_rollouts", "train", "_prepare_imagination", "_fit_model"):
            self._wrap(agent, method, lambda: None, lambda: None)
        if self._splits:
            self._wrap(agent, "_sample_batch", lambda: None, lambda: None)
            for method in CRITIC_BEGINS:
                self._wrap(agent, method, self._begin_critic, lambda: None)
            self._wrap(agent.critic.optimizer, "step", lambda: None, self._end_critic)  # type: ignore[attr-defined]

    def _wrap(self, owner: Any, method: str, before: Callable[[], None], after: Callable[[], None]) -> None:
        original = getattr(owner, method, None)
        if original is None:
            return

        def measured(*args: Any, **kwargs: Any) -> Any:
            before()
            start = self.read()
            result = original(*args, **kwargs)
            self.spent[method] += self.read() - start
            after()
            return result

        setattr(owner, method, measured)

    def _begin_critic(self) -> None:
        self._critic_since = self.read()

    def _end_critic(self) -> None:
        self.spent["critic"] += self.read() - self._critic_since

    def learn(self) -> dict[str, float]:
        """
        Train for ``STEPS`` env steps, with as many updates.

        :return: what each part and the whole of it cost; a part that the algorithm does not have is 0
        """
        self.spent.clear()
        start = self.read()
        self.agent.learn(STEPS, reset_num_timesteps=False)
        spent = self.spent
        updates = spent["train"] - spent["_prepare_imagination"]
        split, batch = self._splits, spent["_sample_batch"]
        return {
            "total": self.read() - start,
            "env": spent["collect_rollouts"],
            "model fit": spent["_fit_model"],
            "imagination": spent["_prepare_imagination"] - spent["_fit_model"],
            "batch": batch if split else 0.0,
            "critic": spent["critic"] if split else 0.0,
            "actor": updates - batch - spent["critic"] if split else 0.0,
            "updates": updates,
        }


def count_flops(function: Callable[[Callable[[], float]], Any]) -> Any:
    """
    Floating-point operations of matrix products, counted from their sizes.

    :param function: gets the counter's reading
    :return: what the function returns
    """
    with FlopCounterMode(display=False) as counter:
        return function(counter.get_total_flops)


def matmul_rate(clock: Callable[[], float], device: str, size: int = 256, repeats: int = 200) -> float:
    """
    :param clock: in seconds
    :param device: torch device
    :param size: rows and columns
    :param repeats: products
    :return: float32 operations per second of square matrix products
    """
    a, b, out = (th.rand(size, size, device=device) for _ in range(3))
    start = clock()
    for _ in range(repeats):
        th.mm(a, b, out=out)
    return repeats * 2 * size**3 / (clock() - start)


# -- The agents -------------------------------------------------------------------------------------------------------


# Who captures updates, and the switches
CAPTURES = ("cuda_graphs", "compile_updates"), ("cuda_graphs", "compiled")


@contextmanager
def eagerly(agent: OffPolicyAlgorithm) -> Iterator[None]:
    """
    Without CUDA graphs and compiled code: they go past what counts operations.

    :param agent: any
    """
    owners = zip((agent, getattr(agent, "model_trainer", None)), CAPTURES, strict=True)
    switches = [(owner, name) for owner, names in owners for name in names if hasattr(owner, name)]
    before = [getattr(*switch) for switch in switches]
    for switch in switches:
        setattr(*switch, False)
    yield
    for switch, value in zip(switches, before, strict=True):
        setattr(*switch, value)


def is_captured(agent: OffPolicyAlgorithm) -> bool:
    """
    :param agent: any
    :return: whether its updates run as CUDA graphs or compiled
    """
    switch = "compile_updates" if agent.device.type == "cpu" else "cuda_graphs"
    return getattr(agent, switch, False)


def make_agent(name: str, env: str, device: str, cuda_graphs: bool = True) -> OffPolicyAlgorithm | None:
    """
    :param name: one of ``SUBJECTS``
    :param env: Gymnasium id
    :param device: torch device
    :param cuda_graphs: whether our algorithms use them on a GPU
    :return: an agent whose random steps are over; None where its package is not installed
    """
    algorithm, arguments = SUBJECTS[name]
    if algorithm == "SAC":
        cls: Any = SAC
    elif algorithm == "sbx":
        try:
            from sbx import SAC as cls
        except ImportError:
            return None
    else:
        cls, arguments = getattr(sb3_modelbased, algorithm), {**arguments, "cuda_graphs": cuda_graphs}
    agent = cls("MlpPolicy", gym.make(env), seed=0, device=device, **{**AGENT, **arguments})
    agent.set_logger(Logger(None, []))
    agent.learn(LEARNING_STARTS)
    return agent


def measure_agents(
    names: list[str], env: str, device: str, rounds: int, clock: Callable[[], float], cuda_graphs: bool = True
) -> dict[str, Any]:
    """
    :param names: some of ``SUBJECTS``
    :param env: Gymnasium id
    :param device: torch device
    :param rounds: repeats of every measurement, interleaved
    :param clock: in seconds
    :param cuda_graphs: whether our algorithms use them on a GPU
    :return: for every agent, what every round took by part, and the operations
    """
    agents = {name: agent for name in names if (agent := make_agent(name, env, device, cuda_graphs)) is not None}
    operations = {}
    for name, agent in agents.items():  # this is the warm-up, too, with the first fit
        with eagerly(agent):
            operations[name] = count_flops(lambda read, a=agent: Meter(a, read).learn())
    meters = {name: Meter(agent, clock, inside=not is_captured(agent)) for name, agent in agents.items()}
    for name, agent in agents.items():
        if is_captured(agent):  # graphs are captured, and once more when the imaginary buffer has grown; or code is compiled
            print(f"capture: {name}, {meters[name].learn()['total']:.0f} s", flush=True)
    seconds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for index in range(rounds):
        for name, meter in meters.items():
            seconds[name].append(meter.learn())
            print(f"round {index + 1} of {rounds}: {name}, {STEPS / seconds[name][-1]['updates']:.1f} updates/s", flush=True)
    return {name: (seconds[name], operations[name]) for name in agents}


# -- The ensemble alone, and what it is compared with -----------------------------------------------------------------


class PlainEnsemble(nn.Module):
    """The reference: a loop-free batched ensemble as PETS and its descendants have it, without anything clever."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [OBSERVATION_DIM + ACTION_DIM, *NET_ARCH, 2 * (OBSERVATION_DIM + 1)]
        shapes = list(itertools.pairwise(sizes))
        self.weights = nn.ParameterList(th.randn(MEMBERS, i, o) / i**0.5 for i, o in shapes)
        self.biases = nn.ParameterList(th.zeros(MEMBERS, 1, o) for _, o in shapes)
        self.max_log_var = nn.Parameter(th.full((OBSERVATION_DIM + 1,), 0.5))
        self.min_log_var = nn.Parameter(th.full((OBSERVATION_DIM + 1,), -10.0))

    def forward(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param inputs: [E, B, O + A], or [B, O + A] for every member
        :return: means and log-variances, [E, B, O + 1]
        """
        inputs = inputs.expand(MEMBERS, *inputs.shape[-2:])
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = th.bmm(inputs, weight) + bias
            if index < len(NET_ARCH):
                inputs = nn.functional.silu(inputs)
        mean, log_var = inputs.chunk(2, dim=-1)
        log_var = self.max_log_var - nn.functional.softplus(self.max_log_var - log_var)
        return mean, self.min_log_var + nn.functional.softplus(log_var - self.min_log_var)


def plain_gradient_step(model: PlainEnsemble, optimizer: th.optim.Optimizer, inputs: th.Tensor, targets: th.Tensor) -> None:
    """
    :param model: the reference
    :param optimizer: Adam as torch makes it by default
    :param inputs: [E, B, O + A]
    :param targets: [E, B, O + 1]
    """
    mean, log_var = model(inputs)
    loss = ((mean - targets).square() * (-log_var).exp() + log_var).mean(dim=(1, 2)).sum()
    loss = loss + 0.01 * (model.max_log_var.sum() - model.min_log_var.sum())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@th.no_grad()
def imagine_with_every_member(model: PlainEnsemble, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
    """
    :param model: the reference
    :param observations: [N, O]
    :param actions: [N, A]
    :return: next observations and rewards of a random member per row, after evaluating all, [N, O + 1]
    """
    mean, log_var = model(th.cat([observations, actions], dim=-1))
    sample = mean + (0.5 * log_var).exp() * th.randn_like(mean)
    chosen = sample[th.randint(MEMBERS, (len(observations),), device=sample.device), th.arange(len(observations))]
    return th.cat([observations + chosen[:, :-1], chosen[:, -1:]], dim=-1)


class EnsembleBench:
    """
    Our ensemble and the reference on the same data.

    :param device: torch device
    :param bfloat16: whether ours multiplies in bfloat16
    :param compiled: whether our gradient steps are compiled
    """

    def __init__(self, device: str, bfloat16: bool = False, compiled: bool = False) -> None:
        th.manual_seed(0)
        space = gym.spaces.Box(-1.0, 1.0, (ACTION_DIM,))
        model = WorldModel(
            OBSERVATION_DIM, space, MEMBERS, MEMBERS, NET_ARCH, termination_fn=NeverTerminates(), bfloat16=bfloat16
        ).to(device)
        observations, actions = th.randn(DATA_ROWS, OBSERVATION_DIM), 2 * th.rand(DATA_ROWS, ACTION_DIM) - 1
        next_observations = 0.9 * observations + 0.1 * actions.sum(dim=-1, keepdim=True)
        self.data = ReplayMirror(DATA_ROWS, OBSERVATION_DIM, ACTION_DIM, device)
        zeros = th.zeros(DATA_ROWS)
        self.data.extend(Transitions(observations, actions, next_observations, next_observations[:, 0], zeros))
        self.trainer = ModelTrainer(model, max_gradient_steps=MODEL_STEPS, patience=1_000_000)
        self.trainer.compiled = compiled
        self.trainer.fit(self.data)
        self.model = model
        self.plain = PlainEnsemble().to(device)
        self.adam = th.optim.Adam(self.plain.parameters(), lr=1e-3)
        self.starts = self.data[self.data.random_rows(IMAGINED_ROWS)].observations
        self.imagined = ImaginaryBuffer(IMAGINED_ROWS, OBSERVATION_DIM, ACTION_DIM, device)

    def train(self) -> None:
        """``MODEL_STEPS`` gradient steps of our ensemble, as a fit takes them."""
        rows = th.randint(DATA_ROWS, (MODEL_STEPS, MEMBERS, MODEL_BATCH), device=self.data.device)
        gradient_step = self.trainer._choose_gradient_step()
        for batch_rows in rows:
            gradient_step(self.data, batch_rows)

    def train_plain(self) -> None:
        """As many of the reference, on inputs and targets that are already there."""
        everything = self.data[:]
        inputs = th.cat([everything.observations, everything.actions], dim=-1)
        change = everything.next_observations - everything.observations
        targets = th.cat([change, everything.rewards.unsqueeze(-1)], dim=-1)
        for rows in th.randint(DATA_ROWS, (MODEL_STEPS, MEMBERS, MODEL_BATCH), device=self.data.device):
            plain_gradient_step(self.plain, self.adam, inputs[rows], targets[rows])

    def _random_policy(self, observations: th.Tensor, step: int) -> tuple[th.Tensor, th.Tensor]:
        actions = 2 * th.rand(len(observations), ACTION_DIM, device=observations.device) - 1
        return actions, actions[:, 0]

    def imagine(self) -> None:
        """One step of ``IMAGINED_ROWS`` rows through our model, into a buffer."""
        branched_rollouts(self.model, self._random_policy, self.starts, 1, self.imagined)

    def imagine_plain(self) -> None:
        """The same with every member, the result thrown away."""
        actions, _ = self._random_policy(self.starts, 0)
        imagine_with_every_member(self.plain, self.starts, actions)


def measure_ensemble(device: str, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """
    :param device: torch device
    :param rounds: repeats of every measurement, interleaved
    :param clock: in seconds
    :return: per second: gradient steps and imagined rows, ours and the reference's
    """
    bench, rounded = EnsembleBench(device), EnsembleBench(device, bfloat16=True)
    compiled = EnsembleBench(device, compiled=device == "cpu")
    tasks = {
        "ensemble training steps/s": (bench.train, MODEL_STEPS),
        "ensemble training steps/s, compiled": (compiled.train, MODEL_STEPS),
        "ensemble training steps/s, bfloat16": (rounded.train, MODEL_STEPS),
        "reference training steps/s": (bench.train_plain, MODEL_STEPS),
        "imagined rows/s": (bench.imagine, IMAGINED_ROWS),
        "imagined rows/s, bfloat16": (rounded.imagine, IMAGINED_ROWS),
        "reference imagined rows/s": (bench.imagine_plain, IMAGINED_ROWS),
    }
    rates: dict[str, list[float]] = defaultdict(list)
    for index in range(rounds + 1):
        for name, (task, count) in tasks.items():
            start = clock()
            task()
            rates[name].append(count / (clock() - start))
        if index == 0:
            rates.clear()  # the first round warms up
    return dict(rates)


# -- The tables -------------------------------------------------------------------------------------------------------


def summary(values: list[float] | np.ndarray) -> tuple[float, float, float]:
    """
    :param values: of all rounds
    :return: median and quartiles
    """
    low, median, high = np.percentile(values, (25, 50, 75))
    return float(median), float(low), float(high)


def show(values: list[float] | np.ndarray, digits: int = 1) -> str:
    """
    :param values: of all rounds
    :param digits: behind the point
    :return: for example ``71.3 (70.1–72.0)``
    """
    median, low, high = summary(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f}–{high:,.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """
    :param head: names of the columns
    :param rows: cells
    :return: Markdown
    """
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] + ["---:"] * (len(head) - 1), *rows])


def agent_rows(results: dict[str, Any], rate: float) -> tuple[list[list[str]], list[list[str]], list[dict[str, Any]]]:
    """
    :param results: of :func:`measure_agents`
    :param rate: operations per second of the machine's matrix products
    :return: rows of the table of speeds, of the table of parts, and of the file
    """
    speeds, parts, records = [], [], []
    updates = {name: np.array([STEPS / r["updates"] for r in rounds]) for name, (rounds, _) in results.items()}
    for name, (rounds, operations) in results.items():
        ratio = updates[name] / updates[BASELINE] if BASELINE in updates else np.full(len(rounds), np.nan)
        env_steps = [STEPS / r["total"] for r in rounds]
        flops = operations["updates"] / STEPS
        share = flops * updates[name] / rate
        speeds.append(
            [name, show(updates[name]), show(ratio, 2), show(env_steps), f"{flops / 1e6:,.0f}", f"{np.median(share):.0%}"]
        )
        cells = []
        for part in PARTS:
            milliseconds = [1000 * r[part] / STEPS for r in rounds]
            used = np.median(milliseconds) > 0
            share_of_part = np.median([operations[part] / r[part] / rate if r[part] else 0.0 for r in rounds])
            cells.append(f"{np.median(milliseconds):.2f} ({share_of_part:.0%})" if used else "–")
            if used:
                records.append({"subject": name, "quantity": f"{part}, ms per env step", **named(milliseconds)})
                records.append(
                    {"subject": name, "quantity": f"{part}, MFLOP per env step", "median": operations[part] / STEPS / 1e6}
                )
        parts.append([name, *cells])
        for quantity, values in (("updates/s", updates[name]), ("updates/s over SAC", ratio), ("env steps/s", env_steps)):
            records.append({"subject": name, "quantity": quantity, **named(values)})
    return speeds, parts, records


def planning_costs(results: dict[str, Any]) -> tuple[list[str], list[list[str]], list[dict[str, Any]]]:
    """
    :param results: of :func:`measure_agents`
    :return: head and rows of the table of what an update of MPDP costs over one of MAAC with as many imagined transitions,
        and rows of the file
    """
    seconds = {name: np.array([r["updates"] for r in results[name][0]]) for name in EQUALLY_LONG if name in results}
    planners = [name for name in seconds if SUBJECTS[name][0] == "MPDP"]
    others = [name for name in seconds if name not in planners]
    rows, records = [], []
    for planner in planners:
        ratios = {other: seconds[planner] / seconds[other] for other in others}
        rows.append([planner, *(show(ratio, 2) for ratio in ratios.values())])
        for other, ratio in ratios.items():
            records.append({"subject": planner, "quantity": f"cost over {other}", **named(ratio)})
    return ["an update's time, over that of", *others], rows if others else [], records


def named(values: list[float] | np.ndarray) -> dict[str, float]:
    """
    :param values: of all rounds
    :return: median and quartiles by column
    """
    return dict(zip(("median", "quartile_25", "quartile_75"), summary(values), strict=True))


def ensemble_rows(rates: dict[str, list[float]]) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """
    :param rates: of :func:`measure_ensemble`
    :return: rows of the table and of the file
    """
    rows, records = [], []
    for ours, reference in (
        ("ensemble training steps/s", "reference training steps/s"),
        ("ensemble training steps/s, compiled", "reference training steps/s"),
        ("ensemble training steps/s, bfloat16", "reference training steps/s"),
        ("imagined rows/s", "reference imagined rows/s"),
        ("imagined rows/s, bfloat16", "reference imagined rows/s"),
    ):
        ratio = np.array(rates[ours]) / np.array(rates[reference])
        digits = 0 if "rows" in ours else 1
        rows.append([ours, show(rates[ours], digits), show(rates[reference], digits), show(ratio, 2)])
        for quantity, values in ((ours, rates[ours]), (reference, rates[reference]), (f"{ours} over reference", ratio)):
            records.append({"subject": "ensemble", "quantity": quantity, **named(values)})
    return rows, records


def write(folder: Path, header: dict[str, str], tables: list[str], records: list[dict[str, Any]]) -> None:
    """
    :param folder: where to
    :param header: where the numbers come from
    :param tables: Markdown
    :param records: rows of the CSV file
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"- {key}: {value}" for key, value in header.items()]
    (folder / "speed.md").write_text("\n\n".join(["# Speed", "\n".join(lines), *tables]) + "\n")
    with (folder / "speed.csv").open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in header.items())
        writer = csv.DictWriter(file, ["subject", "quantity", "median", "quartile_25", "quartile_75"], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in r.items()} for r in records
        )


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: command line
    :return: its options
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument(
        "--subjects", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), help="default: all; none: ensemble"
    )
    parser.add_argument("--rounds", type=int, default=5, help="repeats of every measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="run the updates of our algorithms eagerly on a GPU")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the tables")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write."""
    arguments = parse_arguments(argv)
    th.set_num_threads(arguments.threads)
    clock = make_clock(arguments.device, arguments.threads)
    rates = [matmul_rate(clock, arguments.device) for _ in range(arguments.rounds + 1)]
    ensemble = measure_ensemble(arguments.device, 2 * arguments.rounds, clock)
    graphs = not arguments.no_cuda_graphs
    agents = measure_agents(arguments.subjects, arguments.env, arguments.device, arguments.rounds, clock, graphs)
    rates += [matmul_rate(clock, arguments.device) for _ in range(arguments.rounds)]
    rate = float(np.median(rates[1:]))  # the first one warms up

    speeds, parts, records = agent_rows(agents, rate)
    ensemble_table, ensemble_records = ensemble_rows(ensemble)
    header = {
        "command": shlex.join(["python", "benchmarks/speed.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": th.cuda.get_device_name(arguments.device) if arguments.device != "cpu" else cpu_model(),
        "threads": str(arguments.threads),
        "clock": "CPU seconds" if clock is time.process_time else "wall-clock seconds",
        "float32 matrix product, 256 x 256": f"{show([r / 1e9 for r in rates[1:]])} GFLOP/s",
        "environment": arguments.env,
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": git_commit(),
        "load": f"{os.getloadavg()[0]:.1f} processes at the end of the measurement"
        if hasattr(os, "getloadavg")
        else "unknown",
    }
    units = "Median over the rounds (interquartile range)."
    tables = [
        f"## The ensemble alone\n\n{units} {MEMBERS} members of {len(NET_ARCH)} x {NET_ARCH[0]}, batch {MODEL_BATCH}, "
        f"{IMAGINED_ROWS:,} rows.\n\n" + table(["what", "ours", "reference", "ratio"], ensemble_table)
    ]
    if speeds:
        head = ["agent", "updates/s", "over SB3's SAC", "env steps/s", "MFLOP per update", "share of matrix-product rate"]
        tables.append(f"## Agents\n\n{units} One update per env step, 2 x 256, batch 256.\n\n" + table(head, speeds))
        tables.append(
            "## Where the time goes\n\nms per env step, and the part's share of the matrix-product rate. Model fits run to "
            "their cap, once per 250 env steps; batch, critic and actor are parts of the updates.\n\n"
            + table(["agent", *PARTS], parts)
        )
    head, costs, cost_records = planning_costs(agents)
    if costs:
        tables.append(f"## Planning\n\n{units} As many imagined transitions in every update.\n\n" + table(head, costs))
    records += cost_records
    records.append({"subject": "machine", "quantity": "matrix product, GFLOP/s", **named([r / 1e9 for r in rates[1:]])})
    write(arguments.output, header, tables, ensemble_records + records)
    print("\n\n".join(tables))


if __name__ == "__main__":
    main()
