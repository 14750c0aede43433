"""
Registration with rl_zoo3: algorithms, default hyperparameters, Optuna samplers and converters.

Installing the package is enough: its start-up file (``zoo_plugins/startup``) calls :func:`patch` when rl_zoo3 is
imported. Scripts that switched that file off call :func:`register`.
"""

import functools
import importlib
import inspect
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import sb3_modelbased
from zoo_plugins.checks import check_hyperparams, check_n_timesteps
from zoo_plugins.common import ZooAlgorithm

# rl_zoo3's name of an algorithm -> the module with its ``ZooAlgorithm``, named ALGORITHM.
# Adding an algorithm takes a line here, that module, and ``hyperparams/<name>.yml``.
ALGORITHM_MODULES = {
    "maac": "zoo_plugins.maac",
    "memb": "zoo_plugins.memb",
    "mpdp": "zoo_plugins.mpdp",
}


@functools.cache
def load_algorithms() -> dict[str, ZooAlgorithm]:
    """
    Import the algorithms; those that cannot be imported are left out, with one warning for all of them.

    :return: rl_zoo3's name of each algorithm -> what rl_zoo3 needs to know of it
    """
    algorithms, failures = {}, []
    for name, module_name in ALGORITHM_MODULES.items():
        try:
            algorithms[name] = importlib.import_module(module_name).ALGORITHM
        except Exception as error:  # a broken install must not take rl_zoo3's own algorithms with it
            failures.append(f"{name} ({type(error).__name__}: {error})")
    if failures:
        warnings.warn(
            f"sb3-modelbased could not import {', '.join(failures)}, so rl_zoo3 does not know of it; its own algorithms "
            "are not affected. Reinstall sb3-modelbased, or set SB3_MODELBASED_ZOO=0 to silence this.",
            stacklevel=2,
        )
    return algorithms


def default_config(name: str) -> Path:
    """
    :param name: rl_zoo3's name of the algorithm
    :return: Its YAML file of tuned hyperparameters
    """
    package = Path(sb3_modelbased.__file__).parent
    # A wheel carries the folder inside the package, a checkout beside it
    installed = package / "hyperparams" / f"{name}.yml"
    return installed if installed.is_file() else package.parent / "hyperparams" / f"{name}.yml"


def patch(module: ModuleType) -> None:
    """
    Add our algorithms to one of the three modules of rl_zoo3 that hold its registries. Patching twice does no harm.

    :param module: ``rl_zoo3.utils``, ``rl_zoo3.hyperparams_opt`` or ``rl_zoo3.exp_manager``
    """
    {
        "rl_zoo3.utils": _patch_utils,
        "rl_zoo3.hyperparams_opt": _patch_hyperparams_opt,
        "rl_zoo3.exp_manager": _patch_exp_manager,
    }[module.__name__](module)


def register() -> None:
    """Import rl_zoo3 and add our algorithms to it: the explicit way, for scripts and with ``SB3_MODELBASED_ZOO=0``."""
    for module_name in ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager"):
        patch(importlib.import_module(module_name))


def _our_algorithms() -> dict[str, ZooAlgorithm]:
    """
    :return: Those algorithms whose name in rl_zoo3 stands for our class
    """
    registered = importlib.import_module("rl_zoo3.utils").ALGOS
    return {name: ours for name, ours in load_algorithms().items() if registered.get(name) is ours.model_class}


def _patch_utils(module: ModuleType) -> None:
    for name, ours in load_algorithms().items():
        # In place: rl_zoo3, train, enjoy and exp_manager hold this same dict
        registered = module.ALGOS.setdefault(name, ours.model_class)
        if registered is not ours.model_class:
            warnings.warn(
                f"rl_zoo3 already has an algorithm '{name}' ({registered.__module__}.{registered.__qualname__}); "
                f"sb3-modelbased does not replace it by its own {ours.model_class.__qualname__}. Use the class in a script, "
                "or set SB3_MODELBASED_ZOO=0 to silence this.",
                stacklevel=2,
            )


def _patch_hyperparams_opt(module: ModuleType) -> None:
    for name, ours in _our_algorithms().items():
        module.HYPERPARAMS_SAMPLER.setdefault(name, ours.sample_params)
        module.HYPERPARAMS_CONVERTER.setdefault(name, ours.convert_params)


def _patch_exp_manager(module: ModuleType) -> None:
    manager_class = module.ExperimentManager
    original_init = manager_class.__init__
    original_preprocess = manager_class._preprocess_hyperparams
    if getattr(manager_class, "patched_by_sb3_modelbased", False):
        return  # by the start-up file or an earlier register()
    signature = inspect.signature(original_init)

    @functools.wraps(original_init)
    def init_with_our_config(*args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(*args, **kwargs)
        algo = arguments.arguments["algo"]
        # rl_zoo3 looks in its own folder only; --conf-file and subclasses that set `config` keep their choice
        if not arguments.arguments.get("config") and algo in _our_algorithms():
            arguments.arguments["config"] = str(default_config(algo))
        original_init(*arguments.args, **arguments.kwargs)

    @functools.wraps(original_preprocess)
    def preprocess_and_check(self: Any, hyperparams: dict[str, Any]) -> Any:
        ours = _our_algorithms().get(self.algo)
        if ours is None:
            return original_preprocess(self, hyperparams)
        check_n_timesteps(hyperparams, self.config)
        # Checked after rl_zoo3 has taken its own keys out: a key that a later rl_zoo3 adds needs no change here
        constructor_arguments, *rest = original_preprocess(self, hyperparams)
        check_hyperparams(ours.model_class, constructor_arguments, self.config)
        return constructor_arguments, *rest

    manager_class.__init__ = init_with_our_config
    manager_class._preprocess_hyperparams = preprocess_and_check
    manager_class.patched_by_sb3_modelbased = True
