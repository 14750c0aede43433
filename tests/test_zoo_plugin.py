"""What an unmodified rl_zoo3 learns of this package, and what it must never notice."""

import argparse
import importlib
import pkgutil
import types
import warnings
from pathlib import Path

import optuna
import pytest
import yaml
from stable_baselines3 import SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from subprocesses import require_start_up_file, run_python

import zoo_plugins
from sb3_modelbased import MAAC
from sb3_modelbased.common.errors import constructor_arguments

STARTUP = Path(__file__).parent.parent / "zoo_plugins" / "startup"
START_LINE = (STARTUP / "sb3_modelbased.pth").read_text()
NAMES = sorted(zoo_plugins.ALGORITHM_MODULES)


@pytest.fixture(autouse=True, scope="module")
def _registered():
    require_start_up_file()


@pytest.fixture
def rl_zoo3():
    """rl_zoo3's three registries."""
    modules = ("utils", "hyperparams_opt", "exp_manager")
    return types.SimpleNamespace(**{name: importlib.import_module(f"rl_zoo3.{name}") for name in modules})


def make_manager(rl_zoo3, tmp_path, algo="maac", **kwargs):
    return rl_zoo3.exp_manager.ExperimentManager(
        argparse.Namespace(), algo, "Pendulum-v1", str(tmp_path), eval_freq=-1, verbose=0, **kwargs
    )


# -- Start-up -------------------------------------------------------------------------------------------------------------


def test_start_up_imports_only_the_stub(tmp_path):
    # -S: what Python itself has imported before it comes to our line, and nothing of other packages
    script = f"import os, sys; before = set(sys.modules); exec({START_LINE!r}); print(sorted(set(sys.modules) - before))"
    output = run_python("-S", "-W", "error", "-c", script, cwd=tmp_path, environment={"PYTHONPATH": str(STARTUP)})
    assert output.strip() == "['_sb3_modelbased_startup']"


def test_installed_start_up_file_imports_nothing_else(tmp_path):
    script = "import sys; print({'_sb3_modelbased_startup', 'zoo_plugins', 'sb3_modelbased', 'torch'} & set(sys.modules))"
    assert run_python("-c", script, cwd=tmp_path).strip() == "{'_sb3_modelbased_startup'}"


def test_nothing_happens_without_rl_zoo3(tmp_path):
    # -S leaves site-packages, and with it rl_zoo3, off the path
    script = f"""
exec({START_LINE!r})
import json.tool, decimal
try:
    import rl_zoo3.utils
except ModuleNotFoundError as error:
    print("missing", error.name)
"""
    output = run_python("-S", "-W", "error", "-c", script, cwd=tmp_path, environment={"PYTHONPATH": str(STARTUP)})
    assert output.strip() == "missing rl_zoo3"


def test_start_file_of_python_3_15_names_the_same_function(monkeypatch):
    monkeypatch.syspath_prepend(STARTUP)
    (entry_point,) = (STARTUP / "sb3_modelbased.start").read_text().split()
    module, function = entry_point.split(":")
    assert callable(pkgutil.resolve_name(entry_point))
    assert START_LINE == f"import {module}; {module}.{function}()\n"


def test_switch(tmp_path):
    script = """
import rl_zoo3.exp_manager, zoo_plugins
print("maac" in rl_zoo3.ALGOS)
zoo_plugins.register()
print("maac" in rl_zoo3.ALGOS, "maac" in rl_zoo3.exp_manager.HYPERPARAMS_SAMPLER)
"""
    output = run_python("-c", script, cwd=tmp_path, environment={"SB3_MODELBASED_ZOO": "0"})
    assert output.split("\n") == ["False", "True True", ""]


def test_modules_look_as_if_nothing_had_touched_them(tmp_path):
    script = """
import importlib, inspect
import rl_zoo3.exp_manager
for name in ("utils", "hyperparams_opt", "exp_manager"):
    module = importlib.import_module("rl_zoo3." + name)
    assert type(module.__loader__).__name__ == "SourceFileLoader", module.__loader__
    assert module.__spec__.loader is module.__loader__
    assert "def " in inspect.getsource(module)
assert rl_zoo3.ALGOS is rl_zoo3.utils.ALGOS is rl_zoo3.exp_manager.ALGOS
assert "maac" in importlib.reload(rl_zoo3.utils).ALGOS
"""
    assert run_python("-c", script, cwd=tmp_path) == ""


def test_children_see_the_algorithms(tmp_path):
    # rl_zoo3 is imported by the children only: what they see does not come from their parent
    script = tmp_path / "children.py"
    script.write_text("""
import multiprocessing

def look(queue):
    import rl_zoo3
    queue.put("maac" in rl_zoo3.ALGOS)

if __name__ == "__main__":
    for method in ("fork", "forkserver", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        child = context.Process(target=look, args=(queue,))
        child.start()
        print(method, queue.get(timeout=120))
        child.join()
""")
    assert run_python(script, cwd=tmp_path).split() == ["fork", "True", "forkserver", "True", "spawn", "True"]


def test_package_never_imports_rl_zoo3(tmp_path):
    script = """
import importlib, pkgutil, sys
import sb3_modelbased
for module in pkgutil.walk_packages(sb3_modelbased.__path__, "sb3_modelbased."):
    importlib.import_module(module.name)
print([name for name in sys.modules if name.partition(".")[0] in ("rl_zoo3", "zoo_plugins")])
"""
    assert run_python("-c", script, cwd=tmp_path).strip() == "[]"


# -- A broken install, a name that is taken ---------------------------------------------------------------------------------


def test_broken_package_gives_one_warning_and_sac_trains(tmp_path):
    broken = tmp_path / "broken" / "sb3_modelbased"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("raise ImportError('half an install')")
    output = run_python(
        *("-m", "rl_zoo3.train", "--algo", "sac", "--env", "Pendulum-v1", "-n", 20, "--eval-freq", -1),
        cwd=tmp_path,
        environment={"PYTHONPATH": str(broken.parent)},
    )
    assert output.count("half an install") == 1
    assert "UserWarning: sb3-modelbased could not" in output
    assert (tmp_path / "logs" / "sac" / "Pendulum-v1_1" / "Pendulum-v1.zip").is_file()


def test_one_broken_algorithm_leaves_the_others(monkeypatch):
    monkeypatch.setitem(zoo_plugins.ALGORITHM_MODULES, "dyna", "zoo_plugins.no_such_module")
    zoo_plugins.load_algorithms.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"dyna \(ModuleNotFoundError"):
            algorithms = zoo_plugins.load_algorithms()
        assert sorted(algorithms) == NAMES
        zoo_plugins.load_algorithms()  # a second warning would be an error
    finally:
        zoo_plugins.load_algorithms.cache_clear()


def test_name_that_rl_zoo3_has_is_not_replaced(rl_zoo3, monkeypatch):
    monkeypatch.setitem(rl_zoo3.utils.ALGOS, "maac", SAC)
    with pytest.warns(UserWarning, match=r"already has an algorithm 'maac' \(stable_baselines3.sac.sac.SAC\)"):
        zoo_plugins.patch(rl_zoo3.utils)
    assert rl_zoo3.utils.ALGOS["maac"] is SAC

    # Then its sampler and its file are not ours to give either
    samplers = types.ModuleType("rl_zoo3.hyperparams_opt")
    samplers.HYPERPARAMS_SAMPLER, samplers.HYPERPARAMS_CONVERTER = {}, {}
    zoo_plugins.patch(samplers)
    assert "maac" not in samplers.HYPERPARAMS_SAMPLER
    assert "maac" not in samplers.HYPERPARAMS_CONVERTER
    manager = rl_zoo3.exp_manager.ExperimentManager(argparse.Namespace(), "maac", "Pendulum-v1", "logs")
    assert Path(manager.config).parent.parent == Path(rl_zoo3.utils.__file__).parent


def test_registering_again_changes_nothing(rl_zoo3):
    algorithms, init = dict(rl_zoo3.utils.ALGOS), rl_zoo3.exp_manager.ExperimentManager.__init__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zoo_plugins.register()
    assert rl_zoo3.utils.ALGOS == algorithms
    assert rl_zoo3.exp_manager.ExperimentManager.__init__ is init


# -- The registries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_registries_are_complete(rl_zoo3, name):
    assert issubclass(rl_zoo3.utils.ALGOS[name], BaseAlgorithm)
    assert name in rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER
    assert name in rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER
    assert "default" in yaml.safe_load(zoo_plugins.default_config(name).read_text())


@pytest.mark.parametrize("name", NAMES)
def test_sampler_goes_with_the_default_file_and_a_trial_can_be_read_back(rl_zoo3, tmp_path, name):
    sample = rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER[name]
    convert = rl_zoo3.hyperparams_opt.HYPERPARAMS_CONVERTER[name]
    model_class = rl_zoo3.utils.ALGOS[name]
    manager = make_manager(rl_zoo3, tmp_path, algo=name, optimize_hyperparameters=True)
    assert manager.setup_experiment() is None  # leaves the file's arguments in `_hyperparams`
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        trial = study.ask()
        sampled = sample(trial, 1, 1, {"using_her_replay_buffer": False, "her_kwargs": {}})
        assert set(sampled) <= set(constructor_arguments(model_class))
        # --trial-id has only the stored parameters
        assert convert(study.trials[trial.number].params) == sampled
        # As rl_zoo3 does it: the sample on top of the file. The constructor refuses what does not fit together
        model_class(env="Pendulum-v1", **{**manager._hyperparams, "buffer_size": 1000, **sampled})


def test_sampler_of_maac_by_hand(rl_zoo3):
    params = {
        "one_minus_gamma": 0.01,
        "batch_size_pow": 8,
        "learning_rate": 1e-3,
        "value_learning_rate": 3e-3,
        "tau": 0.01,
        "gradient_steps": 5,
        "ent_coef": "auto",
        "ensemble_size": 7,
        "model_net_arch": "medium",
        "model_learning_rate": 2e-3,
        "model_train_freq": 250,
        "model_gradient_steps": 120,
        "horizon": 5,
        "critic_targets": "steve",
        "critic_batch_size": 512,
        "real_ratio": 0.05,
        "rollout_length": 4,
    }
    trial = optuna.trial.FixedTrial(params)
    assert rl_zoo3.hyperparams_opt.HYPERPARAMS_SAMPLER["maac"](trial, 1, 1, {}) == {
        "gamma": 0.99,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "value_learning_rate": 3e-3,
        "tau": 0.01,
        "train_freq": 1,
        "gradient_steps": 5,
        "ent_coef": "auto",
        "ensemble_size": 7,
        "n_elites": 5,
        "model_net_arch": [200, 200, 200, 200],
        "model_learning_rate": 2e-3,
        "model_train_freq": 250,
        "model_gradient_steps": 120,
        "horizon": 5,
        "on_policy_critic": False,
        "steve": True,
        "steve_horizon": 3,
        "critic_batch_size": 512,
        "real_ratio": 0.05,
        "rollout_length": 4,
    }
    assert trial.user_attrs == {"gamma": 0.99, "batch_size": 256, "n_elites": 5}


# -- Hyperparameter files -----------------------------------------------------------------------------------------------


def test_our_file_is_the_default_and_only_for_us(rl_zoo3, tmp_path):
    ours = zoo_plugins.default_config("maac")
    assert ours.name == "maac.yml"
    assert make_manager(rl_zoo3, tmp_path).config == str(ours)
    assert make_manager(rl_zoo3, tmp_path, config="mine.yml").config == "mine.yml"
    sac = make_manager(rl_zoo3, tmp_path, algo="sac").config
    assert sac == str(Path(rl_zoo3.utils.__file__).parent / "hyperparams" / "sac.yml")


def test_subclasses_of_the_manager_go_on_working(rl_zoo3, tmp_path):
    class Manager(rl_zoo3.exp_manager.ExperimentManager):
        def __init__(self, *args, config="theirs.yml", **kwargs):
            super().__init__(*args, config=config, **kwargs)

    assert Manager(argparse.Namespace(), "maac", "Pendulum-v1", str(tmp_path)).config == "theirs.yml"
    assert Manager(argparse.Namespace(), "maac", "Pendulum-v1", str(tmp_path), config=None).config.endswith("maac.yml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizn": 2}, "no 'horizn' among the hyperparameters of MAAC.*Did you mean `horizon`?"),
        ({"normalise": True}, "no 'normalise' among the hyperparameters of MAAC.*Did you mean `normalize`?"),
        ({"seed": 1}, "no 'seed' among the hyperparameters of MAAC"),
        ({"policy_kwargs": {"critic_layernorm": True}}, "no 'critic_layernorm' among the policy_kwargs.*`critic_layer_norm`?"),
        ({"policy_kwargs": "dict(n_critic=2)"}, "no 'n_critic' among the policy_kwargs of MAAC.*Did you mean `n_critics`?"),
        ({"n_timesteps": None, "n_timestep": 10}, "must have the key 'n_timesteps'.*n_timestep, policy"),
    ],
)
def test_key_that_does_not_exist(rl_zoo3, tmp_path, change, message):
    hyperparams = {"n_timesteps": 10, "policy": "MlpPolicy", **change}
    config = tmp_path / "maac.yml"
    config.write_text(yaml.dump({"default": {key: value for key, value in hyperparams.items() if value is not None}}))
    with pytest.raises(ValueError, match=message) as error:
        make_manager(rl_zoo3, tmp_path, config=str(config)).setup_experiment()
    assert str(config) in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_of_rl_zoo3_and_of_sb3_are_accepted(rl_zoo3, tmp_path):
    config = tmp_path / "maac.yml"
    config.write_text("""
default:
  n_timesteps: 10
  n_envs: 2
  normalize: "dict(norm_obs=True, norm_reward=False)"
  env_wrapper:
    - gymnasium.wrappers.TimeAwareObservation
  callback:
    - stable_baselines3.common.callbacks.CheckpointCallback:
        save_freq: 10
        save_path: x
  monitor_kwargs: dict(allow_early_resets=True)
  noise_type: normal
  noise_std: 0.1
  policy: 'MlpPolicy'
  learning_rate: lin_1e-3
  ent_coef: auto_0.1
  train_freq: [1, "episode"]
  rollout_length: [1, 5, 100, 200]
  model_bfloat16: True
  policy_kwargs: "dict(net_arch=[16], activation_fn=nn.SiLU, n_critics=3, critic_layer_norm=True, critic_dropout=0.01)"
""")
    manager = make_manager(rl_zoo3, tmp_path, config=str(config))
    manager._save_config = lambda saved_hyperparams: None  # wants the parsed command line
    model, _ = manager.setup_experiment()
    assert isinstance(model, MAAC)
    assert model.n_envs == 2
    assert model.action_noise is not None
    assert model.critic.n_critics == 3
    assert model.world_model.ensemble.mlp.use_bfloat16
    model.env.close()
