"""One run of the learning benchmark: build it as the RL Zoo would, train it, measure it, interrupt it and go on."""

from __future__ import annotations

import argparse
import contextlib
import copy
import fcntl
import io
import json
import os
import pickle
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import rl_zoo3
import torch as th
from records import CLOCKS, ROOT, Job, cpu_model, git_commit, public_path, read_csv, versions, write_csv
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization, unwrap_vec_normalize

# The algorithms come from this tree, installed or not
sys.path.insert(1, str(ROOT))

# Logged names of the two quantities that have a column of their own
IMAGINED_TRANSITIONS = "model/imagined_transitions"
MODEL_ERROR = "model/holdout_mse"
# What a run may not change on its way
SETTINGS = ("hyperparameters", "evaluation")
# Logged by SB3 and in a column already, or wrong here because it counts evaluations too
NOT_RECORDED = {"time/episodes", "time/fps", "time/time_elapsed", "time/total_timesteps", "time/iterations"}


# --------------------------------------------------------------------------------------------------------------------
# Building a run with the RL Zoo's own code
# --------------------------------------------------------------------------------------------------------------------
def algorithm_class(name: str) -> type[OffPolicyAlgorithm]:
    """
    The class behind an RL Zoo name, also where the RL Zoo has not been told of this package.

    :param name: for example ``"sac"`` or ``"maac"``
    :return: the algorithm's class
    """
    if name in ALGOS:
        return ALGOS[name]
    import sb3_modelbased

    try:
        return getattr(sb3_modelbased, name.upper())
    except AttributeError as error:
        known = sorted({*ALGOS, *(public.lower() for public in sb3_modelbased.__all__)})
        raise ValueError(f"algo: expected one of {', '.join(known)}, got {name!r}.") from error


def config_file(job: Job) -> Path:
    """
    The YAML file of a run.

    :param job: the run
    :return: the file that the user gave, else this repository's for its algorithms, else the one packaged with the RL Zoo
    """
    packaged = Path(rl_zoo3.__file__).parent / "hyperparams" / f"{job.algo}.yml"
    candidates = [ROOT / job.conf_file] if job.conf_file else [ROOT / "hyperparams" / f"{job.algo}.yml", packaged]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(f"No hyperparameters for {job.algo!r}: looked for {', '.join(map(public_path, candidates))}.")


class Run:
    """
    The environments and the hyperparameters of a job, made by the RL Zoo's ``ExperimentManager``: wrappers, schedules,
    normalisation and ``policy_kwargs`` mean exactly what they mean in ``python -m rl_zoo3.train``.

    :param job: what to run
    """

    def __init__(self, job: Job):
        self.job = job
        self.config = config_file(job)
        manager = ExperimentManager(
            argparse.Namespace(),
            job.algo,
            job.env,
            log_folder="",
            n_timesteps=job.steps,
            hyperparams=dict(job.hyperparams),
            seed=job.seed,
            config=str(self.config),
            device=job.device,
            verbose=0,
        )
        # The manager prints what it reads; the header of the result file has it
        with contextlib.redirect_stdout(io.StringIO()):
            raw, saved = manager.read_hyperparameters()
            self.hyperparams = copy.deepcopy(dict(saved))
            constructor, manager.env_wrapper, _, manager.vec_env_wrapper = manager._preprocess_hyperparams(raw)
            self.env = manager.create_envs(manager.n_envs, no_log=True)
            self.eval_env = manager.create_envs(job.eval_episodes, eval_env=True, no_log=True)
            self.constructor = manager._preprocess_action_noise(constructor, saved, self.env)

    def new_model(self) -> OffPolicyAlgorithm:
        """
        :return: the algorithm, untrained
        """
        job = self.job
        return algorithm_class(job.algo)(env=self.env, seed=job.seed, device=job.device, verbose=0, **self.constructor)

    def header(self) -> dict[str, Any]:
        """
        :return: everything about the run that is known before it starts
        """
        job = self.job
        evaluation = {
            "episodes": job.eval_episodes,
            "seeds_from": job.eval_seed,
            "every": job.eval_every,
            "deterministic": True,
        }
        return {
            "status": "running",
            "env": job.env,
            "algo": job.algo,
            "label": job.label,
            "seed": job.seed,
            "steps": job.steps,
            "command": job.command,
            "versions": json.dumps(versions()),
            "hyperparameters_file": public_path(self.config),
            "hyperparameters": json.dumps(self.hyperparams, default=str, sort_keys=True),
            "evaluation": json.dumps(evaluation),
            "threads": 1,
        }

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
        self.eval_env.close()


def machine(device: str) -> str:
    """
    :param device: torch device
    :return: what the run is computed on: the processor, and the GPU if it is used
    """
    resolved = get_device(device)
    return f"{cpu_model()}, {th.cuda.get_device_name(resolved)}" if resolved.type == "cuda" else cpu_model()


def evaluate(model: OffPolicyAlgorithm, env: VecEnv, seed: int) -> tuple[list[float], list[int]]:
    """
    One deterministic episode in each environment, all from fixed initial states.

    :param model: the agent
    :param env: vectorised environment with one copy per episode
    :param seed: environment i starts from ``reset(seed=seed + i)``
    :return: undiscounted returns and lengths of the episodes
    """
    train_env = model.get_env()
    if train_env is not None and model.get_vec_normalize_env() is not None:
        sync_envs_normalization(train_env, env)
    env.seed(seed)
    observations = env.reset()
    episodes: dict[int, dict[str, Any]] = {}
    while len(episodes) < env.num_envs:
        actions, _ = model.predict(observations, deterministic=True)  # type: ignore[arg-type]
        observations, _, dones, infos = env.step(actions)
        for index in np.flatnonzero(dones):
            # Monitor's return: before any reward wrapper or normalisation. A copy that has finished goes on with another
            # episode, which does not count.
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
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),  # noqa: NPY002 (the generator that SB3 draws from)
        "torch": th.get_rng_state(),
        "cuda": th.cuda.get_rng_state_all() if th.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """
    :param state: what :func:`get_random_state` returned
    """
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
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


def env_layers(env: VecEnv | None) -> list[VecEnv]:
    """
    :param env: vectorised environment
    :return: it and everything it wraps, from the outside inwards
    """
    layers = []
    while env is not None:
        layers.append(env)
        env = getattr(env, "venv", None)
    return layers


def env_generators(env: VecEnv) -> list[np.random.Generator]:
    """
    :param env: vectorised environment
    :return: the random generators of its copies
    """
    return [single.unwrapped.np_random for single in env_layers(env)[-1].envs]  # type: ignore[attr-defined]


class CheckpointPickler(cloudpickle.Pickler):
    """
    Pickles an algorithm as a whole, with everything it holds: what its ``save`` leaves out (buffers, running means) is part of
    the state of a run too. Environments and loggers are replaced by markers.

    :param file: where to
    :param env: the algorithm's environment
    """

    def __init__(self, file: Any, env: VecEnv):
        super().__init__(file)
        self._layers = env_layers(env)

    def persistent_id(self, obj: Any) -> Any:
        """Markers for what a checkpoint refers to without containing it."""
        if isinstance(obj, Logger):
            return ("logger", 0)
        return next((("env", depth) for depth, layer in enumerate(self._layers) if layer is obj), None)

    def reducer_override(self, obj: Any) -> Any:
        """A replay buffer made for a million transitions would be written in full; write what it holds."""
        if isinstance(obj, ReplayBuffer) and not obj.full:
            state = dict(obj.__getstate__() if hasattr(obj, "__getstate__") else vars(obj))
            for name, value in state.items():
                if isinstance(value, np.ndarray) and value.ndim > 0 and len(value) == obj.buffer_size:
                    state[name] = Rows(value[: obj.pos])
            return restored_buffer, (type(obj), state)
        return super().reducer_override(obj)


class Rows:
    """
    The used rows of a longer array.

    :param used: the rows
    """

    def __init__(self, used: np.ndarray):
        self.used = used

    def expand(self, size: int) -> np.ndarray:
        """
        :param size: rows of the whole array
        :return: the whole array; the unused rows are zero
        """
        whole = np.zeros((size, *self.used.shape[1:]), dtype=self.used.dtype)
        whole[: len(self.used)] = self.used
        return whole


def restored_buffer(cls: type[ReplayBuffer], state: dict[str, Any]) -> ReplayBuffer:
    """
    :param cls: class of the buffer
    :param state: its attributes, arrays as :class:`Rows`
    :return: the buffer as it was
    """
    size = state["buffer_size"]
    whole = {name: value.expand(size) if isinstance(value, Rows) else value for name, value in state.items()}
    buffer = cls.__new__(cls)
    if hasattr(buffer, "__setstate__"):
        buffer.__setstate__(whole)
    else:
        buffer.__dict__.update(whole)
    return buffer


class CheckpointUnpickler(pickle.Unpickler):
    """
    The inverse of :class:`CheckpointPickler`.

    :param file: where from
    :param env: the environment that takes the place of the pickled algorithm's
    """

    def __init__(self, file: Any, env: VecEnv):
        super().__init__(file)
        self._layers = env_layers(env)

    def persistent_load(self, pid: Any) -> Any:
        """What a marker stands for now."""
        kind, depth = pid
        return self._layers[depth] if kind == "env" else Logger(folder=None, output_formats=[])


def save_checkpoint(folder: Path, model: OffPolicyAlgorithm, measurements: dict[str, Any]) -> Path:
    """
    Save all that a run needs to go on.

    :param folder: the run's folder
    :param model: the algorithm
    :param measurements: rows, clocks and history of the run
    :return: the checkpoint, which appears under this name only when it is complete
    """
    env = model.get_env()
    assert env is not None
    normalizer = model.get_vec_normalize_env()
    state = {
        "model": model,
        "normalizer": {name: getattr(normalizer, name) for name in ("obs_rms", "ret_rms")} if normalizer else {},
        "random_state": get_random_state(),
        "env_random_states": [generator.bit_generator.state for generator in env_generators(env)],
        "measurements": measurements,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint_{model.num_timesteps:010d}.pkl"
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        CheckpointPickler(file, env).dump(state)
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


def load_checkpoint(path: Path, env: VecEnv) -> tuple[OffPolicyAlgorithm, dict[str, Any]]:
    """
    Bring a run back. The environment's random generator continues, the episode it was in does not: it starts anew.

    :param path: the checkpoint
    :param env: the environment to continue with
    :return: the model, ready to learn, and the measurements so far
    """
    with path.open("rb") as file:
        state = CheckpointUnpickler(file, env).load()
    model = state["model"]
    normalizer = unwrap_vec_normalize(env)
    for name, statistics in state["normalizer"].items():
        setattr(normalizer, name, statistics)
    model.set_env(env)
    for generator, saved in zip(env_generators(env), state["env_random_states"], strict=True):
        generator.bit_generator.state = saved
    set_random_state(state["random_state"])
    return model, state["measurements"]


# --------------------------------------------------------------------------------------------------------------------
# Measuring
# --------------------------------------------------------------------------------------------------------------------
class Stopped(Exception):
    """The run was asked to stop, and its checkpoint is written."""


class Capture(KVWriter):
    """Keeps what an algorithm logs, up to the next evaluation."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """
        :param key_values: logged values
        :param key_excluded: not used
        :param step: not used
        """
        self.values = {name: value for name, value in key_values.items() if name not in NOT_RECORDED}

    def close(self) -> None:
        """Nothing to close."""


class Clocks:
    """
    Seconds by activity, each counted once.

    :param seconds: what was counted before, changed in place
    """

    def __init__(self, seconds: dict[str, float]):
        self.seconds = seconds
        self.restart()

    def restart(self) -> None:
        """Start to count from here."""
        self._last = (time.perf_counter(), time.process_time())

    def book(self, wall: str, cpu: str | None = None) -> None:
        """
        Book the time since the last call.

        :param wall: clock that gets the seconds on the wall
        :param cpu: clock that gets the seconds of the processor
        """
        now = (time.perf_counter(), time.process_time())
        self.seconds[wall] += now[0] - self._last[0]
        if cpu is not None:
            self.seconds[cpu] += now[1] - self._last[1]
        self._last = now


class Measure(BaseCallback):
    """
    Evaluates and saves between two rollouts, where all updates of the steps before are done and the buffer is complete.

    :param run: the run
    :param path: the result file
    :param folder: folder of the checkpoints
    :param measurements: rows, clocks and history so far
    :param say: how to report progress
    """

    def __init__(self, run: Run, path: Path, folder: Path, measurements: dict[str, Any], say: Callable[[str], None]):
        super().__init__()
        self.run, self.path, self.folder, self.say = run, path, folder, say
        self.measurements = measurements
        self.rows: list[dict[str, Any]] = measurements["rows"]
        self.clocks = Clocks(measurements["clocks"])
        self.capture = Capture()
        self.stopping = False

    def stop(self, *_: Any) -> None:
        """Ask the run to save and stop, at the next step; a signal handler."""
        self.stopping = True

    def write(self, status: str, **more: str) -> None:
        """
        Write the result file.

        :param status: ``running``, ``stopped``, ``failed`` or ``finished``
        :param more: further lines of the header
        """
        header = self.run.header() | {"status": status}
        for key, segments in self.measurements["history"].items():
            # Nearly always one value; else every change with the step it came at
            texts = [str(segments[0][1])] + [f"{value} from step {step}" for step, value in segments[1:]]
            header[key] = "; ".join(texts)
        # The episode that was under way at a checkpoint is lost, so a resumed run differs from an uninterrupted one
        header["resumed_at"] = json.dumps(self.measurements["resumed_at"])
        write_csv(self.path, header | more, self.rows)

    def _on_training_start(self) -> None:
        job = self.run.job
        steps = self.model.num_timesteps
        self.clocks.restart()
        self.started = self.last_checkpoint = (steps, time.perf_counter())
        self.next_evaluation = (self.rows[-1]["env_step"] // job.eval_every + 1) * job.eval_every if self.rows else steps

    def _on_rollout_start(self) -> None:
        if self.model.num_timesteps >= self.next_evaluation:
            self.evaluate()
        if self.stopping or self._checkpoint_due():
            self.save()
        if self.stopping:
            raise Stopped

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        if not self.rows or self.rows[-1]["env_step"] < self.model.num_timesteps:
            self.evaluate()
        self.save()

    def _checkpoint_due(self) -> bool:
        every = self.run.job.checkpoint_every
        if every.endswith("s"):
            return time.perf_counter() - self.last_checkpoint[1] >= float(every[:-1])
        return self.model.num_timesteps - self.last_checkpoint[0] >= int(every)

    def evaluate(self) -> None:
        """Evaluate, and write the result file."""
        self.clocks.book("wall_s", "cpu_s")
        job, steps = self.run.job, self.model.num_timesteps
        self.capture.values = {}
        # SB3 logs by episode; here every evaluation closes the interval that logged means are over
        self.model.dump_logs()
        with preserved_random_state():
            returns, lengths = evaluate(self.model, self.run.eval_env, job.eval_seed)  # type: ignore[arg-type]
        self.clocks.book("eval_wall_s", "eval_cpu_s")
        logged = self.capture.values
        row: dict[str, Any] = {
            "env_step": steps,
            "return_mean": float(np.mean(returns)),
            "length_mean": float(np.mean(lengths)),
        }
        row |= {f"return_{index}": value for index, value in enumerate(returns)}
        row |= {name: round(seconds, 2) for name, seconds in self.clocks.seconds.items()}
        row["updates"] = getattr(self.model, "_n_updates", "")
        row["imagined_transitions"] = logged.get(IMAGINED_TRANSITIONS, "")
        row["model_error"] = logged.get(MODEL_ERROR, "")
        self.rows.append(row | logged)
        self.next_evaluation = (steps // job.eval_every + 1) * job.eval_every
        self.write("running")
        elapsed, done = time.perf_counter() - self.started[1], steps - self.started[0]
        left = f", {duration(elapsed / done * (job.steps - steps))} left" if done else ""
        self.say(f"{job.name}: {steps}/{job.steps} steps, return {row['return_mean']:.1f}, {duration(elapsed)}{left}")

    def save(self) -> None:
        """Write a checkpoint."""
        self.clocks.book("wall_s", "cpu_s")
        save_checkpoint(self.folder, self.model, self.measurements)  # type: ignore[arg-type]
        self.clocks.book("checkpoint_wall_s")
        self.last_checkpoint = (self.model.num_timesteps, time.perf_counter())


def duration(seconds: float) -> str:
    """
    :param seconds: a time span
    :return: the same as hours, minutes and seconds
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


# --------------------------------------------------------------------------------------------------------------------
# A run
# --------------------------------------------------------------------------------------------------------------------
def is_done(path: Path, header: dict[str, Any], checkpoint: Path | None) -> bool:
    """
    Compare a result file with what is asked for.

    :param path: the result file
    :param header: of the run that is asked for
    :param checkpoint: the run's checkpoint
    :return: whether there is nothing left to do
    :raises ValueError: if the file has the same name and another content, or cannot be extended
    """
    if not path.exists():
        return False
    before, _ = read_csv(path)
    check_settings(path, before, header)
    if before["status"] != "finished":
        return False
    if int(before["steps"]) >= header["steps"]:
        return True
    if checkpoint is None:
        raise ValueError(
            f"{path.name} has finished its {before['steps']} steps, and without its checkpoint it cannot be extended to "
            f"{header['steps']}. Start it over with --fresh."
        )
    return False


def check_settings(path: Path, before: dict[str, str], header: dict[str, Any]) -> None:
    """
    :param path: a result file or a checkpoint
    :param before: the settings that it was made with
    :param header: of the run that is asked for
    :raises ValueError: if they differ
    """
    for key in SETTINGS:
        if before.get(key) != header[key]:
            raise ValueError(
                f"{path.name} of {path.parent.name} was made with other {key}: {before.get(key)} instead of {header[key]}. "
                "Give this variant a --label, or start it over with --fresh."
            )


def note(history: dict[str, list[Any]], key: str, step: int, value: Any) -> None:
    """
    Add to the history of a run, if something changed.

    :param history: lists of ``[step, value]`` by name
    :param key: name
    :param step: environment step since which the value holds
    :param value: the value
    """
    segments = history.setdefault(key, [])
    if not segments or segments[-1][1] != value:
        segments.append([step, value])


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
    th.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*The environment .* is out of date.*")
    path, folder = results / f"{job.name}.csv", runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(f"{job.name} is running in another process.") from error
        if fresh:
            path.unlink(missing_ok=True)
            for old in folder.glob("checkpoint_*"):
                old.unlink()
        run = Run(job)
        try:
            checkpoint = latest_checkpoint(folder)
            if is_done(path, run.header(), checkpoint):
                return "skipped"
            return _train(run, path, folder, checkpoint, say)
        finally:
            run.close()


def _train(run: Run, path: Path, folder: Path, checkpoint: Path | None, say: Callable[[str], None]) -> str:
    job = run.job
    header = run.header()
    measurements: dict[str, Any] = {"rows": [], "clocks": dict.fromkeys(CLOCKS, 0.0), "history": {}, "resumed_at": []}
    measurements["settings"] = {key: header[key] for key in SETTINGS}
    if checkpoint is None:
        model = run.new_model()
    else:
        model, measurements = load_checkpoint(checkpoint, run.env)
        check_settings(checkpoint, measurements.get("settings", {}), header)
    steps, history = model.num_timesteps, measurements["history"]
    note(history, "git_commit", steps, git_commit())
    note(history, "machine", steps, machine(job.device))
    if 0 < steps < job.steps:
        measurements["resumed_at"].append(steps)

    measure = Measure(run, path, folder, measurements, say)
    model.set_logger(Logger(folder=None, output_formats=[measure.capture]))
    handlers = {number: signal.signal(number, measure.stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        if steps < job.steps:
            model.learn(job.steps - steps, callback=measure, log_interval=None, reset_num_timesteps=checkpoint is None)
        measure.write("finished")
    except Stopped:
        measure.write("stopped")
        return "stopped"
    except Exception as error:
        measure.write("failed", error=f"{type(error).__name__}: {error}")
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return "finished"
