"""The result file of a run: what it is named, what it says about where it comes from, how it is written and read."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import platform
import re
import shlex
import subprocess
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
# Evaluation episode i of every run starts from reset(seed=EVAL_SEED + i). Training seeds are small numbers, so the two never
# meet; a search for hyperparameters passes another --eval-seed, so that nothing is tuned on the episodes that are published.
EVAL_SEED = 1_000_000
PACKAGES = ("sb3-modelbased", "stable-baselines3", "sb3-contrib", "rl-zoo3", "gymnasium", "mujoco", "torch", "numpy")
# Columns that every file has; the single returns follow the mean, what the algorithm logs comes at the end
FIRST_COLUMNS = ("env_step", "return_mean")
CLOCKS = ("wall_s", "cpu_s", "eval_wall_s", "eval_cpu_s", "checkpoint_wall_s")
MORE_COLUMNS = ("length_mean", *CLOCKS, "updates", "imagined_transitions", "model_error")


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

    def to_json(self) -> str:
        """
        :return: the job as text; ``Job(**json.loads(text))`` is its inverse
        """
        return json.dumps(asdict(self))


# --------------------------------------------------------------------------------------------------------------------
# Where a result comes from
# --------------------------------------------------------------------------------------------------------------------
def public_path(path: str | Path) -> str:
    """
    A path as it may be published, without the directories of this machine.

    :param path: path of a file
    :return: relative to the repository or to the RL Zoo's package, else the file's name alone
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
        code = ("sb3_modelbased", "zoo_plugins", "hyperparams", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", "--", *code) else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("BENCHMARK_COMMIT", "unknown")


def cpu_model() -> str:
    """
    :return: the processor's name and its number of cores, as the operating system gives them, and the libraries that are
        loaded in front of the others, because they change speeds
    """
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        name = match[1].strip() if match else name
    preloaded = [Path(library).name for library in re.split("[: ]+", os.environ.get("LD_PRELOAD", "")) if library]
    return ", ".join([name, f"{os.cpu_count()} cores", *(f"{library} preloaded" for library in preloaded)])


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
# The file
# --------------------------------------------------------------------------------------------------------------------
def columns(rows: list[dict[str, Any]]) -> list[str]:
    """
    The columns of a file in their order.

    :param rows: one dictionary per evaluation
    :return: the fixed names, the returns of the single episodes, then the logged names in alphabetical order
    """
    names = dict.fromkeys(name for row in rows for name in row)
    returns = sorted((name for name in names if re.fullmatch(r"return_\d+", name)), key=lambda name: int(name[7:]))
    return [*FIRST_COLUMNS, *returns, *MORE_COLUMNS, *sorted(name for name in names if "/" in name)]


def cell(value: Any) -> Any:
    """
    :param value: a number or a text
    :return: the same with as many digits as a curve needs
    """
    return f"{value:.6g}" if isinstance(value, float) else value


def write_csv(path: Path, header: dict[str, Any], rows: list[dict[str, Any]], names: list[str] | None = None) -> None:
    """
    Write a whole result file, atomically: a reader never sees half of it.

    :param path: where to
    :param header: written as comment lines ``# key: value``
    :param rows: one dictionary per evaluation; what a row lacks stays blank
    :param names: the columns; those of a result file by default
    """
    text = io.StringIO()
    for key, value in header.items():
        # One line per key, whatever the value
        text.write(f"# {key}: {' '.join(str(value).split())}\n")
    writer = csv.DictWriter(text, names or columns(rows), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text.getvalue())
    temporary.replace(path)


def read_csv(path: Path) -> tuple[dict[str, str], list[dict[str, str]]]:
    """
    Read a result file.

    :param path: of the file
    :return: the header and the rows, all values as text
    """
    lines = path.read_text().splitlines()
    header = {}
    for line in lines:
        if line.startswith("# "):
            key, _, value = line[2:].partition(":")
            header[key] = value.strip()
    return header, list(csv.DictReader(line for line in lines if not line.startswith("#")))


def zoo_settings(algo: str, env: str) -> dict[str, Any]:
    """
    :param algo: name of one of our algorithms
    :param env: Gymnasium id of a task with an entry of its own
    :return: the entry in ``hyperparams/``, as arguments of the algorithm's constructor
    """
    settings = yaml.safe_load((ROOT / "hyperparams" / f"{algo}.yml").read_text())[env]
    del settings["n_timesteps"], settings["policy"]
    if isinstance(settings.get("policy_kwargs"), str):
        settings["policy_kwargs"] = eval(settings["policy_kwargs"], {"nn": nn})  # Python, as rl_zoo3 reads it
    return settings
