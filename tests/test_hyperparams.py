"""Every hyperparameter file, read the way rl_zoo3 reads it."""

import argparse
from pathlib import Path

import gymnasium as gym
import pytest
import yaml
from rl_zoo3.exp_manager import ExperimentManager

import zoo_plugins
from sb3_modelbased.common.errors import constructor_arguments
from zoo_plugins.checks import ZOO_KEYS

FOLDER = Path(__file__).parent.parent / "hyperparams"
FILES = sorted(FOLDER.rglob("*.yml"))
ENTRIES = [(file, env_id) for file in FILES for env_id in yaml.safe_load(file.read_text())]
TUNED = {"Pendulum-v1"} | {
    f"{task}-v{version}"
    for task in ("InvertedPendulum", "Hopper", "Walker2d", "HalfCheetah", "Ant", "Swimmer", "Reacher", "Humanoid")
    for version in (4, 5)
}
SMALL_BUFFERS = {"buffer_size": 100, "imaginary_buffer_size": 1000}


def name_of(file: Path, env_id: str) -> str:
    return f"{file.relative_to(FOLDER).with_suffix('')}-{env_id}"


def test_files_and_algorithms_belong_together():
    assert {file.stem for file in FOLDER.glob("*.yml")} == set(zoo_plugins.ALGORITHM_MODULES)
    assert {file.stem for file in FILES} == set(zoo_plugins.ALGORITHM_MODULES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(FOLDER)))
def test_default_and_tuned_tasks_are_there(file):
    entries = set(yaml.safe_load(file.read_text()))
    assert "default" in entries
    if file.parent == FOLDER:
        assert entries >= TUNED
    assert all(env_id in gym.registry for env_id in entries - {"default"})


@pytest.mark.parametrize(("file", "env_id"), ENTRIES, ids=[name_of(*entry) for entry in ENTRIES])
def test_keys_are_accepted(file, env_id):
    hyperparams = yaml.safe_load(file.read_text())[env_id]
    model_class = zoo_plugins.load_algorithms()[file.stem].model_class
    assert set(hyperparams) <= {*constructor_arguments(model_class), *ZOO_KEYS}
    assert int(hyperparams["n_timesteps"]) == float(hyperparams["n_timesteps"]) > 0


@pytest.mark.parametrize(("file", "env_id"), ENTRIES, ids=[name_of(*entry) for entry in ENTRIES])
@pytest.mark.filterwarnings("ignore:.*out of date:DeprecationWarning")
def test_agent_can_be_made(file, env_id, tmp_path):
    """The constructor, the policy and the environment refuse what does not fit together."""
    model_class = zoo_plugins.load_algorithms()[file.stem].model_class
    manager = ExperimentManager(
        argparse.Namespace(),
        file.stem,
        "Pendulum-v1" if env_id == "default" else env_id,
        str(tmp_path),
        eval_freq=-1,
        verbose=0,
        hyperparams={name: size for name, size in SMALL_BUFFERS.items() if name in constructor_arguments(model_class)},
        config=str(file),
    )
    manager._save_config = lambda saved_hyperparams: None  # wants the parsed command line
    model, _ = manager.setup_experiment()
    model.env.close()
    assert isinstance(model, model_class)
