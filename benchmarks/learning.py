"""
Learning curves: any RL Zoo algorithm, one single-thread process and one CSV file per run.

    python benchmarks/learning.py --algo maac sac --env Pendulum-v1 --steps 5000 --seeds 0 1 2 --jobs 2

Run the same command again and it continues: finished runs are skipped, interrupted ones go on from their last checkpoint.
The columns and the ways to share the work between machines are described in ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import csv
import fcntl
import io
import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Evaluation episode i of every run starts from reset(seed=EVAL_SEED + i). Training seeds are small numbers, so the two never
# meet; searches for hyperparameters pass another --eval-seed, so that nothing is tuned on the episodes that are published.
EVAL_SEED = 1_000_000
SINGLE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")}
PACKAGES = (
    "sb3-modelbased", "stable-baselines3", "sb3-contrib", "rl-zoo3", "gymnasium", "mujoco", "torch", "numpy",
)  # fmt: skip
# Columns of every file, in this order; what the algorithm logs follows in alphabetical order.
COLUMNS = [
    "env_step", "return_mean", "length_mean", "wall_s", "cpu_s", "eval_wall_s", "eval_cpu_s", "checkpoint_wall_s",
    "updates", "imagined_transitions", "model_error",
]  # fmt: skip
# Names under which an algorithm may log the two quantities that have a column of their own; the first one found is taken.
IMAGINED_KEYS = ("model/imagined_transitions", "rollout/imagined_transitions", "train/imagined_transitions")
MODEL_ERROR_KEYS = ("model/holdout_mse", "model/holdout_error", "model/val_mse", "model/holdout_loss")


@dataclass(frozen=True)
class Job:
    """
    One run: what is trained, and how it is measured.

    :param env: Gymnasium id of the task
    :param algo: name of the algorithm in the RL Zoo
    :param seed: training seed
    :param steps: environment steps
    :param label: name of a variant of the hyperparameters, part of the file name
    :param conf_file: YAML file in RL Zoo format; by default the one that belongs to the algorithm
    :param hyperparams: values that replace those of the YAML file
    :param eval_every: environment steps between evaluations
    :param eval_episodes: deterministic episodes per evaluation
    :param eval_seed: seed of the first evaluation episode
    :param checkpoint_every: environment steps (``"5000"``) or seconds (``"600s"``) between checkpoints
    :param device: torch device
    """

    env: str
    algo: str
    seed: int
    steps: int
    label: str = ""
    conf_file: str = ""
    hyperparams: dict[str, Any] = field(default_factory=dict)
    eval_every: int = 1000
    eval_episodes: int = 10
    eval_seed: int = EVAL_SEED
    checkpoint_every: str = "600s"
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Name of the run and of its files, for example ``Hopper-v4_maac_h3_s0``."""
        label = f"_{self.label}" if self.label else ""
        return f"{self.env.replace('/', '-')}_{self.algo}{label}_s{self.seed}"

    @property
    def command(self) -> str:
        """The command that makes this run alone."""
        parts = ["python", "benchmarks/learning.py", "--algo", self.algo, "--env", self.env]
        parts += ["--steps", str(self.steps), "--seeds", str(self.seed)]
        if self.label:
            parts += ["--label", self.label]
        if self.conf_file:
            parts += ["--conf-file", public_path(self.conf_file)]
        if self.hyperparams:
            parts += ["--hyperparams", *(f"{key}:{value!r}" for key, value in self.hyperparams.items())]
        for name in ("eval_every", "eval_episodes", "eval_seed", "device"):
            if getattr(self, name) != getattr(Job, name):
                parts += [f"--{name.replace('_', '-')}", str(getattr(self, name))]
        return shlex.join(parts)


# --------------------------------------------------------------------------------------------------------------------
# What is known about the machine and the code
# --------------------------------------------------------------------------------------------------------------------
def public_path(path: str) -> str:
    """
    A path as it may be published: relative to the repository, else the file's name alone.

    :param path: path of a file
    :return: a path without the directories of this machine
    """
    resolved = Path(path).resolve()
    if resolved.is_relative_to(ROOT):
        return str(resolved.relative_to(ROOT))
    return f"rl_zoo3/hyperparams/{resolved.name}" if resolved.parent.parent.name == "rl_zoo3" else resolved.name


def git_commit() -> str:
    """
    The commit of the code that runs, with ``+changes`` if the code that matters for a run differs from it.

    :return: the hash; without git the environment variable ``BENCHMARK_COMMIT``, else ``unknown``
    """

    def git(*arguments: str) -> str:
        return subprocess.run(("git", "-C", str(ROOT), *arguments), capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--", "sb3_modelbased", "hyperparams", "benchmarks/learning.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCHMARK_COMMIT", "unknown")


def cpu_model() -> str:
    """
    :return: the processor's name as the operating system gives it
    """
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """
    :return: the versions of Python and of the packages that can change a result
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


# --------------------------------------------------------------------------------------------------------------------
# The result file
# --------------------------------------------------------------------------------------------------------------------
def write_csv(path: Path, header: dict[str, str], rows: list[dict[str, Any]]) -> None:
    """
    Write a whole result file, atomically: a reader never sees half of it.

    :param path: where to
    :param header: written as comment lines ``# key: value``
    :param rows: one dictionary per evaluation; columns that a row lacks stay blank
    """
    names = dict.fromkeys(name for row in rows for name in row)
    returns = sorted((name for name in names if re.fullmatch(r"return_\d+", name)), key=lambda name: int(name[7:]))
    logged = sorted(name for name in names if "/" in name)
    fields = [*COLUMNS[:2], *returns, *COLUMNS[2:], *logged]
    text = io.StringIO()
    for key, value in header.items():
        text.write(f"# {key}: {' '.join(str(value).split())}\n")
    writer = csv.DictWriter(text, fields, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text.getvalue())
    temporary.replace(path)


def read_csv(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """
    Read a result file.

    :param path: of the file
    :return: the header and the rows, all values as text
    """
    lines = path.read_text().splitlines()
    header = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# ") and ": " in line)
    return header, list(csv.DictReader(line for line in lines if not line.startswith("#")))


# --------------------------------------------------------------------------------------------------------------------
# Building a run with the RL Zoo's own code
# --------------------------------------------------------------------------------------------------------------------
def algorithm_class(name: str) -> type:
    """
    The class behind an RL Zoo name.

    :param name: for example ``"sac"`` or ``"maac"``
    :return: the algorithm's class
    """
    from rl_zoo3.utils import ALGOS

    if name in ALGOS:
        return ALGOS[name]
    import sb3_modelbased

    try:
        return getattr(sb3_modelbased, name.upper())
    except AttributeError as error:
        raise ValueError(f"algo: expected one of {', '.join(ALGOS)} or a name of sb3_modelbased, got {name!r}.") from error


def config_file(job: Job) -> str:
    """
    The YAML file of a run.

    :param job: the run
    :return: the file given by the user, else the repository's own for its algorithms, else the one packaged with the RL Zoo
    """
    import rl_zoo3

    candidates = [ROOT / "hyperparams" / f"{job.algo}.yml", Path(rl_zoo3.__file__).parent / "hyperparams" / f"{job.algo}.yml"]
    if job.conf_file:
        candidates = [Path(job.conf_file)]
    for candidate in candidates:
        if candidate.is_file():
            return str(candidate)
    raise ValueError(f"No hyperparameters for {job.algo!r}: looked for {', '.join(map(public_path, map(str, candidates)))}.")


class Run:
    """
    The environments and the hyperparameters of a job, made by the RL Zoo's ``ExperimentManager``: wrappers, schedules,
    normalisation and ``policy_kwargs`` mean exactly what they mean in ``python -m rl_zoo3.train``.

    :param job: what to run
    """

    def __init__(self, job: Job):
        from rl_zoo3.exp_manager import ExperimentManager

        self.job = job
        self.config = config_file(job)
        self.manager = ExperimentManager(
            argparse.Namespace(),
            job.algo,
            job.env,
            log_folder="",
            n_timesteps=job.steps,
            hyperparams=dict(job.hyperparams),
            seed=job.seed,
            config=self.config,
            device=job.device,
            verbose=0,
        )
        # The manager prints what it reads; the header of the result file has it
        with contextlib.redirect_stdout(io.StringIO()):
            raw, saved = self.manager.read_hyperparameters()
            self.hyperparams = copy.deepcopy(dict(saved))
            processed = self.manager._preprocess_hyperparams(raw)
            hyperparams, self.manager.env_wrapper, _, self.manager.vec_env_wrapper = processed
            self.env = self.manager.create_envs(self.manager.n_envs, no_log=True)
            self.eval_env = self.manager.create_envs(job.eval_episodes, eval_env=True, no_log=True)
            self._constructor = self.manager._preprocess_action_noise(hyperparams, saved, self.env)

    def new_model(self) -> Any:
        """
        :return: the algorithm, untrained
        """
        job = self.job
        return algorithm_class(job.algo)(env=self.env, seed=job.seed, device=job.device, verbose=0, **self._constructor)

    def header(self) -> dict[str, str]:
        """
        :return: everything about the run that is known before it starts
        """
        job = self.job
        return {
            "status": "running",
            "env": job.env,
            "algo": job.algo,
            "label": job.label,
            "seed": str(job.seed),
            "steps": str(job.steps),
            "command": job.command,
            "git_commit": git_commit(),
            "versions": json.dumps(versions()),
            "hyperparameters_file": public_path(self.config),
            "hyperparameters": json.dumps(self.hyperparams, default=str, sort_keys=True),
            "evaluation": json.dumps(
                {"episodes": job.eval_episodes, "seeds_from": job.eval_seed, "every": job.eval_every, "deterministic": True}
            ),
            "cpu": cpu_model(),
            "cpu_cores": str(os.cpu_count()),
            "device": device_name(job.device),
            "threads": "1",
        }


def device_name(device: str) -> str:
    """
    :param device: torch device
    :return: ``cpu`` or the name of the GPU
    """
    import torch as th
    from stable_baselines3.common.utils import get_device

    resolved = get_device(device)
    return th.cuda.get_device_name(resolved) if resolved.type == "cuda" else resolved.type


def evaluate(model: Any, env: Any, seed: int) -> tuple[list[float], list[int]]:
    """
    One deterministic episode in each environment, all from fixed initial states.

    :param model: the agent
    :param env: vectorised environment with one copy per episode
    :param seed: environment i starts from ``reset(seed=seed + i)``
    :return: undiscounted returns and lengths of the episodes
    """
    import numpy as np
    from stable_baselines3.common.vec_env import sync_envs_normalization

    if model.get_vec_normalize_env() is not None:
        sync_envs_normalization(model.get_env(), env)
    env.seed(seed)
    observations = env.reset()
    episodes: dict[int, dict[str, Any]] = {}
    while len(episodes) < env.num_envs:
        actions, _ = model.predict(observations, deterministic=True)
        observations, _, dones, infos = env.step(actions)
        for index in np.flatnonzero(dones):
            # Monitor's return: before any reward wrapper or normalisation. An environment that has finished goes on with
            # another episode, which does not count.
            episodes.setdefault(int(index), infos[index]["episode"])
    ordered = [episodes[index] for index in range(env.num_envs)]
    return [float(episode["r"]) for episode in ordered], [int(episode["l"]) for episode in ordered]


# --------------------------------------------------------------------------------------------------------------------
# Random states and checkpoints
# --------------------------------------------------------------------------------------------------------------------
def get_random_state() -> dict[str, Any]:
    """
    :return: the states of the global generators of Python, NumPy and PyTorch
    """
    import numpy as np
    import torch as th

    cuda = th.cuda.get_rng_state_all() if th.cuda.is_available() else []
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": th.get_rng_state(), "cuda": cuda}


def set_random_state(state: dict[str, Any]) -> None:
    """
    :param state: what :func:`get_random_state` returned
    """
    import numpy as np
    import torch as th

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    th.set_rng_state(state["torch"])
    if state["cuda"]:
        th.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Leave the global generators as they were, so that measuring a run does not change it."""
    state = get_random_state()
    try:
        yield
    finally:
        set_random_state(state)


def trimmed_buffer(buffer: Any) -> Any:
    """
    A shallow copy of a replay buffer without its unused rows: a buffer made for a million transitions is written in full
    otherwise.

    :param buffer: SB3 replay buffer
    :return: the copy; :func:`expand_buffer` undoes it
    """
    import numpy as np

    if buffer is None or buffer.full:
        return buffer
    trimmed = copy.copy(buffer)
    for name, value in vars(buffer).items():
        if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == buffer.buffer_size:
            setattr(trimmed, name, value[: buffer.pos])
    trimmed._trimmed_from = buffer.buffer_size
    return trimmed


def expand_buffer(buffer: Any) -> None:
    """
    Give a trimmed replay buffer its unused rows back, in place.

    :param buffer: what :func:`trimmed_buffer` returned
    """
    import numpy as np

    size = buffer.__dict__.pop("_trimmed_from", None)
    if size is None:
        return
    for name, value in vars(buffer).items():
        if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == buffer.pos:
            full = np.zeros((size, *value.shape[1:]), dtype=value.dtype)
            full[: buffer.pos] = value
            setattr(buffer, name, full)


def save_checkpoint(folder: Path, model: Any, measurements: dict[str, Any]) -> Path:
    """
    Save all that a run needs to go on. The model is pickled as a whole, with its buffers, world model and optimisers: what an
    algorithm leaves out of its ``save`` is in here too.

    :param folder: the run's folder
    :param model: the algorithm
    :param measurements: rows, clocks and history of the run
    :return: the checkpoint, which appears under this name only when it is complete
    """
    import cloudpickle

    saved = copy.copy(model)
    saved.env = saved._vec_normalize_env = saved._logger = None
    saved.replay_buffer = trimmed_buffer(model.replay_buffer)
    state = {
        "model": saved,
        "vec_normalize": model.get_vec_normalize_env(),
        "random_state": get_random_state(),
        "env_random_states": [generator.bit_generator.state for generator in env_generators(model.get_env())],
        "measurements": measurements,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{model.num_timesteps:010d}.pkl"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        cloudpickle.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    for older in folder.glob("checkpoint_*.pkl"):
        if older != path:
            older.unlink()
    return path


def latest_checkpoint(folder: Path) -> Path | None:
    """
    :param folder: a run's folder
    :return: its last complete checkpoint, if there is one
    """
    return max(folder.glob("checkpoint_*.pkl"), default=None)


def load_checkpoint(path: Path, run: Run) -> tuple[Any, dict[str, Any]]:
    """
    Bring a run back. The environment's random generator continues, the episode it was in does not: it starts anew.

    :param path: the checkpoint
    :param run: the environments to continue with
    :return: the model, ready to learn, and the measurements so far
    """
    import cloudpickle
    from stable_baselines3.common.vec_env import unwrap_vec_normalize

    with path.open("rb") as file:
        state = cloudpickle.load(file)
    model = state["model"]
    expand_buffer(model.replay_buffer)
    vec_normalize = unwrap_vec_normalize(run.env)
    if vec_normalize is not None:
        for name in ("obs_rms", "ret_rms"):
            setattr(vec_normalize, name, getattr(state["vec_normalize"], name))
    model.set_env(run.env)
    for generator, saved in zip(env_generators(run.env), state["env_random_states"], strict=True):
        generator.bit_generator.state = saved
    set_random_state(state["random_state"])
    return model, state["measurements"]


def env_generators(env: Any) -> list[Any]:
    """
    :param env: vectorised environment
    :return: the random generators of its copies
    """
    return [copy_.unwrapped.np_random for copy_ in env.unwrapped.envs]


# --------------------------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------------------------
class Stopped(Exception):
    """The run was asked to stop; its checkpoint is written."""


def due(every: str, steps: int, seconds: float) -> bool:
    """
    Whether a checkpoint is due.

    :param every: environment steps (``"5000"``) or seconds (``"600s"``)
    :param steps: environment steps since the last one
    :param seconds: seconds since the last one
    """
    return seconds >= float(every[:-1]) if every.endswith("s") else steps >= int(every)


def train(job: Job, results: Path, runs: Path, fresh: bool = False, say: Callable[[str], None] = print) -> str:
    """
    Make one run, or continue it.

    :param job: what to run
    :param results: folder of the result files
    :param runs: folder of the checkpoints
    :param fresh: start over, whatever is there
    :param say: how to report progress
    :return: ``"finished"``, ``"skipped"`` or ``"stopped"``
    """
    import torch as th
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import KVWriter, Logger

    th.set_num_threads(1)
    path, folder = results / f"{job.name}.csv", runs / job.name
    if fresh:
        path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / "lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RuntimeError(f"{job.name} is running in another process.") from error

    run = Run(job)
    header = run.header()
    checkpoint = latest_checkpoint(folder)
    if path.exists():
        before, _ = read_csv(path)
        for key in ("hyperparameters", "evaluation"):
            if before[key] != header[key]:
                raise ValueError(
                    f"{job.name}: there is a result with other {key}: {before[key]} instead of {header[key]}. "
                    "Give this variant a --label, or start it over with --fresh."
                )
        if before["status"] == "finished" and int(before["steps"]) >= job.steps:
            return "skipped"
        if before["status"] == "finished" and checkpoint is None:
            raise ValueError(
                f"{job.name} has finished {before['steps']} steps and its checkpoint is gone, so it cannot be extended to "
                f"{job.steps}. Start it over with --fresh."
            )

    rows: list[dict[str, Any]] = []
    clocks = {"wall_s": 0.0, "cpu_s": 0.0, "eval_wall_s": 0.0, "eval_cpu_s": 0.0, "checkpoint_wall_s": 0.0}
    history = {"commits": [[0, header["git_commit"]]], "resumed_at": []}
    if checkpoint is None:
        model = run.new_model()
    else:
        model, measurements = load_checkpoint(checkpoint, run)
        rows, clocks, history = measurements["rows"], measurements["clocks"], measurements["history"]
        if model.num_timesteps < job.steps:
            history["resumed_at"].append(model.num_timesteps)
        if history["commits"][-1][1] != header["git_commit"]:
            history["commits"].append([model.num_timesteps, header["git_commit"]])
    started = (time.perf_counter(), model.num_timesteps)

    class Capture(KVWriter):
        """Keeps what the algorithm has logged since the last evaluation."""

        def __init__(self) -> None:
            self.values: dict[str, Any] = {}

        def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
            self.values = {name: value for name, value in key_values.items() if name.split("/")[0] != "time"}

        def close(self) -> None:
            pass

    capture = Capture()
    model.set_logger(Logger(folder=None, output_formats=[capture]))

    def write(status: str, **more: str) -> None:
        header["status"] = status
        header["git_commit"] = ", ".join(f"{commit} from step {step}" for step, commit in history["commits"])
        # The episode that was under way at a checkpoint is lost, so a resumed run differs from an uninterrupted one
        header["resumed_at"] = json.dumps(history["resumed_at"])
        write_csv(path, header | more, rows)

    class Measure(BaseCallback):
        """
        Evaluates and saves between two rollouts: all updates of the steps before are done, and the buffer is complete.
        """

        def _on_training_start(self) -> None:
            self.last_clock = (time.perf_counter(), time.process_time())
            self.last_checkpoint = (self.model.num_timesteps, time.perf_counter())
            self.next_evaluation = self.model.num_timesteps
            if rows:
                self.next_evaluation = (rows[-1]["env_step"] // job.eval_every + 1) * job.eval_every

        def tick(self, wall: str, cpu: str | None) -> None:
            """
            Book the time since the last call.

            :param wall: clock that gets the seconds on the wall
            :param cpu: clock that gets the seconds of the processor
            """
            now = (time.perf_counter(), time.process_time())
            clocks[wall] += now[0] - self.last_clock[0]
            if cpu is not None:
                clocks[cpu] += now[1] - self.last_clock[1]
            self.last_clock = now

        def _on_rollout_start(self) -> None:
            steps, now = self.model.num_timesteps, time.perf_counter()
            if steps >= self.next_evaluation:
                self.measure()
            if stopping or due(job.checkpoint_every, steps - self.last_checkpoint[0], now - self.last_checkpoint[1]):
                self.save()
            if stopping:
                write("stopped")
                raise Stopped

        def _on_step(self) -> bool:
            return True

        def measure(self) -> None:
            """Evaluate, and write the result file."""
            self.tick("wall_s", "cpu_s")
            steps = self.model.num_timesteps
            capture.values = {}
            self.model.dump_logs()
            with preserved_random_state():
                returns, lengths = evaluate(self.model, run.eval_env, job.eval_seed)
            self.tick("eval_wall_s", "eval_cpu_s")
            row: dict[str, Any] = {"env_step": steps, "return_mean": round(sum(returns) / len(returns), 3)}
            row |= {f"return_{index}": round(value, 3) for index, value in enumerate(returns)}
            row |= {"length_mean": sum(lengths) / len(lengths)}
            row |= {name: round(seconds, 3) for name, seconds in clocks.items()}
            row["updates"] = getattr(self.model, "_n_updates", "")
            logged = capture.values
            row["imagined_transitions"] = next((logged[key] for key in IMAGINED_KEYS if key in logged), "")
            row["model_error"] = next((logged[key] for key in MODEL_ERROR_KEYS if key in logged), "")
            rows.append(row | {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in logged.items()})
            self.next_evaluation = (steps // job.eval_every + 1) * job.eval_every
            write("running")
            elapsed, done = time.perf_counter() - started[0], steps - started[1]
            left = f", {duration(elapsed / done * (job.steps - steps))} left" if done else ""
            say(f"{job.name}: {steps}/{job.steps} steps, return {row['return_mean']:.1f}, {duration(elapsed)}{left}")

        def save(self) -> None:
            """Write a checkpoint."""
            self.tick("wall_s", "cpu_s")
            save_checkpoint(folder, self.model, {"rows": rows, "clocks": clocks, "history": history})
            self.tick("checkpoint_wall_s", None)
            self.last_checkpoint = (self.model.num_timesteps, time.perf_counter())

        def _on_training_end(self) -> None:
            if not rows or rows[-1]["env_step"] < self.model.num_timesteps:
                self.measure()
            self.save()

    stopping = False

    def stop(signum: int, frame: Any) -> None:
        nonlocal stopping
        stopping = True

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if model.num_timesteps < job.steps:
            model.learn(
                job.steps - model.num_timesteps,
                callback=Measure(),
                log_interval=None,
                reset_num_timesteps=checkpoint is None,
            )
        write("finished")
    except Stopped:
        return "stopped"
    except Exception as error:
        write("failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        run.env.close()
        run.eval_env.close()
    return "finished"


def duration(seconds: float) -> str:
    """
    :param seconds: a time span
    :return: the same as hours, minutes and seconds
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


# --------------------------------------------------------------------------------------------------------------------
# Several runs, side by side
# --------------------------------------------------------------------------------------------------------------------
def run_all(jobs: list[Job], arguments: argparse.Namespace) -> int:
    """
    Make all runs, each in its own process.

    :param jobs: what to run
    :param arguments: of the command line
    :return: number of runs that did not finish
    """
    environment = os.environ | SINGLE_THREAD
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    waiting, running, failed = list(jobs), {}, 0
    folders = ["--results", str(arguments.results), "--runs", str(arguments.runs)] + ["--fresh"] * arguments.fresh

    def terminate(signum: int, frame: Any) -> None:
        waiting.clear()
        for process in running:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, terminate)
    while waiting or running:
        while waiting and len(running) < arguments.jobs:
            job = waiting.pop(0)
            command = [sys.executable, "-u", str(Path(__file__).resolve()), "--job", json.dumps(asdict(job)), *folders]
            # Its own session: Ctrl-C reaches the runs once, through this process
            running[subprocess.Popen(command, env=environment, start_new_session=True)] = job
        for process in [process for process in running if process.poll() is not None]:
            job = running.pop(process)
            failed += process.returncode != 0
            outcome = "done" if process.returncode == 0 else f"ended with exit status {process.returncode}"
            print(f"{job.name}: {outcome}; {len(running)} running, {len(waiting)} waiting", flush=True)
        time.sleep(0.2)
    return failed


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """
    :param argv: command line, without the program's name
    :return: the arguments
    """
    from rl_zoo3.utils import StoreDict

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--algo", nargs="+", default=[], help="RL Zoo names, for example maac sac tqc crossq")
    parser.add_argument("--env", nargs="+", default=[], help="Gymnasium ids")
    parser.add_argument("--steps", type=int, help="environment steps per run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="training seeds")
    parser.add_argument("--label", default="", help="name of a variant, part of the file name")
    parser.add_argument("--conf-file", default="", help="hyperparameters (YAML) instead of the algorithm's own file")
    parser.add_argument("--hyperparams", nargs="+", action=StoreDict, default={}, help="overrides, for example gamma:0.99")
    parser.add_argument("--eval-every", type=int, default=Job.eval_every, help="environment steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=Job.eval_episodes, help="deterministic episodes per evaluation")
    parser.add_argument("--eval-seed", type=int, default=EVAL_SEED, help="seed of the first one; choose another when tuning")
    parser.add_argument("--checkpoint-every", default=Job.checkpoint_every, help="environment steps, or seconds: 600s")
    parser.add_argument("--device", default=Job.device)
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="folder of the checkpoints")
    parser.add_argument("--fresh", action="store_true", help="start the runs over")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.job is None and not (arguments.algo and arguments.env and arguments.steps):
        parser.error("--algo, --env and --steps are needed")
    if any(arguments.eval_seed - 1000 < seed < arguments.eval_seed + 1000 for seed in arguments.seeds):
        parser.error("--seeds: training seeds must stay away from the evaluation seeds")
    if not re.fullmatch(r"[A-Za-z0-9.-]*", arguments.label):
        parser.error("--label: only letters, digits, dots and hyphens")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line, without the program's name
    :return: exit status
    """
    arguments = parse_arguments(argv)
    if arguments.job is not None:
        outcome = train(Job(**json.loads(arguments.job)), arguments.results, arguments.runs, arguments.fresh)
        return 0 if outcome in ("finished", "skipped") else 3
    template = Job(
        "", "", 0, arguments.steps, arguments.label, arguments.conf_file, arguments.hyperparams, arguments.eval_every,
        arguments.eval_episodes, arguments.eval_seed, arguments.checkpoint_every, arguments.device,
    )  # fmt: skip
    # Seeds outermost: an interrupted batch leaves whole comparisons with fewer seeds rather than a half of the algorithms
    jobs = [
        replace(template, env=env, algo=algo, seed=seed)
        for seed in arguments.seeds
        for env in arguments.env
        for algo in arguments.algo
    ]
    return min(run_all(jobs, arguments), 1)


if __name__ == "__main__":
    sys.exit(main())
