"""MPDP for rl_zoo3."""

from typing import TYPE_CHECKING, Any

from sb3_modelbased import MPDP
from zoo_plugins.common import ZooAlgorithm, convert_model_based_params, sample_model_based_params

if TYPE_CHECKING:
    import optuna


def sample_mpdp_params(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """
    Sampler for MPDP hyperparams.

    :param trial:
    :param n_actions: not used, as in rl_zoo3's sampler for SAC
    :param n_envs: not used
    :param additional_args: not used
    :return: arguments of the constructor
    """
    sampled_params = sample_model_based_params(trial)
    sampled_params["horizon"] = trial.suggest_categorical("horizon", [1, 3, 5, 10, 25])
    # On log u: the median of log u was near 3 on the tasks that were looked at (docs/algos/mpdp.md)
    sampled_params["uncertainty_threshold"] = trial.suggest_float("uncertainty_threshold", 0.0, 5.0)
    sampled_params["uncertainty_coef"] = trial.suggest_float("uncertainty_coef", 0.001, 1.0, log=True)
    sampled_params["uncertainty_penalty"] = trial.suggest_categorical("uncertainty_penalty", ["linear", "log"])
    # Display true values: every member judges the others
    trial.set_user_attr("n_elites", sampled_params["ensemble_size"])
    return convert_mpdp_params(sampled_params)


def convert_mpdp_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial
    :return: the constructor's arguments for them
    """
    hyperparams = convert_model_based_params(sampled_params)
    hyperparams["n_elites"] = hyperparams["ensemble_size"]
    return hyperparams


ALGORITHM = ZooAlgorithm(MPDP, sample_mpdp_params, convert_mpdp_params)
