"""Run Python and rl_zoo3's commands as a user does: in a process of their own, started outside the checkout."""

import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest


def run_python(*arguments: object, cwd: Path, environment: dict[str, str] | None = None, fails: bool = False) -> str:
    """
    :param arguments: of the interpreter
    :param cwd: folder to start in
    :param environment: variables to add
    :param fails: whether it should end with an error
    :return: standard output and error, in the order in which they came
    """
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert (process.returncode != 0) == fails, f"{command} ended with {process.returncode}:\n{process.stdout}"
    return process.stdout


def require_start_up_file() -> None:
    """Fail, not skip: without it the tests would pass on a package that rl_zoo3 does not find."""
    if util.find_spec("_sb3_modelbased_startup") is None:
        pytest.fail("The package is not installed in this environment: pip install --no-build-isolation --no-deps -e .")
