"""Errors that name the wrong key of a hyperparameter file, before anything is created or trained."""

from collections.abc import Iterable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_modelbased.common.errors import constructor_arguments, nearest_name

# What rl_zoo3 reads from the YAML itself (rl_zoo3.exp_manager), to suggest the nearest name
ZOO_KEYS = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "noise_std",
    "noise_type",
    "normalize",
    "policy",
    "vec_env_wrapper",
)
# rl_zoo3 passes these to the constructor too, from the command line: in a YAML they would come twice
COMMAND_LINE_ARGUMENTS = ("env", "tensorboard_log", "seed", "verbose", "device", "_init_setup_model")
# The algorithm passes these to its policy, next to `policy_kwargs`
SET_BY_ALGORITHM = ("observation_space", "action_space", "lr_schedule", "use_sde")


def check_n_timesteps(hyperparams: dict[str, Any], config: str) -> None:
    """
    :param hyperparams: What the hyperparameter file says for this environment
    :param config: The hyperparameter file
    :raises ValueError: if ``n_timesteps`` is missing: rl_zoo3 needs it, also where ``-n`` overrides it
    """
    if "n_timesteps" not in hyperparams:
        raise ValueError(
            f"The hyperparameters in {config} must have the key 'n_timesteps' (a number of env steps), but their keys are "
            f"{', '.join(sorted(hyperparams))}. Correct its name, or add a line like 'n_timesteps: 10000'."
        )


def check_hyperparams(model_class: type[BaseAlgorithm], hyperparams: dict[str, Any], config: str) -> None:
    """
    The constructor would refuse these keys as well, but not when training continues (``-i``), and without knowing
    rl_zoo3's own keys.

    :param model_class: The algorithm
    :param hyperparams: What rl_zoo3 is about to pass to its constructor
    :param config: The hyperparameter file
    :raises ValueError: if a key is no argument of the constructor, or one of ``policy_kwargs`` none of the policy's
    """
    name = model_class.__name__
    # rl_zoo3 makes `action_noise` of the two keys that it still holds
    given = [key for key in hyperparams if key not in ("noise_type", "noise_std")]
    arguments = [argument for argument in constructor_arguments(model_class) if argument not in COMMAND_LINE_ARGUMENTS]
    _check_keys(f"the hyperparameters of {name}", given, [*arguments, *ZOO_KEYS], config)

    policy = hyperparams.get("policy")
    policy_class = model_class.policy_aliases.get(policy) if isinstance(policy, str) else policy
    if policy_class is not None:
        arguments = [argument for argument in constructor_arguments(policy_class) if argument not in SET_BY_ALGORITHM]
        # SB3 writes `use_sde` into the dictionary that it is given: one that was used before has it
        given = [key for key in hyperparams.get("policy_kwargs") or {} if key != "use_sde"]
        _check_keys(f"the policy_kwargs of {name}", given, arguments, config)


def _check_keys(what: str, given: Iterable[str], accepted: list[str], config: str) -> None:
    for key in given:
        if key not in accepted:
            raise ValueError(
                f"There is no '{key}' among {what}, but it came from {config}, -params or --trial-id."
                f"{nearest_name(key, accepted)} Remove it, or use one of: {', '.join(sorted(accepted))}."
            )
