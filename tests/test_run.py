"""Training runs of every algorithm, with everything that SB3's algorithms do."""

import re

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from toy_envs import PointEnv

from sb3_modelbased import MAAC
from sb3_modelbased.common.entropy import LearnedEntropyCoef


def tensors_of(agent):
    """Every tensor of the policy, the model and the entropy coefficient."""
    return [*agent.policy.state_dict().values(), *agent.world_model.state_dict().values(), agent.entropy_coef()]


def check_trained(agent, steps):
    assert agent.num_timesteps == steps
    assert agent._n_updates > 0
    assert agent.model_updates > 0
    assert bool(agent.world_model.fitted)
    ranges = (agent.world_model.observation_low, agent.world_model.observation_high)
    assert all(tensor.isfinite().all() for tensor in (*tensors_of(agent), *ranges))


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("normalize", [False, True])
def test_environments(make_agent, n_envs, normalize):
    env = make_vec_env(PointEnv, n_envs=n_envs)
    if normalize:
        env = VecNormalize(env)
    agent = make_agent(env, gradient_steps=-1).learn(60)
    check_trained(agent, 60)
    assert agent._n_updates == 60 - 20  # one update per env step behind `learning_starts`
    # The model is fitted to raw transitions, whatever the agent sees
    data = agent.real_data[:]
    assert len(data.rewards) == 60
    positions = (
        data.observations + 0.1 * agent.world_model.unscale_actions(data.actions) @ th.as_tensor(PointEnv.gains.T).float()
    )
    assert th.allclose(data.next_observations, positions, atol=1e-5)


def test_training_changes_every_network(make_agent):
    agent = make_agent()
    networks = [*agent.policy.children(), agent.world_model.ensemble]
    assert len(networks) >= 4
    before = [[parameter.detach().clone() for parameter in network.parameters()] for network in networks]
    agent.learn(60)
    for network, tensors in zip(networks, before, strict=True):
        assert any(not parameter.equal(tensor) for parameter, tensor in zip(network.parameters(), tensors, strict=True))


@pytest.mark.parametrize("n_envs", [1, 2])
def test_one_seed_gives_one_run(make_agent, n_envs):
    def run(seed):
        # Fresh generators, as a fresh process has them
        return make_agent(make_vec_env(PointEnv, n_envs=n_envs), seed=seed).learn(44)

    first, second, other = run(1), run(1), run(2)
    for a, b in zip(tensors_of(first), tensors_of(second), strict=True):
        assert a.equal(b)
    assert np.array_equal(first.replay_buffer.observations, second.replay_buffer.observations)
    assert not all(a.equal(b) for a, b in zip(tensors_of(first), tensors_of(other), strict=True))


def test_learning_twice(make_agent):
    agent = make_agent().learn(40)
    fit_at = agent.model_fit_at
    agent.learn(30, reset_num_timesteps=False)
    check_trained(agent, 70)
    assert agent.model_fit_at > fit_at
    assert agent.replay_buffer.size() == 70


def test_learning_anew_goes_on_fitting_the_model(make_agent):
    agent = make_agent().learn(70)
    updates = agent.model_updates
    agent.learn(50)  # the env steps start from zero again
    check_trained(agent, 50)
    assert agent.model_updates > updates
    assert 0 < agent.model_fit_at <= 50


def test_the_model_is_fitted_when_it_is_due(make_agent):
    fits = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            if self.model.model_fit_at is not None and self.model.model_fit_at not in fits:
                fits.append(self.model.model_fit_at)
            return True

    make_agent(model_train_freq=15).learn(60, callback=Watch())
    assert fits == [21, 36, 51]


@pytest.mark.parametrize(
    ("train_freq", "gradient_steps"), [((1, "episode"), -1), ((2, "episode"), 3), (4, 2), ((5, "step"), -1)]
)
def test_train_freq(make_agent, train_freq, gradient_steps):
    agent = make_agent(train_freq=train_freq, gradient_steps=gradient_steps).learn(80)
    assert agent.num_timesteps >= 80
    assert agent._n_updates > 0
    assert agent.model_updates > 0


@pytest.mark.parametrize("n_envs", [1, 2])
def test_action_noise(make_agent, n_envs):
    noise = NormalActionNoise(np.zeros(2), 0.5 * np.ones(2))
    agent = make_agent(make_vec_env(PointEnv, n_envs=n_envs), action_noise=noise).learn(40)
    check_trained(agent, 40)
    assert np.abs(agent.replay_buffer.actions).max() == 1.0  # noise reaches the bounds, and no further


@pytest.mark.parametrize("kwargs", [{}, {"sde_sample_freq": 4}, {"use_sde_at_warmup": True}])
def test_gsde(make_agent, kwargs):
    agent = make_agent(use_sde=True, **kwargs)
    log_std = agent.actor.log_std.detach().clone()
    agent.learn(40)
    check_trained(agent, 40)
    assert not agent.actor.log_std.equal(log_std)


@pytest.mark.parametrize("ent_coef", ["auto", "auto_0.1", 0.2, 0.0])
def test_entropy_coefficients(make_agent, ent_coef):
    agent = make_agent(ent_coef=ent_coef).learn(26)
    learned = isinstance(agent.entropy_coef, LearnedEntropyCoef)
    assert learned == isinstance(ent_coef, str)
    start = {"auto": 1.0, "auto_0.1": 0.1}.get(ent_coef, ent_coef)
    assert (agent.entropy_coef().item() == pytest.approx(start)) != learned


def test_known_reward_and_termination(make_agent):
    seen = []

    def reward_fn(observations, actions, next_observations):
        seen.append(actions)
        return -next_observations.square().sum(dim=-1) - 0.1 * actions.square().sum(dim=-1)

    agent = make_agent(reward_fn=reward_fn, termination_fn=lambda s, a, s2: s2[..., 0].abs() > 1)
    assert agent.world_model.target_dim == 3
    agent.learn(50)
    check_trained(agent, 50)
    actions = th.cat([batch.detach().reshape(-1, 2) for batch in seen[2:]])  # the first calls check its shape
    assert actions[:, 0].min() < 0 < 1 < actions[:, 0].max() <= 3.0
    assert actions.amin(dim=0).tolist() >= [-1.0, 0.0]
    assert 0 <= actions[:, 1].min() < actions[:, 1].max() <= 0.5


def test_a_memory_efficient_replay_buffer(make_agent):
    buffer = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    agent = make_agent(buffer_size=60, **buffer).learn(100)
    check_trained(agent, 100)
    data = agent.real_data[:]
    # Every step obeys the dynamics, the last ones of the episodes included
    expected = (
        data.observations + 0.1 * agent.world_model.unscale_actions(data.actions) @ th.as_tensor(PointEnv.gains.T).float()
    )
    assert th.allclose(data.next_observations, expected, atol=1e-5)
    assert len(data.rewards) == 60
    assert data.terminated.sum() >= 3


@pytest.mark.parametrize("extras", [{"critic_layer_norm": True}, {"critic_dropout": 0.1}, {"n_critics": 3}, {"n_critics": 1}])
def test_critics(make_agent, algorithm, extras):
    kwargs = {"steve": False} if algorithm is MAAC else {}  # STEVE needs two critics
    check_trained(make_agent(policy_kwargs={"net_arch": [16], **extras}, **kwargs).learn(30), 30)


def test_bfloat16(make_agent, tmp_path):
    agent = make_agent(model_bfloat16=True, policy_kwargs={"net_arch": [16], "critic_bfloat16": True})
    check_trained(agent.learn(30), 30)
    assert agent.critic.q_networks.use_bfloat16
    agent.save(tmp_path / "agent")
    loaded = type(agent).load(tmp_path / "agent", env=agent.get_env())
    assert loaded.world_model.ensemble.mlp.use_bfloat16
    rows = th.rand(20, 3), th.rand(20, 2)
    predictions = [one.world_model.predict_members(*rows) for one in (agent, loaded)]
    for ours, theirs in zip(*predictions, strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("sizes", [{"ensemble_size": 1, "n_elites": 1}, {"ensemble_size": 4, "n_elites": 4}])
def test_ensembles(make_agent, algorithm, sizes):
    if algorithm.__name__ == "MPDP" and sizes["n_elites"] == 1:
        pytest.skip("MPDP plans by the disagreement of at least two elites")
    check_trained(make_agent(**sizes).learn(30), 30)


def test_a_learning_rate_of_the_critics(make_agent):
    agent = make_agent(learning_rate=2e-3, value_learning_rate=lambda progress: 1e-2 * progress)
    agent.learn(40)
    rates = [agent.actor.optimizer.param_groups[0]["lr"], agent.critic.optimizer.param_groups[0]["lr"]]
    assert [float(rate) for rate in rates] == pytest.approx([2e-3, 1e-2 * agent._current_progress_remaining])
    with pytest.raises(ValueError, match=r"value_learning_rate.*lin_1e-3.*Pass a number"):
        make_agent(value_learning_rate="lin_1e-3")


def test_a_learning_rate_schedule(make_agent):
    rates = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(self.model.actor.optimizer.param_groups[0]["lr"])
            return True

    make_agent(learning_rate=lambda progress: 1e-2 * progress).learn(50, callback=Watch())
    # The rate of the update before the last env step
    assert float(rates[-1]) == pytest.approx(1e-2 * (1 - 49 / 50))
    assert float(rates[0]) == pytest.approx(1e-2)


def test_callbacks(make_agent, tmp_path):
    class StopAt45(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 45

    evaluation = EvalCallback(
        make_vec_env(PointEnv), eval_freq=20, n_eval_episodes=1, verbose=0, best_model_save_path=tmp_path
    )
    checkpoints = CheckpointCallback(save_freq=20, save_path=tmp_path, save_replay_buffer=True)
    agent = make_agent().learn(100, callback=CallbackList([evaluation, checkpoints, StopAt45()]))
    assert agent.num_timesteps == 45
    assert evaluation.n_calls == 45
    names = {path.name for path in tmp_path.iterdir()}
    assert {"best_model.zip", "rl_model_20_steps.zip", "rl_model_40_steps.zip", "rl_model_replay_buffer_40_steps.pkl"} <= names


@pytest.mark.filterwarnings("ignore::tqdm.TqdmExperimentalWarning")
def test_progress_bar(make_agent):
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    assert make_agent().learn(30, progress_bar=True).num_timesteps == 30


class Record(KVWriter):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.dumps: list[dict[str, object]] = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.dumps.append(dict(key_values))

    def close(self) -> None:
        pass


def test_what_is_logged(make_agent):
    agent = make_agent()
    record = Record()
    agent.set_logger(Logger(None, [record]))
    agent.learn(80, log_interval=1)
    keys = set().union(*record.dumps)
    assert keys >= {
        *(f"train/{name}" for name in ("actor_loss", "critic_loss", "ent_coef", "ent_coef_loss", "entropy", "learning_rate")),
        *("train/actor_grad_norm", "train/n_updates"),
        *(f"model/{name}" for name in ("holdout_mse", "holdout_nll", "epochs", "elites", "imagined_transitions", "updates")),
        *(f"time/{name}_seconds" for name in ("env", "model_fit", "updates")),
        *("time/total_timesteps", "time/fps", "rollout/ep_rew_mean", "rollout/ep_len_mean"),
    }
    if hasattr(agent, "imaginary_buffer"):
        assert keys >= {"model/rollout_length", "time/imagination_seconds"}
    for key in keys:
        assert len(key) <= 36, key  # SB3 cuts longer ones in its table
        assert re.fullmatch(r"[a-z]+/[a-z_0-9]+", key), key
    last = record.dumps[-1]
    assert last["model/updates"] == agent.model_updates > 0
    assert 0 < last["model/imagined_transitions"] <= agent.imagined_transitions
    assert all(np.isfinite(value) for key, value in last.items() if key != "model/elites")
    elites = [dump["model/elites"] for dump in record.dumps if "model/elites" in dump]
    assert elites[-1] == str(sorted(agent.world_model.elites.tolist()))


def test_means_since_the_last_dump(make_agent):
    agent = make_agent()
    record = Record()
    agent.set_logger(Logger(None, [record]))
    agent.learn(40, log_interval=10**6)
    agent.metrics.clear()
    agent.metrics.add(critic_loss=th.tensor(1.0), actor_loss=th.tensor([5.0]))
    agent.metrics.add(critic_loss=th.tensor(2.5))
    agent.dump_logs()
    assert record.dumps[-1]["train/critic_loss"] == 1.75
    assert record.dumps[-1]["train/actor_loss"] == 5.0
    agent.dump_logs()
    assert "train/critic_loss" not in record.dumps[-1]


def test_tensorboard(make_agent, tmp_path, algorithm):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_agent(tensorboard_log=str(tmp_path)).learn(60, log_interval=1)
    (run,) = tmp_path.iterdir()
    assert run.name == f"{algorithm.__name__}_1"
    events = event_accumulator.EventAccumulator(str(run))
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/critic_loss", "model/holdout_mse", "rollout/ep_rew_mean"} <= scalars
    assert not {"model/elites", "train/n_updates"} & scalars
