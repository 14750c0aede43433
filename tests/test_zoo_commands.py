"""rl_zoo3's own commands, as a user types them, with an agent and budgets as small as they get."""

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import optuna
import pytest
from stable_baselines3.common.save_util import load_from_pkl
from subprocesses import require_start_up_file, run_python

from sb3_modelbased import MAAC, MEMB, MPDP

ENV = "Pendulum-v1"
SMALL = (
    *("learning_starts:40", "batch_size:16", "model_gradient_steps:5", "rollout_batch_size:50", "buffer_size:1000"),
    *("ensemble_size:3", "n_elites:2", "model_net_arch:[16,16]", "imaginary_buffer_size:1000"),
)


@pytest.fixture(autouse=True, scope="module")
def _installed():
    require_start_up_file()


def train(*arguments: object, cwd: Path, hyperparams: tuple[str, ...] = (), **kwargs) -> str:
    """
    :param arguments: of ``rl_zoo3.train``
    :param cwd: where it leaves ``logs``
    :param hyperparams: ``key:value``, on top of SMALL
    :param kwargs: of ``run_python``
    :return: what it printed
    """
    options = ("--algo", "maac", "--env", ENV, "--seed", 0, "--device", "cpu", *arguments)
    return run_python("-m", "rl_zoo3.train", *options, "-params", *SMALL, *hyperparams, cwd=cwd, **kwargs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder in which one run used most of train's options."""
    folder = tmp_path_factory.mktemp("zoo")
    output = train(
        *("-n", 240, "-P", "-tb", "tb", "--vec-env", "subproc", "--save-replay-buffer"),
        *("--save-freq", 100, "--eval-freq", 100, "--eval-episodes", 2),
        cwd=folder,
        hyperparams=("n_envs:2",),
    )
    assert "Using 2 environments" in output
    assert "240/240" in output  # the progress bar
    assert "Eval num_timesteps=200" in output
    return folder


def test_train_leaves_agent_checkpoints_evaluations_and_logs(trained):
    run = trained / "logs" / "maac" / f"{ENV}_1"
    assert MAAC.load(run / f"{ENV}.zip", device="cpu").num_timesteps == 240
    assert MAAC.load(run / "rl_model_100_steps", device="cpu").num_timesteps == 100
    assert (run / "best_model.zip").is_file()
    assert np.load(run / "evaluations.npz")["timesteps"].tolist() == [100, 200]
    assert load_from_pkl(run / "replay_buffer.pkl").size() * 2 == 240
    assert list((trained / "tb" / ENV).rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("which", [(), ("--load-best",), ("--load-checkpoint", 200)])
def test_enjoy(trained, which):
    options = ("--algo", "maac", "--env", ENV, "-f", "logs", "--exp-id", 1, "--no-render", "-n", 200, *which)
    assert "1 Episodes\nMean reward: -" in run_python("-m", "rl_zoo3.enjoy", *options, cwd=trained)


def test_continue_training(trained):
    agent = trained / "logs" / "maac" / f"{ENV}_1" / f"{ENV}.zip"
    options = ("-i", agent, "-n", 20, "--eval-freq", -1, "-f", "continued")
    output = train(*options, cwd=trained, hyperparams=("n_envs:2", "learning_starts:0"))
    assert "Loading pretrained agent" in output
    assert "Loading replay buffer" in output
    continued = trained / "continued" / "maac" / f"{ENV}_1" / f"{ENV}.zip"
    before, after = (MAAC.load(path, device="cpu") for path in (agent, continued))
    assert after._n_updates > before._n_updates


def test_console_script_and_conf_file(tmp_path):
    (tmp_path / "mine.yml").write_text(f"{ENV}:\n  n_timesteps: 45\n  policy: 'MlpPolicy'\n  gamma: 0.5\n")
    script = Path(sysconfig.get_path("scripts")) / "rl_zoo3"
    output = run_python(
        *(script, "train", "--algo", "maac", "--env", ENV, "--conf-file", "mine.yml", "--eval-freq", -1, "-params", *SMALL),
        cwd=tmp_path,
    )
    assert "Loading hyperparameters from: mine.yml" in output
    assert MAAC.load(tmp_path / "logs" / "maac" / f"{ENV}_1" / f"{ENV}.zip", device="cpu").gamma == 0.5


def test_key_that_does_not_exist(tmp_path):
    output = train("-n", 10, cwd=tmp_path, hyperparams=("horizn:2",), fails=True)
    assert "ValueError: There is no 'horizn' among the hyperparameters of MAAC" in output.splitlines()[-1]
    assert not (tmp_path / "logs" / "maac").exists()


# The sampler replaces some of SMALL by networks of full size: 42 steps are one or two calls of train()
SEARCH = ("-optimize", "-n", 42, "--eval-episodes", 1, "--n-evaluations", 1, "--pruner", "none", "--sampler", "random")


def test_search_with_jobs_in_sqlite_and_train_a_trial(tmp_path):
    storage = ("--storage", "sqlite:///search.db", "--study-name", "maac")
    train(*SEARCH, "--n-trials", 2, "--n-jobs", 2, "--no-optim-plots", *storage, cwd=tmp_path)
    study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'search.db'}", study_name="maac")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]

    # What is typed comes on top of the trial, so nothing of SMALL may hide it
    options = ("--algo", "maac", "--env", ENV, "-n", 42, "--eval-freq", -1, "-f", "retrained")
    run_python("-m", "rl_zoo3.train", *options, *storage, "--trial-id", 1, "-params", "learning_starts:41", cwd=tmp_path)
    agent = MAAC.load(tmp_path / "retrained" / "maac" / f"{ENV}_1" / f"{ENV}.zip", device="cpu")
    params = study.trials[1].params
    assert agent.gamma == 1 - params["one_minus_gamma"]
    assert (agent.horizon, agent.ensemble_size, agent.tau) == (params["horizon"], params["ensemble_size"], params["tau"])


def test_two_processes_share_a_journal(tmp_path):
    options = ("-m", "rl_zoo3.train", "--algo", "maac", "--env", ENV, *SEARCH, "--no-optim-plots", "--n-trials", 2)
    options += ("--max-total-trials", 2, "--storage", "journal.log", "--study-name", "maac", "-params", *SMALL)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, *map(str, options)], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        for _ in range(2)
    ]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="maac")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]


@pytest.mark.expensive
@pytest.mark.parametrize("algorithm", [MEMB, MPDP], ids=lambda algorithm: algorithm.__name__)
def test_the_other_algorithms(algorithm, tmp_path):
    """Train with most of train's options, enjoy, continue, search, and train a trial of the search."""
    name = algorithm.__name__.lower()
    small = [pair for pair in SMALL if not pair.startswith(("rollout", "imaginary"))]
    options = ("--algo", name, "--env", ENV, "--seed", 0, "--device", "cpu")

    def run(*arguments: object, hyperparams: tuple[str, ...] = ()) -> str:
        return run_python("-m", "rl_zoo3.train", *options, *arguments, "-params", *small, *hyperparams, cwd=tmp_path)

    saving = ("--save-replay-buffer", "--save-freq", 100, "--eval-freq", 100, "--eval-episodes", 1)
    run("-n", 240, "-P", "-tb", "tb", "--vec-env", "subproc", *saving, hyperparams=("n_envs:2",))
    agent = tmp_path / "logs" / name / f"{ENV}_1" / f"{ENV}.zip"
    assert algorithm.load(agent, device="cpu").num_timesteps == 240
    enjoy = ("--algo", name, "--env", ENV, "-f", "logs", "--exp-id", 1, "--no-render", "-n", 200)
    assert "1 Episodes\nMean reward: -" in run_python("-m", "rl_zoo3.enjoy", *enjoy, cwd=tmp_path)

    run("-i", agent, "-n", 20, "--eval-freq", -1, "-f", "continued", hyperparams=("n_envs:2", "learning_starts:0"))
    continued = algorithm.load(tmp_path / "continued" / name / f"{ENV}_1" / f"{ENV}.zip", device="cpu")
    assert continued._n_updates > algorithm.load(agent, device="cpu")._n_updates

    storage = ("--storage", "sqlite:///search.db", "--study-name", name)
    run(*SEARCH, "--n-trials", 2, "--n-jobs", 2, "--no-optim-plots", *storage)
    study = optuna.load_study(storage=f"sqlite:///{tmp_path / 'search.db'}", study_name=name)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
    retrain = ("-n", 42, "--eval-freq", -1, "-f", "retrained", *storage, "--trial-id", 1, "-params", "learning_starts:41")
    run_python("-m", "rl_zoo3.train", *options, *retrain, cwd=tmp_path)
    retrained = algorithm.load(tmp_path / "retrained" / name / f"{ENV}_1" / f"{ENV}.zip", device="cpu")
    assert retrained.gamma == 1 - study.trials[1].params["one_minus_gamma"]


def test_plot_scripts(trained):
    # Agg has no window for their figures, and says so: -W
    script = ("-W", "ignore", Path(sysconfig.get_path("scripts")) / "rl_zoo3")
    runs = ("-a", "maac", "-e", ENV, "-f", "logs")
    # plot_from_file leaves out what has one run only
    shutil.copytree(trained / "logs" / "maac" / f"{ENV}_1", trained / "logs" / "maac" / f"{ENV}_2")
    run_python(*script, "plot_train", *runs, cwd=trained)
    assert "MAAC" in run_python(*script, "all_plots", *runs, "-o", "results", "--no-display", cwd=trained)
    run_python(*script, "plot_from_file", "-i", "results.pkl", "-o", "curve.png", "--format", "png", cwd=trained)
    assert (trained / "curve.png").is_file()


# -- Rarer commands ---------------------------------------------------------------------------------------------------------


@pytest.mark.expensive
def test_record_video(trained):
    options = ("--algo", "maac", "--env", ENV, "-f", "logs", "--exp-id", 1, "-n", 30)
    run_python("-m", "rl_zoo3.record_video", *options, cwd=trained, environment={"SDL_VIDEODRIVER": "dummy"})
    assert list((trained / "logs" / "maac" / f"{ENV}_1" / "videos").glob("*.mp4"))


@pytest.mark.expensive
def test_benchmark_script(trained):
    # It starts "enjoy.py", which a checkout of rl_zoo3 has in its root, with the "python" on the path
    (trained / "enjoy.py").write_text("from rl_zoo3.enjoy import enjoy\n\nenjoy()\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    run_python(
        *("-m", "rl_zoo3.benchmark", "--log-dir", "logs", "--no-hub", "-n", 400, "--test-mode"),
        cwd=trained,
        environment={"PATH": path},
    )
    (row,) = [line for line in (trained / "logs" / "benchmark" / "benchmark.md").read_text().splitlines() if "maac" in line]
    assert ENV in row


@pytest.mark.expensive
def test_interrupted_training_saves_the_agent(tmp_path):
    options = ("--algo", "maac", "--env", ENV, "-n", "1000000", "--log-interval", "1", "-params", *SMALL)
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "rl_zoo3.train", *options], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "actor_loss" in line:  # it learns
                break
        process.send_signal(signal.SIGINT)
        assert "Saving to" in process.stdout.read()
    assert process.returncode == 0
    assert MAAC.load(tmp_path / "logs" / "maac" / f"{ENV}_1" / f"{ENV}.zip", device="cpu")._n_updates > 0


@pytest.mark.expensive
@pytest.mark.parametrize("env_id", ["Ant-v4", "Ant-v5"])
def test_mujoco_without_any_option(tmp_path, env_id):
    run_python("-m", "rl_zoo3.train", "--algo", "maac", "--env", env_id, "-n", 5010, "--eval-freq", -1, cwd=tmp_path)
    assert MAAC.load(tmp_path / "logs" / "maac" / f"{env_id}_1" / f"{env_id}.zip", device="cpu")._n_updates > 0
