"""MAAC for rl_zoo3."""

from typing import TYPE_CHECKING, Any

from sb3_modelbased import MAAC
from zoo_plugins.common import ZooAlgorithm, convert_model_based_params, sample_model_based_params

if TYPE_CHECKING:
    import optuna


def sample_maac_params(trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict) -> dict[str, Any]:
    """
    Sampler for MAAC hyperparams.

    :param trial:
    :param n_actions: not used, as in rl_zoo3's sampler for SAC
    :param n_envs: not used
    :param additional_args: not used
    :return: arguments of the constructor
    """
    sampled_params = sample_model_based_params(trial)
    # 0 model steps in the actor is MBPO's SAC
    sampled_params["horizon"] = trial.suggest_int("horizon", 0, 5)
    sampled_params["steve"] = trial.suggest_categorical("steve", [True, False])
    sampled_params["real_ratio"] = trial.suggest_float("real_ratio", 0.02, 1.0, log=True)
    sampled_params["rollout_length"] = trial.suggest_int("rollout_length", 1, 20, log=True)
    return convert_model_based_params(sampled_params)


ALGORITHM = ZooAlgorithm(MAAC, sample_maac_params, convert_model_based_params)
