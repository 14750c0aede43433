"""MEMB for rl_zoo3."""

from typing import TYPE_CHECKING, Any

from sb3_modelbased import MEMB
from zoo_plugins.common import ZooAlgorithm, convert_model_based_params, sample_model_based_params

if TYPE_CHECKING:
    import optuna


def sample_memb_params(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """
    Sampler for MEMB hyperparams.

    :param trial:
    :param n_actions: not used, as in rl_zoo3's sampler for SAC
    :param n_envs: not used
    :param additional_args: not used
    :return: arguments of the constructor
    """
    sampled_params = sample_model_based_params(trial)
    sampled_params["imagination_horizon"] = trial.suggest_int("imagination_horizon", 1, 5)
    sampled_params["value_expansion_horizon"] = trial.suggest_int("value_expansion_horizon", 1, 5)
    sampled_params["model_loss"] = trial.suggest_categorical("model_loss", ["sampled_mse", "nll"])
    sampled_params["reward_net_arch"] = trial.suggest_categorical("reward_net_arch", ["shared", "small", "big"])
    return convert_memb_params(sampled_params)


def convert_memb_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial
    :return: the constructor's arguments for them
    """
    hyperparams = convert_model_based_params(sampled_params)
    hyperparams["reward_net_arch"] = {"shared": None, "small": [64, 64], "big": [200, 200, 200]}[
        hyperparams["reward_net_arch"]
    ]
    return hyperparams


ALGORITHM = ZooAlgorithm(MEMB, sample_memb_params, convert_memb_params)
