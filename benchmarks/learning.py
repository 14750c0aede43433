"""
Learning curves: any RL Zoo algorithm, one single-thread process and one CSV file per run.

    python benchmarks/learning.py --algo maac sac --env Pendulum-v1 --steps 5000 --seeds 0 1 2 --jobs 2

Run the same command again and it continues: finished runs are skipped, interrupted ones go on from their last checkpoint.
The columns of the files and the ways to share the work between machines are described in ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from records import EVAL_SEED, ROOT, Job

# Exit status of a run that was asked to stop and has saved its state
STOPPED = 3
# Training seeds and evaluation seeds keep at least this distance
SEED_MARGIN = 10_000
STUDY_NAME = "learning"


@dataclass(frozen=True)
class Ticket:
    """
    A job that was handed out.

    :param job: what to run
    :param number: what the queue knows it by
    """

    job: Job
    number: int


class Queue(Protocol):
    """Where jobs come from."""

    def take(self) -> Ticket | None:
        """
        :return: the next job for this machine; None when there is none
        """

    def give_back(self, ticket: Ticket, exit_status: int) -> None:
        """
        :param ticket: a job that has ended
        :param exit_status: 0 if it is done
        """


class LocalQueue:
    """
    The jobs of one command.

    :param jobs: in the order in which to run them
    """

    def __init__(self, jobs: list[Job]):
        self._tickets = [Ticket(job, number) for number, job in enumerate(jobs)]

    def take(self) -> Ticket | None:
        """
        :return: the next job
        """
        return self._tickets.pop(0) if self._tickets else None

    def give_back(self, ticket: Ticket, exit_status: int) -> None:
        """
        :param ticket: not used
        :param exit_status: not used
        """


class SharedQueue:
    """
    Jobs that several machines work off: trials of an Optuna study, in the same kind of store as the RL Zoo's searches.

    Every machine may add the same jobs: those that wait, run or are done are not added again. Optuna hands each waiting trial
    to one machine only.

    :param storage: a journal file (``*.log``) or the URL of a database
    :param jobs: jobs to add
    :param retry: hand out again what is marked as running, because the machine that took it is gone
    """

    def __init__(self, storage: str, jobs: list[Job], retry: bool = False):
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        store: Any = storage
        if storage.endswith(".log"):
            store = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
        self._state = optuna.trial.TrialState
        self._study = optuna.create_study(storage=store, study_name=STUDY_NAME, direction="maximize", load_if_exists=True)
        if retry:
            for trial in self._study.get_trials(deepcopy=False, states=(self._state.RUNNING,)):
                self._study.tell(trial.number, state=self._state.FAIL)
                if "job" in trial.user_attrs:
                    self._add(Job(**json.loads(trial.user_attrs["job"])))
        for job in jobs:
            self._add(job)

    def _add(self, job: Job) -> None:
        if not self._known(job):
            self._study.enqueue_trial({}, user_attrs={"job": job.to_json()})

    def _known(self, job: Job, before: float = math.inf) -> bool:
        """
        :param job: a job
        :param before: look only at trials with lower numbers
        :return: whether the same job waits, runs or is done
        """
        states = (self._state.WAITING, self._state.RUNNING, self._state.COMPLETE)
        trials = self._study.get_trials(deepcopy=False, states=states)
        return any(trial.user_attrs.get("job") == job.to_json() for trial in trials if trial.number < before)

    def take(self) -> Ticket | None:
        """
        :return: the next job that no machine has taken
        """
        while self._study.get_trials(deepcopy=False, states=(self._state.WAITING,)):
            trial = self._study.ask()
            text = trial.user_attrs.get("job")
            job = Job(**json.loads(text)) if text else None
            # No job: another machine took the last waiting trial, and Optuna made a new one. A known job: two machines
            # added it at the same moment.
            if job is not None and not self._known(job, before=trial.number):
                return Ticket(job, trial.number)
            self._study.tell(trial.number, state=self._state.FAIL)
        return None

    def give_back(self, ticket: Ticket, exit_status: int) -> None:
        """
        :param ticket: a job that has ended
        :param exit_status: 0 if it is done; a job that was stopped waits again
        """
        if exit_status == 0:
            # The result is the CSV file; the study only keeps the books
            self._study.tell(ticket.number, 0.0)
            return
        self._study.tell(ticket.number, state=self._state.FAIL)
        if exit_status == STOPPED:
            self._add(ticket.job)


def work(queue: Queue, side_by_side: int, command: Callable[[Job], list[str]]) -> int:
    """
    Run jobs until the queue is empty, each in its own process with one thread.

    :param queue: where jobs come from
    :param side_by_side: processes at the same time
    :param command: what to start for a job
    :return: number of jobs that did not finish
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")
    environment = {**os.environ, **threads}
    running: dict[subprocess.Popen[bytes], Ticket] = {}
    stopping = False
    finished = unfinished = 0

    def stop(*_: Any) -> None:
        nonlocal stopping
        stopping = True
        for process in running:
            process.send_signal(signal.SIGTERM)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    while True:
        while not stopping and len(running) < side_by_side and (ticket := queue.take()):
            # A session of its own: Ctrl-C reaches the runs once, through this process
            running[subprocess.Popen(command(ticket.job), env=environment, start_new_session=True)] = ticket
        if not running:
            break
        for process in [process for process in running if process.poll() is not None]:
            ticket = running.pop(process)
            # A process that has not come to training has no handler yet, and nothing to save
            status = STOPPED if process.returncode == -signal.SIGTERM else process.returncode
            queue.give_back(ticket, status)
            finished += status == 0
            unfinished += status != 0
            outcome = {0: "done", STOPPED: "stopped, can be continued"}.get(status, "failed")
            print(f"{ticket.job.name}: {outcome}; {finished} done, {unfinished} not, {len(running)} running", flush=True)
        time.sleep(0.3)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return unfinished


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: command line, without the program's name
    :return: the arguments
    """
    parser = argparse.ArgumentParser(description="Learning curves: one single-thread process and one CSV file per run.")
    parser.add_argument("--algo", nargs="+", default=[], help="RL Zoo names, for example maac sac tqc crossq")
    parser.add_argument("--env", nargs="+", default=[], help="Gymnasium ids")
    parser.add_argument("--steps", type=int, help="environment steps per run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="training seeds")
    parser.add_argument("--label", default="", help="name of a variant, part of the file name")
    parser.add_argument("--conf-file", default="", help="hyperparameters (YAML) instead of the algorithm's own file")
    parser.add_argument("--hyperparams", nargs="+", default=[], metavar="KEY:VALUE", help="overrides, for example gamma:0.99")
    parser.add_argument("--eval-every", type=int, default=Job.eval_every, help="environment steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=Job.eval_episodes, help="deterministic episodes per evaluation")
    parser.add_argument("--eval-seed", type=int, default=EVAL_SEED, help="seed of the first one; take another to tune")
    parser.add_argument("--checkpoint-every", default=Job.checkpoint_every, help="environment steps, or seconds: 600s")
    parser.add_argument("--device", default=Job.device)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--storage", help="share the runs between machines: a journal file (*.log) or a database's URL")
    parser.add_argument("--retry", action="store_true", help="with --storage: take over runs of machines that are gone")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="folder of the checkpoints")
    parser.add_argument("--fresh", action="store_true", help="start the runs over")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.job is None and not arguments.storage and not (arguments.algo and arguments.env and arguments.steps):
        parser.error("--algo, --env and --steps are needed (with --storage they may be left out, to work off what is there)")
    if any(abs(seed - arguments.eval_seed) < SEED_MARGIN for seed in arguments.seeds):
        parser.error(f"--seeds: training seeds must be at least {SEED_MARGIN} away from --eval-seed {arguments.eval_seed}")
    if not re.fullmatch(r"[A-Za-z0-9.-]*", arguments.label):
        parser.error("--label: only letters, digits, dots and hyphens")
    if not re.fullmatch(r"[1-9][0-9]*s?", arguments.checkpoint_every):
        parser.error("--checkpoint-every: expected environment steps (5000) or seconds (600s)")
    try:
        arguments.hyperparams = dict(map(parse_hyperparam, arguments.hyperparams))
    except ValueError as error:
        parser.error(f"--hyperparams: {error}")
    return arguments


def parse_hyperparam(text: str) -> tuple[str, Any]:
    """
    One override. As in the YAML files, ``policy_kwargs`` and the like may be given as a quoted Python expression.

    :param text: ``key:value``, the value a Python literal
    :return: key and value
    """
    key, _, value = text.partition(":")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"expected key:value with a Python literal, for example ent_coef:\"'auto'\", got {text!r}") from error


def make_jobs(arguments: argparse.Namespace) -> list[Job]:
    """
    :param arguments: of the command line
    :return: all combinations of task, algorithm and seed
    """
    shared = ("steps", "label", "hyperparams", "eval_every", "eval_episodes", "eval_seed", "checkpoint_every", "device")
    template = Job(env="", algo="", seed=0, **{name: getattr(arguments, name) for name in shared})
    if arguments.conf_file:
        # Machines that share the runs have their checkouts in different places
        conf_file = Path(arguments.conf_file).resolve()
        inside = conf_file.is_relative_to(ROOT)
        template = replace(template, conf_file=str(conf_file.relative_to(ROOT) if inside else conf_file))
    # Seeds outermost: an interrupted batch leaves whole comparisons with fewer seeds, not some algorithms without any
    combinations = itertools.product(arguments.seeds, arguments.env, arguments.algo)
    return [replace(template, env=env, algo=algo, seed=seed) for seed, env, algo in combinations]


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line, without the program's name
    :return: exit status
    """
    arguments = parse_arguments(argv)
    if arguments.job is not None:
        # Only the processes of the runs need PyTorch
        from single_run import train

        outcome = train(Job(**json.loads(arguments.job)), arguments.results, arguments.runs, arguments.fresh)
        return STOPPED if outcome == "stopped" else 0
    jobs = make_jobs(arguments)
    queue = SharedQueue(arguments.storage, jobs, arguments.retry) if arguments.storage else LocalQueue(jobs)
    options = ["--results", str(arguments.results.resolve()), "--runs", str(arguments.runs.resolve())]
    options += ["--fresh"] * arguments.fresh

    def command(job: Job) -> list[str]:
        return [sys.executable, "-u", str(Path(__file__).resolve()), "--job", job.to_json(), *options]

    return min(work(queue, arguments.jobs, command), 1)


if __name__ == "__main__":
    sys.exit(main())
