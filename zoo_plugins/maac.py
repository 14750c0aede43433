"""MAAC for rl_zoo3."""

from typing import TYPE_CHECKING, Any

from sb3_modelbased import MAAC
from zoo_plugins.common import ZooAlgorithm, convert_model_based_params, sample_model_based_params

if TYPE_CHECKING:
    import optuna

# Of STEVE-DDPG (Buckman et al., 2018)
MAX_STEVE_HORIZON = 3


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
    sampled_params["horizon"] = trial.suggest_int("horizon", 1, 10, log=True)
    sampled_params["critic_targets"] = trial.suggest_categorical("critic_targets", ["on_policy", "steve", "one_step"])
    # None: all pairs of the imagined trajectories. It only matters for "on_policy"
    sampled_params["critic_batch_size"] = trial.suggest_categorical("critic_batch_size", [None, 256, 512])
    sampled_params["real_ratio"] = trial.suggest_float("real_ratio", 0.02, 1.0, log=True)
    sampled_params["rollout_length"] = trial.suggest_int("rollout_length", 1, 20, log=True)
    return convert_maac_params(sampled_params)


def convert_maac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial
    :return: arguments of the constructor
    """
    hyperparams = convert_model_based_params(sampled_params)
    critic_targets = hyperparams.pop("critic_targets")
    # Both, because the YAML may have set either
    hyperparams["on_policy_critic"] = critic_targets == "on_policy"
    hyperparams["steve"] = critic_targets == "steve"
    if hyperparams["steve"]:
        # Each elite follows a trajectory of its own, which makes these steps the most expensive ones
        hyperparams["steve_horizon"] = min(hyperparams["horizon"], MAX_STEVE_HORIZON)
    return hyperparams


ALGORITHM = ZooAlgorithm(MAAC, sample_maac_params, convert_maac_params)
