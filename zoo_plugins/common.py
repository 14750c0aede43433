"""What the algorithms share: their description for rl_zoo3 and the part of the Optuna search that is not their own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.base_class import BaseAlgorithm

if TYPE_CHECKING:
    import optuna  # not needed for training


@dataclass(frozen=True)
class ZooAlgorithm:
    """
    :param model_class: The algorithm
    :param sample_params: rl_zoo3's Optuna sampler: ``(trial, n_actions, n_envs, additional_args)`` to arguments of the
        constructor
    :param convert_params: Parameters of a stored trial to arguments of the constructor (``--trial-id``)
    """

    model_class: type[BaseAlgorithm]
    sample_params: Callable[["optuna.Trial", int, int, dict], dict[str, Any]]
    convert_params: Callable[[dict[str, Any]], dict[str, Any]]


def sample_model_based_params(trial: "optuna.Trial") -> dict[str, Any]:
    """
    The search space that any off-policy algorithm with a learned ensemble has. The network of actor and critic is left
    to the YAML: rl_zoo3 would replace the whole of ``policy_kwargs`` by what is sampled here.

    :param trial:
    :return: sampled values, for ``convert_model_based_params``
    """
    one_minus_gamma = trial.suggest_float("one_minus_gamma", 0.0001, 0.03, log=True)
    # From 2**6=64 to 2**9=512
    batch_size_pow = trial.suggest_int("batch_size_pow", 6, 9)
    learning_rate = trial.suggest_float("learning_rate", 5e-5, 0.002, log=True)
    value_learning_rate = trial.suggest_float("value_learning_rate", 1e-4, 0.004, log=True)
    # Polyak coeff
    tau = trial.suggest_float("tau", 0.001, 0.08, log=True)
    # Update to data ratio, for n_envs=1 and train_freq=1. All measured entries lie between 1 and 5
    gradient_steps = trial.suggest_categorical("gradient_steps", [1, 2, 3, 5])
    # A fixed coefficient, or a learned one with its initial value
    ent_coef = trial.suggest_categorical("ent_coef", ["auto", "auto_0.1", 0.2, 0.05, 0.01])

    ensemble_size = trial.suggest_int("ensemble_size", 3, 10)
    model_net_arch = trial.suggest_categorical("model_net_arch", ["small", "medium", "big"])
    model_learning_rate = trial.suggest_float("model_learning_rate", 2e-4, 0.004, log=True)
    model_train_freq = trial.suggest_categorical("model_train_freq", [125, 250, 500, 1000])
    model_gradient_steps = trial.suggest_categorical("model_gradient_steps", [60, 120, 240, 480])

    # Display true values
    trial.set_user_attr("gamma", 1 - one_minus_gamma)
    trial.set_user_attr("batch_size", 2**batch_size_pow)
    trial.set_user_attr("n_elites", _n_elites(ensemble_size))

    return {
        "one_minus_gamma": one_minus_gamma,
        "batch_size_pow": batch_size_pow,
        "learning_rate": learning_rate,
        "value_learning_rate": value_learning_rate,
        "tau": tau,
        "gradient_steps": gradient_steps,
        "ent_coef": ent_coef,
        "ensemble_size": ensemble_size,
        "model_net_arch": model_net_arch,
        "model_learning_rate": model_learning_rate,
        "model_train_freq": model_train_freq,
        "model_gradient_steps": model_gradient_steps,
    }


def convert_model_based_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial
    :return: the constructor's arguments for them; parameters of the algorithm's own are passed through
    """
    hyperparams = sampled_params.copy()

    hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    hyperparams["batch_size"] = 2 ** hyperparams.pop("batch_size_pow")
    hyperparams["train_freq"] = 1
    hyperparams["n_elites"] = _n_elites(hyperparams["ensemble_size"])
    hyperparams["model_net_arch"] = {
        "small": [128, 128, 128],
        "medium": [200, 200, 200, 200],
        "big": [400, 400, 400, 400],
    }[hyperparams["model_net_arch"]]

    return hyperparams


def _n_elites(ensemble_size: int) -> int:
    # The share of MBPO and MPDP: 5 of 7
    return round(ensemble_size * 5 / 7)
