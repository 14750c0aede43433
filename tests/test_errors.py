"""Every mistake gets an error that names the argument, what was expected, what came and what to do; and nothing is lost."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import make_small
from gymnasium import spaces
from model_helpers import make_world_model, mirror_of, random_transitions
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from test_save_load import state_of, tensors_in
from toy_envs import PointEnv

from sb3_modelbased import MAAC
from sb3_modelbased.common.errors import NonFiniteError, check_at_least, check_count, check_share, constructor_arguments
from sb3_modelbased.common.model_trainer import ModelTrainer
from sb3_modelbased.common.policies import ModelBasedSACPolicy

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)


class SpacesEnv(PointEnv):
    def __init__(self, observation_space=None, action_space=None) -> None:
        super().__init__()
        self.observation_space = observation_space or self.observation_space
        self.action_space = action_space or self.action_space


def check_message(error, *parts):
    """One paragraph that has every part."""
    message = str(error.value)
    assert "\n" not in message.replace("\n ", " ") or "[" in message  # arrays may be broken over lines
    for part in parts:
        assert str(part) in message
    assert len(message) < 1000


# -- Spaces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "parts"),
    [
        (SpacesEnv(action_space=spaces.Discrete(3)), ["continuous actions", "Discrete(3)", "Use DQN or PPO"]),
        (
            SpacesEnv(action_space=spaces.MultiDiscrete([2, 2])),
            ["continuous actions", "MultiDiscrete([2 2])", "Use DQN or PPO"],
        ),
        (
            SpacesEnv(action_space=spaces.Box(-np.inf, np.inf, (2,))),
            ["bounded actions", "Box(-inf, inf, (2,)", "RescaleAction"],
        ),
        (SpacesEnv(action_space=spaces.Box(0.0, np.inf, (2,))), ["bounded actions", "Box(0.0, inf", "finite bounds"]),
        (SpacesEnv(spaces.Box(0, 255, (3, 36, 36), np.uint8)), ["vector observations", "(3, 36, 36)", "encode images"]),
        (SpacesEnv(spaces.Box(0, 255, (36, 36, 3), np.uint8)), ["vector observations", "(36, 36, 3)", "encode images"]),
        (SpacesEnv(spaces.Dict({"a": BOX})), ["vector observations", "Dict(", "FlattenObservation"]),
        (SpacesEnv(spaces.Discrete(4)), ["vector observations", "Discrete(4)"]),
    ],
    ids=lambda value: None if isinstance(value, list) else repr(value.observation_space)[:20] + repr(value.action_space)[:20],
)
def test_spaces(algorithm, make_agent, env, parts):
    with pytest.raises(ValueError, match=algorithm.__name__) as error:
        make_agent(env)
    check_message(error, *parts)


def test_the_env_of_a_loaded_agent(make_agent, algorithm, tmp_path):
    make_agent().save(tmp_path / "agent")
    with pytest.raises(ValueError, match="continuous actions"):
        algorithm.load(tmp_path / "agent", env=SpacesEnv(action_space=spaces.Discrete(3)))
    agent = make_agent()
    with pytest.raises(ValueError, match="continuous actions"):
        agent.set_env(SpacesEnv(action_space=spaces.Discrete(3)))


# -- Arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("gamma", 1.5, "within [0, 1]"),
        ("tau", -0.1, "within [0, 1]"),
        ("buffer_size", 0, ">= 1"),
        ("learning_starts", -1, ">= 0"),
        ("batch_size", 0, ">= 1"),
        ("gradient_steps", -2, ">= -1"),
        ("target_update_interval", 0, ">= 1"),
        ("ensemble_size", 0, ">= 1"),
        ("n_elites", 0, ">= "),
        ("model_train_freq", 0, ">= 1"),
        ("model_gradient_steps", 0, ">= 1"),
        ("model_batch_size", 0, ">= 1"),
        ("ensemble_size", "7", "whole number"),
        ("model_train_freq", 2.5, "whole number"),
        ("ent_coef", "automatic", "must be a number >= 0"),
        ("target_entropy", "low", "a number or 'auto'"),
        ("reward_fn", "gymnasium", "must be a function"),
        ("termination_fn", "gym", "'gymnasium' or None"),
    ],
)
def test_arguments_of_all_algorithms(make_agent, name, value, expected):
    with pytest.raises(ValueError, match=f"`{name}`") as error:
        make_agent(**{name: value})
    check_message(error, expected, repr(value))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("horizon", -1, ">= 0"),
        ("horizon", 1.5, "whole number"),
        ("horizon", True, "whole number"),
        ("n_action_samples", 0, ">= 1"),
        ("steve_horizon", -2, ">= 0"),
        ("real_ratio", 1.5, "within [0, 1]"),
        ("real_ratio", -0.1, "within [0, 1]"),
        ("real_ratio", math.nan, "within [0, 1]"),
        ("rollout_length", 0, "model steps >= 1"),
        ("rollout_length", [1, 5], "[first, last, start, end]"),
        ("rollout_freq", 0, ">= 1"),
        ("rollout_batch_size", 0, ">= 1"),
        ("imaginary_buffer_size", 3, ">= 8"),  # a batch
    ],
)
def test_arguments_of_maac(name, value, expected):
    with pytest.raises(ValueError, match=f"`{name}` must be") as error:
        make_small(MAAC, **{name: value})
    check_message(error, expected, f"but it is {value!r}", "Pass")


@pytest.mark.parametrize(
    ("name", "key", "right"),
    [
        ("policy_kwargs", "critic_layernorm", "critic_layer_norm"),
        ("model_kwargs", "holdout_ration", "holdout_ratio"),
        ("model_kwargs", "learning_rate", None),  # there is an argument of the agent for it
    ],
)
def test_unknown_keys_of_a_dictionary(make_agent, name, key, right):
    with pytest.raises(ValueError, match=f"`{name}` must hold arguments of") as error:
        make_agent(**{name: {key: 0.25}})
    check_message(error, repr(key), "0.25", f"Did you mean `{right}`?" if right else "", "Remove it")


def test_errors_from_elsewhere_are_left_alone(make_agent):
    with pytest.raises(TypeError, match="momentum"):  # it is no key of policy_kwargs itself
        make_agent(policy_kwargs={"optimizer_kwargs": {"momentum": 0.9}})


def test_keys_of_a_policy_that_takes_any():
    class Policy(ModelBasedSACPolicy):
        def __init__(self, *args, **kw):
            self.extra = kw.pop("extra", None)
            super().__init__(*args, **kw)

    agent = MAAC(Policy, PointEnv(), policy_kwargs={"extra": 3}, device="cpu")
    assert agent.policy.extra == 3


def test_a_buffer_of_several_steps(make_agent):
    with pytest.raises(ValueError, match="`replay_buffer_class` must store single transitions") as error:
        make_agent(replay_buffer_class=NStepReplayBuffer)
    check_message(error, "NStepReplayBuffer", "Leave it out")


def test_steve_needs_critics_that_disagree():
    with pytest.raises(ValueError, match="`steve`") as error:
        make_small(MAAC, policy_kwargs={"n_critics": 1})
    check_message(error, "two critics", "n_critics=1", "Pass n_critics=2")
    make_small(MAAC, policy_kwargs={"n_critics": 1}, steve=False)


def test_numbers_of_numpy_are_numbers():
    agent = make_small(MAAC, horizon=np.int64(1), real_ratio=np.float32(0.5), n_elites=np.int32(2))
    assert agent.horizon == 1


def test_an_ensemble_smaller_than_its_elites(make_agent):
    with pytest.raises(ValueError, match="`ensemble_size` must be at least `n_elites`") as error:
        make_agent(ensemble_size=2, n_elites=3)
    check_message(error, "ensemble_size=2", "n_elites=3", "Pass n_elites=2 or fewer")


def test_an_on_policy_critic_needs_a_horizon():
    with pytest.raises(ValueError, match="`on_policy_critic`") as error:
        make_small(MAAC, on_policy_critic=True, horizon=0)
    check_message(error, "horizon >= 1", "horizon=0", "Pass")


@pytest.mark.parametrize("name", ["reward_fn", "termination_fn"])
@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda s, a, s2: s[..., :1], (3, 2, 1)),
        (lambda s, a, s2: s[0, :, 0], (2,)),
        (lambda s, a, s2: s.sum(), ()),
        (lambda s, a, s2: 1.0, "float"),
        (lambda s, a, s2: s[..., 0].numpy(), "ndarray"),
    ],
)
def test_functions_of_the_wrong_shape(make_agent, name, function, got):
    with pytest.raises(ValueError, match=f"`{name}` must return a tensor") as error:
        make_agent(**{name: function})
    check_message(error, "(3, 2)", f"it is {got}", "Work on the last dimension only")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("gama", "gamma"),
        ("model_netarch", "model_net_arch"),
        ("ensamble_size", "ensemble_size"),
        ("learning_start", "learning_starts"),
    ],
)
def test_an_unknown_argument_and_the_nearest_name(algorithm, make_agent, wrong, right):
    with pytest.raises(TypeError, match=f"{algorithm.__name__} has no argument `{wrong}`") as error:
        make_agent(**{wrong: 3})
    check_message(error, f"{wrong}=3", f"Did you mean `{right}`?", "Remove it")


def test_an_argument_like_no_other(make_agent):
    with pytest.raises(TypeError, match="has no argument `xyzzy`") as error:
        make_agent(xyzzy=3)
    assert "Did you mean" not in str(error.value)


def test_known_arguments_are_those_of_every_constructor():
    names = constructor_arguments(MAAC)
    assert {"policy", "env", "horizon", "gamma", "ensemble_size", "policy_kwargs", "seed"} <= set(names)
    assert not {"self", "kwargs", "unknown"} & set(names)
    assert names.index("horizon") < names.index("ensemble_size")
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("value", "minimum"), [(1, 2), (math.nan, 0), ("1", 0), (None, 0), (True, 0)])
def test_check_at_least(value, minimum):
    with pytest.raises(ValueError, match=f"`x` must be a number >= {minimum}, but it is {value!r}. Pass x={minimum} or more"):
        check_at_least("x", value, minimum)


def test_what_the_checks_let_pass():
    check_at_least("x", 0.5, 0.5)
    check_at_least("x", math.inf, 0)
    check_count("x", 3, 3)
    check_share("x", 0)
    check_share("x", 1.0)


# -- Numbers that are not finite ---------------------------------------------------------------------------------------


def bad_env(**kwargs):
    return PointEnv(limit=math.inf, bad_step=25, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"bad_observation": math.nan},
        {"bad_observation": math.inf},
        {"bad_reward": math.nan},
        {"bad_reward": -math.inf},
        {"bad_observation": math.nan, "ends_badly": True},  # it is in no observation that the agent acts on
    ],
)
def test_a_nan_from_the_environment(make_agent, algorithm, tmp_path, kwargs):
    agent = make_agent(bad_env(**kwargs))
    with pytest.raises(NonFiniteError, match="environment must return finite") as error:
        agent.learn(100)
    check_message(error, "env step 25", "nan" if any(map(math.isnan, kwargs.values())) else "inf", "VecCheckNan")
    # Nothing that is not finite was kept
    assert agent.replay_buffer.size() == 24
    for array in (agent.replay_buffer.observations, agent.replay_buffer.next_observations, agent.replay_buffer.rewards):
        assert np.isfinite(array).all()
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    assert all(tensor.isfinite().all() for tensor in tensors_in(loaded.policy.state_dict()))
    loaded.learn(5, reset_num_timesteps=False)


def test_a_nan_at_a_reset(make_agent):
    class BadReset(PointEnv):
        def reset(self, **kwargs):
            observation, info = super().reset(**kwargs)
            return observation * math.nan, info

    with pytest.raises(NonFiniteError, match="env step 1 "):
        make_agent(BadReset()).learn(10)


def test_a_nan_of_one_environment_of_two(make_agent):
    envs = iter([bad_env(), bad_env(bad_reward=math.nan)])
    agent = make_agent(make_vec_env(lambda: next(envs), n_envs=2))
    with pytest.raises(NonFiniteError, match="env step 50 "):
        agent.learn(200)


def poison(agent, where):
    """Let the training produce a number that is not finite at the 30th update."""
    update, updates = agent._update, []

    def poisoned(batch_size):
        updates.append(None)
        update(batch_size)
        if len(updates) == 30:
            if where == "loss":
                agent.metrics.add(critic_loss=th.tensor(math.nan))
            elif where == "policy":
                next(agent.actor.parameters()).data.fill_(math.nan)
            elif where == "optimizer":
                next(iter(agent.actor.optimizer.state.values()))["exp_avg_sq"].fill_(math.inf)
            else:
                agent.entropy_coef.log_ent_coef.data.fill_(math.nan)

    agent._update = poisoned


# Too few updates for a regular look at whether everything is finite, and enough for one
@pytest.mark.parametrize(
    ("where", "steps"), [("loss", 35), ("loss", 110), ("policy", 35), ("optimizer", 35), ("optimizer", 110), ("entropy", 35)]
)
def test_divergence_stops_and_leaves_the_last_finite_parameters(make_agent, algorithm, tmp_path, where, steps):
    agent = make_agent(learning_starts=20, model_train_freq=1000, ent_coef="auto")
    agent.learn(21)
    good = state_of(agent)
    del agent._finite_parameters
    agent._finite_parameters = {}
    poison(agent, where)
    with pytest.raises(NonFiniteError, match="must stay finite") as error:
        agent.learn(steps, reset_num_timesteps=False)
    check_message(error, "critic_loss" if where == "loss" else "did not", "Lower `learning_rate`", "at update", "env step")
    # Back at the last look, which was before the first update of the second call, in everything that is trained
    for name in ("policy", "actor.optimizer", "critic.optimizer", "entropy_coef", "entropy_coef.optimizer"):
        for ours, expected in zip(tensors_in(agent.get_parameters()[name]), tensors_in(good[name]), strict=True):
            assert ours.equal(expected), name
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    for name, part in loaded.get_parameters().items():
        assert all(tensor.isfinite().all() for tensor in tensors_in(part)), name
    loaded.learn(5, reset_num_timesteps=False)


def test_divergence_is_noticed_without_torchs_validation(make_agent, monkeypatch):
    # torch.compile turns it off for the whole process
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", False)
    agent = make_agent(learning_starts=20, model_train_freq=1000)
    agent.learn(21)
    good = state_of(agent)["policy"]
    poison(agent, "policy")
    with pytest.raises(NonFiniteError, match="the policy's outputs did not"):
        agent.learn(60, reset_num_timesteps=False)
    for ours, expected in zip(tensors_in(agent.get_parameters()["policy"]), tensors_in(good), strict=True):
        assert ours.equal(expected)


def test_a_real_divergence_is_noticed(make_agent, tmp_path, algorithm):
    agent = make_agent(learning_rate=1e30)
    with pytest.raises(NonFiniteError, match="must stay finite"):
        agent.learn(60)
    assert all(tensor.isfinite().all() for tensor in tensors_in(agent.get_parameters()["policy"]))


def test_a_model_that_diverges_is_as_it_was():
    data = mirror_of(random_transitions(200))
    trainer = ModelTrainer(make_world_model(), batch_size=16, max_gradient_steps=20)
    trainer.fit(data)
    before = {name: tensor.clone() for name, tensor in trainer.world_model.state_dict().items()}
    trainer.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match="world model") as error:
        trainer.fit(data)
    check_message(error, "must stay finite", "nan", "Lower `model_learning_rate`")
    for name, tensor in trainer.world_model.state_dict().items():
        assert tensor.equal(before[name]), name
    # And it can be fitted again
    trainer.learning_rate = 1e-3
    assert np.isfinite(trainer.fit(data).holdout_mse)


def test_data_that_no_model_can_be_fitted_to():
    transitions = random_transitions(50)
    trainer = ModelTrainer(make_world_model(), max_gradient_steps=20)
    before = {name: tensor.clone() for name, tensor in trainer.world_model.state_dict().items()}
    with pytest.raises(NonFiniteError, match="world model"):
        trainer.fit(mirror_of(transitions._replace(rewards=transitions.rewards + math.inf)))
    for name, tensor in trainer.world_model.state_dict().items():
        assert tensor.equal(before[name]), name


def test_a_model_that_diverges_in_training(make_agent, algorithm, tmp_path):
    agent = make_agent().learn(21)
    agent.model_trainer.learning_rate = 1e30
    with pytest.raises(NonFiniteError, match="world model"):
        agent.learn(60, reset_num_timesteps=False)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    for name, part in loaded.get_parameters().items():
        assert all(tensor.isfinite().all() for tensor in tensors_in(part)), name


def test_nonfinite_errors_prune_a_trial_of_the_zoo():
    # rl-zoo3 prunes a trial on AssertionError and ValueError, and stops the search on anything else
    assert issubclass(NonFiniteError, ValueError)


def test_gym_ids_that_do_not_exist(make_agent):
    with pytest.raises(gym.error.Error):
        make_agent("NoSuchTask-v0")


def test_argument_of_sb3_that_would_be_ignored_is_refused():
    with pytest.raises(TypeError, match="MAAC has no argument `n_steps`"):
        MAAC("MlpPolicy", "Pendulum-v1", n_steps=3)
