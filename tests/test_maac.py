"""MAAC against SB3's SAC, against loops over single samples, and against finite differences."""

import numpy as np
import pytest
import torch as th
from conftest import make_small
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from test_policies import stacked
from torch import nn
from toy_envs import PointEnv

from sb3_modelbased import MAAC
from sb3_modelbased.common.imagination import imagine
from sb3_modelbased.common.world_model import ModelStep

# -- SAC --------------------------------------------------------------------------------------------------------------


def record_parameters(agent, steps, batched):
    """Actor, critics and targets before every rollout and at the end, with the entropy coefficient."""
    history = []

    class Recorder(BaseCallback):
        def _on_rollout_start(self) -> None:
            self.record()

        def _on_training_end(self) -> None:
            self.record()

        def _on_step(self) -> bool:
            return True

        def record(self) -> None:
            critics = (agent.critic, agent.critic_target)
            tensors = [*agent.actor.parameters()]
            for critic in critics:
                tensors += list(critic.parameters()) if batched else stacked(critic)
            if batched:
                tensors.append(agent.entropy_coef().reshape(1))
            else:
                tensors.append(agent.ent_coef_tensor.reshape(1) if agent.log_ent_coef is None else agent.log_ent_coef.exp())
            history.append([tensor.detach().clone() for tensor in tensors])

    agent.learn(steps, callback=Recorder())
    return history


@pytest.mark.parametrize(
    ("kwargs", "n_envs", "normalize"),
    [
        ({"ent_coef": "auto"}, 1, False),
        ({"ent_coef": 0.2, "gradient_steps": 2}, 1, False),
        ({"ent_coef": "auto_0.5", "target_entropy": -3.0}, 1, True),
        ({"ent_coef": "auto", "gradient_steps": -1}, 2, False),
        ({"ent_coef": 0.1, "train_freq": 5, "gradient_steps": 6}, 2, True),
        ({"use_sde": True}, 1, False),
        ({"learning_rate": lambda progress: 1e-2 * progress, "gamma": 0.9, "tau": 0.1}, 1, False),
    ],
)
def test_without_a_model_it_is_sac(kwargs, n_envs, normalize):
    def train(cls, steps=70, **more):
        env = make_vec_env("Pendulum-v1", n_envs=n_envs, seed=3)
        if normalize:
            env = VecNormalize(env)
        shared = {"learning_starts": 20, "batch_size": 16, "seed": 1, "device": "cpu", "policy_kwargs": {"net_arch": [16, 16]}}
        agent = cls("MlpPolicy", env, **shared | {"learning_rate": 3e-3} | kwargs | more)
        return record_parameters(agent, steps, batched=cls is MAAC)

    # One after the other: they draw from the same global generators
    expected = train(SAC)
    ours = train(MAAC, horizon=0, steve=False, real_ratio=1.0)
    assert len(ours) == len(expected)
    assert len(ours) > 5
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        for x, y in zip(a, b, strict=True):
            assert th.allclose(x, y, atol=1e-4, rtol=1e-3), f"after {step} rollouts they differ by {(x - y).abs().max()}"
    # They learned something, or the test would be empty
    assert all(not x.equal(y) for x, y in zip(expected[0][:-1], expected[-1][:-1], strict=True))


def test_without_a_model_none_is_fitted():
    agent = make_small(MAAC, horizon=0, steve=False, real_ratio=1.0).learn(60)
    assert agent.model_fit_at is None
    assert agent.model_updates == agent.imagined_transitions == 0


def test_any_use_of_the_model_has_it_fitted():
    for kwargs in [{"horizon": 1, "steve": False}, {"horizon": 0, "steve_horizon": 1}, {"horizon": 0, "real_ratio": 0.5}]:
        agent = make_small(MAAC, **{"real_ratio": 1.0} | kwargs).learn(25)
        assert agent.model_updates > 0
        assert agent.imagined_transitions > 0


# -- A world that can be followed by hand ------------------------------------------------------------------------------

OBSERVATIONS, ACTIONS = 2, 1
GAMMA, ALPHA = 0.9, 0.3
# Two members of a linear world: s' = A s + B a, r = c s + d a, and a chance of ending that depends on s'_0
A = np.array([[[0.9, 0.2], [-0.1, 0.8]], [[0.7, 0.1], [0.2, 0.9]]])
B = np.array([[[0.5], [0.3]], [[0.4], [-0.2]]])
C = np.array([[1.0, -0.5], [0.8, -0.4]])
D = np.array([0.3, 0.6])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class LinearWorld:
    """The world as MAAC calls it; with ``step`` only the first member."""

    n_elites = 2

    def step(self, observations, actions):
        return self._step(0, observations, actions)

    def step_members(self, observations, actions):
        steps = [self._step(i, observations[i], actions[i]) for i in range(2)]
        return ModelStep(*(th.stack(field) for field in zip(*steps, strict=True)))

    def _step(self, member, observations, actions):
        a, b, c = (th.as_tensor(matrix[member], dtype=th.float32) for matrix in (A, B, C))
        next_observations = observations @ a.T + actions @ b.T
        rewards = observations @ c + float(D[member]) * actions[:, 0]
        return ModelStep(next_observations, rewards, (2 * next_observations[:, 0]).sigmoid())


def world_by_hand(member, state, action):
    """The same for one sample, in numpy: next state, reward, chance that the step ends the task."""
    next_state = A[member] @ state + B[member] @ action
    return next_state, C[member] @ state + D[member] * action[0], sigmoid(2 * next_state[0])


class BoxEnv(PointEnv):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-10.0, 10.0, (OBSERVATIONS,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)


def agent_in_linear_world(**kwargs):
    policy_kwargs = {"net_arch": [4], "activation_fn": nn.Tanh}
    agent = make_small(
        MAAC, BoxEnv(), **{"policy_kwargs": policy_kwargs, "ent_coef": ALPHA, "gamma": GAMMA, "learning_rate": 0.0} | kwargs
    )
    agent.world_model = LinearWorld()
    for parameter in agent.critic.parameters():
        parameter.data *= 2.0  # else the values hardly matter
    return agent


def random_batch(n=5, seed=0):
    rng = np.random.default_rng(seed)
    tensors = [rng.normal(size=(n, size)) for size in (OBSERVATIONS, ACTIONS, OBSERVATIONS)]
    dones = (np.arange(n) == 1).astype(float)[:, None]
    rewards = rng.normal(size=(n, 1))
    return ReplayBufferSamples(*(th.as_tensor(x, dtype=th.float32) for x in (*tensors, dones, rewards)))


# -- STEVE ------------------------------------------------------------------------------------------------------------


def policy_by_hand(state, step):
    """A deterministic stand-in for the policy: one action and its log-probability for one state."""
    return np.array([np.tanh(0.7 * state[0] - 0.4 * state[1])]), 0.5 * state[0] - 0.2


def critics_by_hand(state, action):
    return np.array([1.5 * state[0] - state[1] + action[0], 0.9 * state[0] + 0.4 * state[1] ** 2 - action[0]])


def batched_policy(observations, step):
    actions, log_probs = zip(*(policy_by_hand(row, step) for row in observations.numpy()), strict=True)
    return th.as_tensor(np.stack(actions), dtype=th.float32), th.as_tensor(np.array(log_probs), dtype=th.float32)


def batched_critics(observations, actions):
    values = [critics_by_hand(s, a) for s, a in zip(observations.numpy(), actions.numpy(), strict=True)]
    return th.as_tensor(np.stack(values, axis=1), dtype=th.float32)


def steve_target_of_one_sample(reward, done, next_state, horizon):
    """Every horizon's target of every member and critic, one by one, then the mixture over horizons."""
    targets = np.zeros((horizon + 1, 2, 2))  # [horizon, member, critic]
    for h in range(horizon + 1):
        for member in range(2):
            state, total, survival = next_state, reward, GAMMA * (1 - done)
            for _ in range(h):
                action, log_prob = policy_by_hand(state, 0)
                following, model_reward, ended = world_by_hand(member, state, action)
                total += survival * (model_reward - ALPHA * log_prob)
                survival *= GAMMA * (1 - ended)
                state = following
            action, log_prob = policy_by_hand(state, 0)
            targets[h, member] = total + survival * (critics_by_hand(state, action) - ALPHA * log_prob)
    weights = 1 / (targets.reshape(horizon + 1, -1).var(axis=1) + 1e-8)
    weights /= weights.sum()
    return (weights * targets.min(axis=2).mean(axis=1)).sum(), weights


@pytest.mark.parametrize("horizon", [0, 1, 3])
def test_steve_targets_against_a_loop_over_samples(horizon):
    agent = agent_in_linear_world(horizon=1, steve_horizon=horizon)
    agent._policy_fn, agent.critic_target = batched_policy, batched_critics
    batch = random_batch()
    targets = agent._batch_targets(batch, th.tensor(ALPHA))
    assert targets.shape == (5,)
    all_weights = []
    for i in range(5):
        expected, weights = steve_target_of_one_sample(
            batch.rewards[i].item(), batch.dones[i].item(), batch.next_observations[i].numpy().astype(float), horizon
        )
        assert targets[i].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
        all_weights.append(weights)
    # Behind a terminal step only the reward counts
    assert targets[1].item() == pytest.approx(batch.rewards[1].item(), rel=1e-4)
    if horizon:  # several horizons must matter, or the mixture would be untested
        assert (np.array(all_weights)[[0, 2, 3, 4]].max(axis=1) < 0.99).any()


def test_one_step_targets_are_sacs():
    agent = agent_in_linear_world(horizon=2, steve=False)
    agent._policy_fn, agent.critic_target = batched_policy, batched_critics
    batch = random_batch()
    targets = agent._batch_targets(batch, th.tensor(ALPHA))
    for i in range(5):
        state = batch.next_observations[i].numpy().astype(float)
        action, log_prob = policy_by_hand(state, 0)
        value = critics_by_hand(state, action).min() - ALPHA * log_prob
        expected = batch.rewards[i].item() + GAMMA * (1 - batch.dones[i].item()) * value
        assert targets[i].item() == pytest.approx(expected, rel=1e-4)


def test_steve_with_one_member_goes_by_the_critics():
    agent = make_small(MAAC, n_elites=1, ensemble_size=1).learn(30)
    assert np.isfinite(agent.metrics.means()["critic_loss"])


def test_targets_of_a_trajectory_against_a_loop_over_samples():
    horizon = 3
    agent = agent_in_linear_world(horizon=horizon, on_policy_critic=True)
    agent._policy_fn, agent.critic_target = batched_policy, batched_critics
    starts = random_batch().observations
    trajectory = imagine(agent.world_model, batched_policy, starts, horizon)
    last_actions, last_log_probs = batched_policy(trajectory.observations[-1], horizon)
    targets = agent._trajectory_targets(trajectory, last_actions, last_log_probs, th.tensor(ALPHA)).reshape(horizon, 5)
    for i in range(5):
        state = starts[i].numpy().astype(float)
        rewards, ends, log_probs = [], [], []
        for _ in range(horizon):
            action, log_prob = policy_by_hand(state, 0)
            state, reward, ended = world_by_hand(0, state, action)
            rewards, ends, log_probs = [*rewards, reward], [*ends, ended], [*log_probs, log_prob]
        action, log_prob = policy_by_hand(state, 0)
        value, log_probs = critics_by_hand(state, action).min(), [*log_probs, log_prob]
        for t in reversed(range(horizon)):
            value = rewards[t] + GAMMA * (1 - ends[t]) * (value - ALPHA * log_probs[t + 1])
            assert targets[t, i].item() == pytest.approx(value, rel=1e-4, abs=1e-5)


def test_the_critics_learn_from_some_pairs_of_the_trajectories(monkeypatch):
    agent = agent_in_linear_world(horizon=3, on_policy_critic=True, critic_batch_size=2)
    agent._sample_batch = lambda batch_size: random_batch()
    targets_of, forward, seen = agent._trajectory_targets, agent.critic.forward, []
    monkeypatch.setattr(agent, "_trajectory_targets", lambda *args: seen.append((args[0], targets_of(*args))) or seen[-1][1])
    monkeypatch.setattr(agent.critic, "forward", lambda *args: seen.append(args) or forward(*args))
    found = []
    for _ in range(8):
        seen.clear()
        agent.metrics.clear()
        agent._sample_and_update(5)
        (trajectory, targets), learned_from = seen[:2]
        pairs = th.cat([trajectory.observations[:-1], trajectory.actions], dim=-1).flatten(0, 1)
        rows = [(pairs - pair).abs().sum(dim=1).argmin().item() for pair in th.cat(learned_from, dim=1)]
        assert th.cat(learned_from, dim=1).equal(pairs[rows])
        ends = trajectory.terminated
        reached = th.stack([th.ones(5), 1 - ends[0], (1 - ends[0]) * (1 - ends[1])]).flatten()
        with th.no_grad():
            errors = (forward(*learned_from) - targets[rows]).square() * reached[rows]
        assert agent.metrics.means()["critic_loss"] == pytest.approx(0.5 * errors.mean(dim=1).sum().item(), rel=1e-5)
        found += rows
    assert len(set(found)) > 5


def test_the_critics_loss_on_a_trajectory_against_a_loop_over_samples():
    """Half the squared error of every step, weighed by the chance that it is reached, summed over critics."""
    horizon = 3
    agent = agent_in_linear_world(horizon=horizon, on_policy_critic=True)
    agent.critic_target.load_state_dict(agent.critic.state_dict())
    deterministic = agent._policy_fn

    def policy(observations, step=0):
        actions, log_probs = deterministic(observations)
        recorded.append(log_probs.detach().numpy().astype(float))
        return actions, log_probs

    recorded = []
    agent._policy_fn = policy
    batch = random_batch()
    agent._sample_batch = lambda batch_size: batch
    trajectories = []
    original = agent._trajectory_targets

    def targets_of(trajectory, *rest):
        trajectories.append((trajectory, rest[0].detach().numpy().astype(float)))
        return original(trajectory, *rest)

    agent._trajectory_targets = targets_of
    critics = [
        [(layer.weight[j].detach().numpy().astype(float), layer.bias[j].detach().numpy().astype(float)[0]) for layer in layers]
        for layers in [(agent.critic.q_networks[0], agent.critic.q_networks[2])]
        for j in range(2)
    ]
    agent._sample_and_update(5)

    def q(critic, state, action):
        (w1, b1), (w2, b2) = critic
        return (np.tanh(np.concatenate([state, action]) @ w1 + b1) @ w2 + b2).item()

    trajectory, last_actions = trajectories[0]
    states, actions, _, rewards, ends = (field.detach().numpy().astype(float) for field in trajectory)
    total = 0.0
    for i in range(5):
        value, targets = min(q(critic, states[-1, i], last_actions[i]) for critic in critics), []
        for t in reversed(range(horizon)):
            value = rewards[t, i] + GAMMA * (1 - ends[t, i]) * (value - ALPHA * recorded[t + 1][i])
            targets.insert(0, value)
        reached = 1.0
        for t in range(horizon):
            total += reached * sum((q(critic, states[t, i], actions[t, i]) - targets[t]) ** 2 for critic in critics)
            reached *= 1 - ends[t, i]
    assert agent.metrics.means()["critic_loss"] == pytest.approx(0.5 * total / (5 * horizon), rel=1e-4)


# -- The actor --------------------------------------------------------------------------------------------------------


def numpy_layers(modules):
    return [(m.weight.detach().numpy().astype(float), m.bias.detach().numpy().astype(float)) for m in modules]


def actor_loss_by_hand(parameters, critics, starts, noise):
    """MAAC's objective for given noise, sample by sample and step by step, in double precision."""
    (w, b), (w_mean, b_mean), (w_std, b_std) = parameters

    def act(state, zeta):
        hidden = np.tanh(w @ state + b)
        mean, log_std = w_mean @ hidden + b_mean, np.clip(w_std @ hidden + b_std, -20, 2)
        unsquashed = mean + np.exp(log_std) * zeta
        action = np.tanh(unsquashed)
        log_prob = (-0.5 * zeta**2 - log_std - 0.5 * np.log(2 * np.pi)).sum() - np.log(1 - action**2 + 1e-6).sum()
        return action, log_prob

    def q(state, action):
        inputs = np.concatenate([state, action])
        return [(np.tanh(inputs @ w1 + b1) @ w2 + b2).item() for (w1, b1), (w2, b2) in critics]

    horizon = len(noise) - 1
    losses = []
    for i, state in enumerate(starts):
        total, survival, log_probs = 0.0, 1.0, []
        for t in range(horizon):
            action, log_prob = act(state, noise[t][i])
            log_probs.append(log_prob)
            state, reward, ended = world_by_hand(0, state, action)
            total += survival * reward
            survival *= GAMMA * (1 - ended)
        action, log_prob = act(state, noise[horizon][i])
        log_probs.append(log_prob)
        losses.append(ALPHA * log_probs[0] - total - survival * min(q(state, action)))
    return np.mean(losses)


@pytest.mark.parametrize(("horizon", "n_action_samples"), [(0, 1), (1, 1), (3, 1), (2, 3)])
def test_actor_loss_and_gradient_against_finite_differences(monkeypatch, horizon, n_action_samples):
    agent = agent_in_linear_world(horizon=horizon, n_action_samples=n_action_samples, steve=False)
    batch = random_batch()
    n = 5 * n_action_samples
    noise = np.random.default_rng(1).normal(size=(horizon + 1, n, ACTIONS))
    draws = iter(th.as_tensor(noise, dtype=th.float32))
    monkeypatch.setattr(
        "sb3_modelbased.common.policies.standard_normal",
        lambda like: next(draws, th.zeros(like.shape)).reshape(like.shape),
    )
    agent._sample_batch = lambda batch_size: batch
    agent._sample_and_update(5)  # with a learning rate of zero

    actor = agent.actor
    layers = numpy_layers([actor.latent_pi[0], actor.mu, actor.log_std])
    first, last = agent.critic.q_networks[0], agent.critic.q_networks[2]
    critics = [
        [
            (layer.weight[j].detach().numpy().astype(float), layer.bias[j].detach().numpy().astype(float)[0])
            for layer in (first, last)
        ]
        for j in range(2)
    ]
    starts = np.tile(batch.observations.numpy().astype(float), (n_action_samples, 1))
    loss = actor_loss_by_hand(layers, critics, starts, noise)
    assert agent.metrics.means()["actor_loss"] == pytest.approx(loss, rel=1e-4, abs=1e-5)

    squared_norm = 0.0
    for layer, module in zip(layers, [actor.latent_pi[0], actor.mu, actor.log_std], strict=True):
        for array, parameter in zip(layer, (module.weight, module.bias), strict=True):
            for index in np.ndindex(array.shape):
                value, delta = array[index], 1e-6
                array[index] = value + delta
                above = actor_loss_by_hand(layers, critics, starts, noise)
                array[index] = value - delta
                below = actor_loss_by_hand(layers, critics, starts, noise)
                array[index] = value
                derivative = (above - below) / (2 * delta)
                squared_norm += derivative**2
                assert parameter.grad[index].item() == pytest.approx(derivative, rel=2e-3, abs=2e-5)
    assert agent.metrics.means()["actor_grad_norm"] == pytest.approx(squared_norm**0.5, rel=1e-3)
    assert agent.metrics.means()["entropy"] == pytest.approx(-np.mean(first_log_probs(layers, starts, noise)), rel=1e-3)
    assert squared_norm > 1e-4


def first_log_probs(layers, starts, noise):
    """Of the first action, through the loss of an agent whose value is zero."""
    zero = [[(np.zeros((OBSERVATIONS + ACTIONS, 1)), np.zeros(1)), (np.zeros((1, 1)), np.zeros(1))]] * 2
    return [actor_loss_by_hand(layers, zero, starts[i : i + 1], noise[:1, i : i + 1]) / ALPHA for i in range(len(starts))]


def test_the_actors_loss_leaves_the_critics_alone():
    agent = agent_in_linear_world(horizon=2, steve=False)
    batch = random_batch()
    agent._sample_batch = lambda batch_size: batch
    agent._sample_and_update(5)
    targets = []
    agent.critic.optimizer.zero_grad()
    q_values = agent.critic(batch.observations, batch.actions)
    th.manual_seed(5)
    agent._batch_targets = lambda *_: targets.append(q_values.detach()[0]) or q_values.detach()[0]
    agent._sample_and_update(5)
    # The first critic's targets were its own values: whatever gradient it has would come from the actor's loss
    assert targets
    for parameter in agent.critic.parameters():
        assert not parameter.grad[0].any()


# -- Data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("real_ratio", "expected"), [(0.0, 0), (0.05, 1), (0.5, 10), (0.97, 19), (1.0, 20)])
def test_batches_mix_real_and_imagined_transitions(real_ratio, expected):
    agent = make_small(MAAC, real_ratio=real_ratio, batch_size=20).learn(25)
    rows = agent.imaginary_buffer._data
    rows[:, -2] = 1e6  # the rewards of imagined transitions
    batch = agent._sample_batch(20)
    assert len(batch.observations) == len(batch.rewards) == len(batch.dones) == len(batch.actions) == 20
    assert (batch.rewards[:, 0] < 1e6).sum().item() == expected


class CountingReplayBuffer(ReplayBuffer):
    """A buffer that samples in a way of its own, as far as anyone knows."""

    sampled = 0

    def sample(self, *args, **kwargs):
        self.sampled += 1
        return super().sample(*args, **kwargs)


@pytest.mark.parametrize("buffer_class", [ReplayBuffer, CountingReplayBuffer])
def test_real_batches_are_rows_of_the_replay_buffer(buffer_class):
    env = make_vec_env(PointEnv, n_envs=2)
    agent = make_small(MAAC, env, replay_buffer_class=buffer_class).learn(40)
    buffer = agent.replay_buffer
    n = buffer.size()
    dones = buffer.dones * (1 - buffer.timeouts)
    fields = (buffer.observations, buffer.actions, buffer.next_observations, dones, buffer.rewards)
    stored = np.concatenate([field[:n].reshape(2 * n, -1) for field in fields], axis=1)
    stored = {tuple(row) for row in stored.astype(np.float32)}
    batch = agent._real_batch(2000)
    drawn = {tuple(row) for row in th.cat(list(batch[:5]), dim=1).numpy()}
    assert drawn == stored  # the newest ones, too
    assert (getattr(buffer, "sampled", 0) > 0) == (buffer_class is CountingReplayBuffer)


def test_the_imaginary_buffer_is_filled_when_it_is_due():
    filled_at = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            filled_at.append(self.model.imagined_at)
            return True

    agent = make_small(
        MAAC,
        rollout_freq=7,
        rollout_batch_size=9,
        rollout_length=[1, 3, 0, 40],
        imaginary_buffer_size=1000,
        termination_fn=lambda s, a, s2: th.zeros_like(s[..., 0], dtype=th.bool),
    )
    agent.learn(50, callback=Watch())
    # First after the first fit, behind `learning_starts`, then every seven env steps
    assert sorted(set(filled_at)) == [0, 21, 28, 35, 42, 49]
    # Nine rollouts each, of 2, 2, 2, 3 and 3 steps
    assert len(agent.imaginary_buffer) == 9 * 12


def test_imagined_transitions_are_counted():
    agent = make_small(
        MAAC,
        horizon=2,
        n_action_samples=3,
        steve_horizon=1,
        n_elites=2,
        rollout_freq=1000,
        rollout_batch_size=16,
        batch_size=8,
    ).learn(31)
    # 16 to fill the buffer; per update 2 x 3 x 8 for the actor and 1 x 2 x 8 for the critics, at the env steps 21 to 31
    assert agent._n_updates == 11
    assert agent.imagined_transitions == 16 + 11 * (48 + 16)


def test_the_imaginary_buffer_goes_on_being_filled_when_learning_anew():
    agent = make_small(MAAC, rollout_freq=7, imaginary_buffer_size=1000).learn(60)
    transitions = agent.imagined_transitions
    agent._imagined_per_update = lambda batch_size: 0
    agent.learn(40)  # the env steps start from zero again
    assert 40 - 7 < agent.imagined_at <= 40
    assert agent.imagined_transitions - transitions == 3 * 16  # behind `learning_starts`
