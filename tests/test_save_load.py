"""What is saved, what is loaded, and training that goes on."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import PointEnv

# What an agent counts, beside its parameters
COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "model_fit_at",
    "model_fit_rows",
    "model_updates",
    "imagined_transitions",
)


def tensors_in(state: Any) -> Iterator[th.Tensor]:
    """Every tensor in nested state dicts."""
    if isinstance(state, th.Tensor):
        # The range of plausible observations is infinite before the first fit
        if not (state.isinf().all() and state.ndim == 1):
            yield state
    elif isinstance(state, dict):
        for part in state.values():
            yield from tensors_in(part)
    elif isinstance(state, list | tuple):
        for part in state:
            yield from tensors_in(part)


def state_of(agent: Any) -> dict[str, Any]:
    """A copy of everything that an agent trains or fits."""
    return copy.deepcopy(agent.get_parameters())


def assert_equal(a: Any, b: Any, path: str = "") -> int:
    """Compare recursively; return the number of tensors."""
    assert type(a) is type(b), path
    if isinstance(a, th.Tensor):
        assert a.dtype == b.dtype, path
        assert th.equal(a, b), path
        return 1
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        return sum(assert_equal(a[key], b[key], f"{path}.{key}") for key in a)
    if isinstance(a, list | tuple):
        assert len(a) == len(b), path
        return sum(assert_equal(x, y, f"{path}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True)))
    assert a == b, path
    return 0


def test_saved_is_what_is_loaded(make_agent, algorithm, tmp_path):
    agent = make_agent().learn(30)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    state, restored = state_of(agent), state_of(loaded)
    # Each part is there, and not empty
    assert {
        "policy",
        "actor.optimizer",
        "critic.optimizer",
        "entropy_coef",
        "world_model",
        "model_trainer.optimizer",
    } <= state.keys()
    assert {"entropy_coef.optimizer"} <= state.keys()
    for name in state:
        assert list(tensors_in(state[name])), name
    assert assert_equal(state, restored) > 50
    model = loaded.world_model
    for name in ("input_normalizer.mean", "target_normalizer.std", "elites", "observation_low", "terminations_seen", "fitted"):
        assert name in model.state_dict()
    for counter in COUNTERS:
        assert getattr(loaded, counter) == getattr(agent, counter), counter
    # Imagination goes on where it stopped: the network that it evaluates is that of the elites
    observations, actions = th.randn(9, 3), 2 * th.rand(9, 2) - 1
    steps = []
    for world_model in (agent.world_model, model):
        th.manual_seed(0)
        steps.append(world_model.step(observations, actions))
    assert_equal(tuple(steps[0]), tuple(steps[1]))
    assert agent.entropy_coef().equal(loaded.entropy_coef())


def test_no_tensor_is_forgotten(make_agent, algorithm, tmp_path):
    """Every module and optimiser that hangs on the agent is in what is saved."""
    agent = make_agent().learn(30)
    pointers = {tensor.data_ptr() for tensor in tensors_in(agent.get_parameters())}
    for name, value in vars(agent).items():
        optimizer = getattr(value, "optimizer", None)
        if isinstance(value, th.nn.Module):
            for key, tensor in value.state_dict().items():
                if not tensor.isinf().all():
                    assert tensor.data_ptr() in pointers, f"{name}.{key}"
        if isinstance(optimizer, th.optim.Optimizer):
            for state in optimizer.state.values():
                for key, tensor in state.items():
                    assert tensor.data_ptr() in pointers, f"{name}.optimizer {key}"


@pytest.mark.parametrize("with_buffer", [False, True])
def test_training_goes_on(make_agent, algorithm, tmp_path, with_buffer):
    agent = make_agent().learn(30)
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    before = state_of(loaded)
    if with_buffer:
        loaded.load_replay_buffer(tmp_path / "buffer")
    updates, fits = loaded._n_updates, loaded.model_updates
    loaded.learn(3, reset_num_timesteps=False)
    assert loaded.num_timesteps == 33
    assert loaded._n_updates > updates
    assert not any(tensor.isnan().any() for tensor in tensors_in(loaded.get_parameters()))
    assert len(loaded.real_data) == (33 if with_buffer else 3)
    if not with_buffer:
        # Three transitions are not reason enough to forget what the model knows
        assert_equal(before["world_model"], state_of(loaded)["world_model"])
        assert loaded.model_updates == fits
    loaded.learn(37, reset_num_timesteps=False)
    assert loaded.model_updates > fits
    assert loaded.model_fit_at > 33


def test_a_buffer_replaced_in_training(make_agent, tmp_path):
    agent, other = make_agent().learn(30), make_agent(seed=5).learn(50)
    other.save_replay_buffer(tmp_path / "buffer")
    agent.load_replay_buffer(tmp_path / "buffer")
    agent.learn(2, reset_num_timesteps=False)
    rewards = other.replay_buffer.rewards[:50, 0]
    assert len(agent.real_data) == 52
    assert np.array_equal(np.sort(agent.real_data[:].rewards[:50]), np.sort(rewards))


def test_an_agent_that_never_trained(make_agent, algorithm, tmp_path):
    agent = make_agent()
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    assert_equal(state_of(agent), state_of(loaded))
    loaded.learn(30)
    assert loaded.model_updates > 0


def test_loading_without_an_environment(make_agent, algorithm, tmp_path):
    agent = make_agent().learn(30)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent")
    observation = np.array([0.1, 0.2, -0.3], dtype=np.float32)
    expected, _ = agent.predict(observation, deterministic=True)
    action, _ = loaded.predict(observation, deterministic=True)
    assert np.array_equal(action, expected)
    loaded.set_env(PointEnv())
    loaded.learn(30)


def test_loading_with_more_environments(make_agent, algorithm, tmp_path):
    make_agent().learn(30).save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=make_vec_env(PointEnv, n_envs=2))
    loaded.learn(60)
    assert len(loaded.real_data) == 60


def test_known_functions_are_saved(make_agent, algorithm, tmp_path):
    agent = make_agent(reward_fn=lambda s, a, s2: s2[..., 0] * 7, termination_fn=lambda s, a, s2: s2[..., 1] > 5).learn(30)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv())
    observations = th.tensor([[1.0, 2.0, 3.0], [1.0, 9.0, 3.0]])
    assert loaded.world_model.reward_fn(observations, observations, observations).tolist() == [7.0, 7.0]
    assert loaded.world_model.termination_fn(observations, observations, observations).tolist() == [False, True]
    loaded.learn(30)


def test_arguments_given_when_loading(make_agent, algorithm, tmp_path):
    agent = make_agent(termination_fn=lambda s, a, s2: s[..., 0] > 100, model_learning_rate=1e-3).learn(30)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv(), model_learning_rate=0.0, model_kwargs={"weight_decay": 0.0})
    before = [parameter.clone() for parameter in loaded.world_model.ensemble.parameters()]
    loaded.learn(30)
    assert loaded.model_updates > agent.model_updates
    for old, new in zip(before, loaded.world_model.ensemble.parameters(), strict=True):
        assert new.equal(old)
    with pytest.raises((ValueError, RuntimeError), match="size mismatch"):  # it has no classifier of terminations
        algorithm.load(tmp_path / "agent", env=PointEnv(), termination_fn=None)


def test_arguments_are_saved(make_agent, algorithm, tmp_path):
    kwargs = {"gamma": 0.9, "ensemble_size": 4, "model_net_arch": [7], "ent_coef": 0.1, "model_kwargs": {"patience": 3}}
    agent = make_agent(policy_kwargs={"net_arch": [8], "critic_layer_norm": True}, **kwargs).learn(30)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent")
    for name, value in kwargs.items():
        assert getattr(loaded, name) == value
    assert loaded.model_trainer.patience == 3
    assert loaded.policy.critic_extras["layer_norm"]
    assert loaded.entropy_coef().item() == pytest.approx(0.1)
    assert algorithm.load(tmp_path / "agent", gamma=0.8).gamma == 0.8


def test_a_fixed_entropy_coefficient_given_when_loading(make_agent, algorithm, tmp_path):
    make_agent(ent_coef=0.4).learn(25).save(tmp_path / "agent")
    assert algorithm.load(tmp_path / "agent").entropy_coef().item() == pytest.approx(0.4)
    loaded = algorithm.load(tmp_path / "agent", env=PointEnv(), ent_coef=0.1)
    assert loaded.entropy_coef().item() == pytest.approx(0.1)
    loaded.learn(5)
    with pytest.raises(RuntimeError, match=r"fixed or a learned `ent_coef`.*cannot be changed when an agent is loaded"):
        algorithm.load(tmp_path / "agent", ent_coef="auto")


def test_other_networks_when_loading(make_agent, algorithm, tmp_path):
    make_agent(ensemble_size=4).learn(25).save(tmp_path / "agent")
    with pytest.raises(RuntimeError, match="`ensemble_size`"):
        algorithm.load(tmp_path / "agent", ensemble_size=5)


def test_get_and_set_parameters(make_agent):
    agent, other = make_agent().learn(25), make_agent(seed=9).learn(25)
    state = state_of(agent)
    with pytest.raises(AssertionError):
        assert_equal(state, state_of(other))
    other.set_parameters(state)
    assert assert_equal(state, state_of(other)) > 50
    # The copy that imagination evaluates followed
    for ours, theirs in zip(
        agent.world_model.elite_ensemble.parameters(), other.world_model.elite_ensemble.parameters(), strict=True
    ):
        assert ours.equal(theirs)
    with pytest.raises(ValueError, match="policy"):
        other.set_parameters({name: part for name, part in state.items() if name != "policy"})
    # A CUDA graph would go on with the optimisers' old tensors
    other._captured_update = other.model_trainer._captured_step = "a graph"
    other.set_parameters({"policy": state["policy"]}, exact_match=False)
    assert other._captured_update is other.model_trainer._captured_step is None
    other.learn(5)


def test_vec_normalize_goes_along(make_agent, algorithm, tmp_path):
    env = VecNormalize(make_vec_env(PointEnv))
    agent = make_agent(env).learn(40)
    agent.save(tmp_path / "agent")
    env.save(str(tmp_path / "env"))
    restored = VecNormalize.load(str(tmp_path / "env"), make_vec_env(PointEnv))
    loaded = algorithm.load(tmp_path / "agent", env=restored)
    observations, rewards = th.randn(5, 3), th.randn(5)
    assert th.allclose(loaded._view.observations(observations), agent._view.observations(observations), atol=0.1)
    loaded.learn(30)
    loaded._view.refresh()
    np.testing.assert_allclose(
        loaded._view.observations(observations), restored.normalize_obs(observations.numpy()), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(loaded._view.rewards(rewards), restored.normalize_reward(rewards.numpy()), rtol=1e-3, atol=1e-4)


def test_another_environment_for_the_same_agent(make_agent):
    agent = make_agent(VecNormalize(make_vec_env(PointEnv))).learn(30)
    other = VecNormalize(make_vec_env(PointEnv))
    agent.set_env(other)
    agent.learn(30, reset_num_timesteps=False)
    agent._view.refresh()
    observations = th.randn(5, 3)
    np.testing.assert_allclose(
        agent._view.observations(observations), other.normalize_obs(observations.numpy()), rtol=1e-3, atol=1e-4
    )


def test_no_data_and_no_copies_are_in_the_file(make_agent, tmp_path):
    sizes = []
    for steps in (25, 100):
        agent = make_agent().learn(steps)
        agent.save(tmp_path / f"agent{steps}")
        sizes.append((tmp_path / f"agent{steps}.zip").stat().st_size)
    assert sizes[1] < 1.2 * sizes[0]
