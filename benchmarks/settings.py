"""
What to set: how threads, runs side by side, batch and ensemble sizes change what a run costs.

    python benchmarks/settings.py

The agent is MAAC with a task's entry in ``hyperparams/maac.yml``, on the CPU. Threads and runs side by side are timed by the
clock on the wall, each in processes of its own; sizes in CPU seconds of one thread, in turns. Run it on a machine that has
nothing else to do. Writes ``settings.md`` and ``settings.csv``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from records import ROOT, cpu_model, git_commit, versions, write_csv, zoo_settings
from speed import named, show, table
from stable_baselines3.common.logger import Logger

from sb3_modelbased import MAAC
from sb3_modelbased.common.denormals import flushed_denormals

# (threads of each run, runs side by side)
LAYOUTS = ((1, 1), (2, 1), (1, 2))
BATCH_SIZES = (64, 128, 256, 512)
ENSEMBLE_SIZES = (1, 3, 5, 7)
# Env steps before the clock starts, behind the random ones: the first fit is the longest
WARM_UP = 100
COLUMNS = ["quantity", "setting", "median", "quartile_25", "quartile_75"]


def make_agent(env: str, **overrides: Any) -> MAAC:
    """
    :param env: Gymnasium id
    :param overrides: on top of the task's entry
    :return: an agent that has begun to train
    """
    agent = MAAC("MlpPolicy", gym.make(env), seed=0, device="cpu", **{**zoo_settings("maac", env), **overrides})
    agent.set_logger(Logger(None, []))
    agent.learn(agent.learning_starts + WARM_UP)
    return agent


def env_steps_per_second(env: str, steps: int) -> float:
    """
    :param env: Gymnasium id
    :param steps: env steps to time
    :return: rate on the wall clock, with all that training does
    """
    agent = make_agent(env)
    start = time.perf_counter()
    agent.learn(steps, reset_num_timesteps=False)
    return steps / (time.perf_counter() - start)


def rate_of_layout(threads: int, runs: int, env: str, steps: int) -> float:
    """
    :param threads: of each run
    :param runs: side by side
    :param env: Gymnasium id
    :param steps: env steps of each run
    :return: env steps per second of all runs together
    """
    command = [sys.executable, __file__, "--worker", "--env", env, "--steps", str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    workers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(runs)]
    return sum(float(worker.communicate()[0].split()[-1]) for worker in workers)


@flushed_denormals()  # as in training
def take_turns(tasks: dict[Any, Callable[[], Any]], rounds: int, repeats: int) -> dict[Any, list[float]]:
    """
    :param tasks: by setting
    :param rounds: turns of each
    :param repeats: calls in each turn
    :return: milliseconds of CPU per call, by setting
    """
    milliseconds: dict[Any, list[float]] = defaultdict(list)
    for index in range(rounds + 1):
        for setting, task in tasks.items():
            start = time.process_time()
            for _ in range(repeats):
                task()
            if index:  # the first round warms up
                milliseconds[setting].append(1000 * (time.process_time() - start) / repeats)
    return dict(milliseconds)


def time_updates(env: str, rounds: int, repeats: int) -> dict[Any, list[float]]:
    """
    :param env: Gymnasium id
    :param rounds: turns of each
    :param repeats: updates in each turn
    :return: milliseconds per update of the agent, by batch size
    """
    agent = make_agent(env)
    agent.policy.set_training_mode(True)
    return take_turns({size: lambda size=size: agent._sample_and_update(size) for size in BATCH_SIZES}, rounds, repeats)


def time_fits(env: str, rounds: int, repeats: int) -> dict[Any, list[float]]:
    """
    :param env: Gymnasium id
    :param rounds: turns of each
    :param repeats: updates in each turn
    :return: milliseconds per update of the model, by number of members
    """

    def gradient_step(agent: MAAC) -> Callable[[], None]:
        size = (agent.ensemble_size, agent.model_batch_size)
        return lambda: agent.model_trainer._gradient_step(agent.real_data, th.randint(len(agent.real_data), size))

    agents = {size: make_agent(env, ensemble_size=size, n_elites=max(size - 1, 1)) for size in ENSEMBLE_SIZES}
    return take_turns({size: gradient_step(agent) for size, agent in agents.items()}, rounds, repeats)


def rows_of(values: dict[Any, list[float]], quantity: str, unit: float) -> tuple[list[list[str]], list[dict[str, Any]]]:
    """
    :param values: of all rounds, by setting
    :param quantity: what was measured
    :param unit: the setting that the others are compared with
    :return: rows of the table, and of the file
    """
    base = np.median(values[unit])
    cells = [[str(setting), show(v), f"{np.median(v) / base:.2f}"] for setting, v in values.items()]
    return cells, [{"quantity": quantity, "setting": setting, **named(v)} for setting, v in values.items()]


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: command line, without the program's name
    :return: its options
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0].strip())
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument("--steps", type=int, default=500, help="env steps of each timed run")
    parser.add_argument("--rounds", type=int, default=3, help="repeats of every measurement")
    parser.add_argument("--updates", type=int, default=20, help="updates in each turn")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the tables")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """
    :param argv: command line, without the program's name
    """
    arguments = parse_arguments(argv)
    env, rounds = arguments.env, arguments.rounds
    if arguments.worker:
        print(env_steps_per_second(env, arguments.steps))
        return
    layouts: dict[Any, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for threads, runs in LAYOUTS:
            layouts[f"{runs} x {threads} thread(s)"].append(rate_of_layout(threads, runs, env, arguments.steps))
    th.set_num_threads(1)
    updates, fits = time_updates(env, rounds, arguments.updates), time_fits(env, rounds, arguments.updates)

    header = {
        "command": shlex.join(["python", "benchmarks/settings.py", *(sys.argv[1:] if argv is None else argv)]),
        "machine": cpu_model(), "environment": env, "commit": git_commit(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }  # fmt: skip
    parts, records = [], []
    for title, quantity, head, values, unit in (
        ("Threads and runs side by side", "env steps/s of all runs", "runs x threads", layouts, next(iter(layouts))),
        ("Batch size", "ms per update of the agent", "`batch_size`", updates, 256),
        ("Ensemble size", "ms per update of the model", "`ensemble_size`", fits, 5),
    ):
        cells, more = rows_of(values, quantity, unit)
        parts.append(f"## {title}\n\n" + table([head, quantity, f"over {unit}"], cells))
        records += more
    lines = "\n".join(f"- {key}: {value}" for key, value in header.items())
    text = "\n\n".join(["# Settings", lines, "Median over the rounds (interquartile range).", *parts])
    (arguments.output / "settings.md").write_text(text + "\n")
    write_csv(arguments.output / "settings.csv", header, records, COLUMNS)
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
