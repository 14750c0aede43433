"""MEMB against finite differences, plain loops and a plain reimplementation of its update; and SVG(1)."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import make_small
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import nn
from toy_envs import PointEnv

from sb3_modelbased import MEMB, SVG1
from sb3_modelbased.common.ensemble import GaussianEnsemble, sampled_squared_error
from sb3_modelbased.common.model_trainer import nll_loss, sampled_mse_loss
from sb3_modelbased.common.returns import lambda_returns
from sb3_modelbased.common.type_aliases import Transitions
from sb3_modelbased.memb import MlpPolicy
from sb3_modelbased.memb.svg import BehaviorReplayBuffer, reconstructed_step, squashed_log_probs

GAMMA, ALPHA = 0.9, 0.3
# Where the reward of the imagined task ends
LIMIT = 0.35


class PointModel:
    """:class:`PointEnv` in torch, of any precision."""

    def step(self, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        gains = 0.1 * th.as_tensor(PointEnv.gains, dtype=observations.dtype)
        next_observations = observations + actions @ gains.T
        return next_observations, -next_observations.square().sum(dim=-1) - 0.1 * actions.square().sum(dim=-1)


class ColumnOfRewards(PointModel):
    """Its rewards would broadcast against a batch of values."""

    def step(self, observations, actions):
        next_observations, rewards = super().step(observations, actions)
        return next_observations, rewards.unsqueeze(-1)


class NoRewards(PointModel):
    def step(self, observations, actions):
        return super().step(observations, actions)[0]


def beyond_limit(observations, actions, next_observations):
    return next_observations[..., 0].abs() > LIMIT


def make_agent(algorithm=MEMB, steps=40, **kwargs):
    """A small agent with a few transitions and a fixed entropy coefficient."""
    settings = {"ent_coef": ALPHA, "gamma": GAMMA, "value_learning_rate": 2e-3, "reward_net_arch": [8], "gradient_steps": 1}
    return make_small(algorithm, **settings | kwargs).learn(steps)


def known_agent(**kwargs):
    return make_agent(true_model=PointModel(), **kwargs)


def batch_of(agent, n=32):
    return agent._real_batch(n)


def double(agent, monkeypatch):
    """Everything in float64, for finite differences."""
    # SB3 casts observations to float32
    monkeypatch.setattr(BaseModel, "extract_features", lambda self, observations, extractor: extractor(observations))
    agent.policy.double()
    agent.world_model.double()
    agent.entropy_coef.double()
    return agent


def embedded_values(agent, batch):
    """With the same random numbers at every call."""
    th.manual_seed(3)
    actions, log_probs = agent._policy_fn(batch.observations)
    return agent._embedded_values(batch, actions, log_probs, agent.entropy_coef())


def finite_difference(function, parameters, direction, epsilon=1e-5):
    """Directional derivative by central differences."""
    values = []
    with th.no_grad():
        for sign in (1, -2):
            for parameter, step in zip(parameters, direction, strict=True):
                parameter += sign * epsilon * step
            values.append(function().item())
        for parameter, step in zip(parameters, direction, strict=True):
            parameter += epsilon * step
    return (values[0] - values[1]) / (2 * epsilon)


# -- The actor: equations 8 and 9 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kwargs", [{"true_model": PointModel()}, {}, {"termination_fn": beyond_limit}])
def test_the_gradient_of_equation_9_by_finite_differences(k, kwargs, monkeypatch):
    # Smooth networks: a finite difference across a ReLU's kink shows nothing
    smooth = {"policy_kwargs": {"net_arch": [16], "activation_fn": nn.Tanh}}
    agent = double(make_agent(imagination_horizon=k, **smooth, **kwargs), monkeypatch)
    batch = type(batch_of(agent))(*(x.double() if x is not None else None for x in batch_of(agent)))
    parameters = list(agent.actor.parameters())
    gradient = th.autograd.grad(embedded_values(agent, batch).mean(), parameters)
    for seed in range(3):
        generator = th.Generator().manual_seed(seed)
        direction = [th.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        expected = finite_difference(lambda: embedded_values(agent, batch).mean(), parameters, direction)
        analytic = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True)).item()
        assert analytic == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_embedded_values_by_a_plain_loop(k):
    agent = known_agent(imagination_horizon=k, termination_fn=beyond_limit)
    model, (low, high) = PointModel(), (agent.action_space.low, agent.action_space.high)
    batch = batch_of(agent)
    values = embedded_values(agent, batch)

    th.manual_seed(3)
    states, alive = batch.observations, th.ones(32)
    expected, died = th.zeros(32), 0
    for t in range(k):
        actions, log_probs = agent.actor.action_log_prob(states)
        raw_actions = th.as_tensor(low) + (actions + 1) / 2 * th.as_tensor(high - low)
        states, rewards = model.step(states, raw_actions)
        expected = expected + GAMMA**t * alive * (rewards - ALPHA * log_probs)
        alive = alive * (states[:, 0].abs() <= LIMIT)
    expected = expected + GAMMA**k * alive * agent.value(states)
    died = int((alive == 0).sum())
    assert 0 < died < 32  # or the mask would be untested
    assert th.allclose(values, expected, atol=1e-5)


def test_one_step_equals_the_shared_recursion():
    agent = known_agent(termination_fn=beyond_limit)
    batch = batch_of(agent)
    values = embedded_values(agent, batch)
    th.manual_seed(3)
    actions, log_probs = agent._policy_fn(batch.observations)
    step = agent.dynamics.step(batch.observations, actions)
    next_values = agent.value(step.next_observations)
    rewards, discounts = step.rewards - ALPHA * log_probs, GAMMA * (1 - step.terminated)
    returns = lambda_returns(rewards[None], discounts[None], next_values[None], lambdas=0.0)
    assert th.allclose(values, returns[0], atol=1e-6)


def test_the_imagined_termination_masks_and_the_real_one_does_not():
    agent = known_agent(termination_fn=beyond_limit)
    batch = batch_of(agent)
    ended = batch._replace(dones=th.ones_like(batch.dones))
    assert th.equal(embedded_values(agent, batch), embedded_values(agent, ended))
    with th.no_grad():
        agent.value.v_network[-1].bias += 1000.0
        raised = embedded_values(agent, batch)
    ends = agent.dynamics.step(batch.observations, _actions(agent, batch)).terminated.bool()
    assert 0 < ends.sum() < len(ends)
    assert (raised[ends] < 100).all()
    assert (raised[~ends] > 800).all()


def _actions(agent, batch):
    th.manual_seed(3)
    with th.no_grad():
        return agent._policy_fn(batch.observations)[0]


# -- The critics: equations 5 and 6, value expansion ----------------------------------------------------------------------


def test_without_expansion_the_target_is_the_one_step_target():
    agent = known_agent(steps=60)
    batch = batch_of(agent, 64)
    assert 0 < batch.dones.sum() < 64
    loss, q_values = agent._critic_loss(batch, agent.entropy_coef())
    expected = 0.0
    for i in range(64):
        target = batch.rewards[i, 0] + GAMMA * (1 - batch.dones[i, 0]) * agent.value_target(batch.next_observations[i : i + 1])
        q = agent.critic(batch.observations[i : i + 1], batch.actions[i : i + 1])
        expected += 0.5 * ((q - target) ** 2).sum() / 64
    assert q_values.shape == (2, 64)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("horizon", [2, 5])
def test_value_expansion_by_a_plain_loop(horizon):
    agent = known_agent(steps=60, value_expansion_horizon=horizon, termination_fn=beyond_limit)
    batch = batch_of(agent, 64)
    th.manual_seed(3)
    loss, _ = agent._critic_loss(batch, agent.entropy_coef())
    th.manual_seed(3)
    with th.no_grad():
        steps = [(batch.observations, batch.actions, th.zeros(64), batch.rewards[:, 0], batch.dones[:, 0])]
        states = batch.next_observations
        for _ in range(horizon - 1):
            actions, log_probs = agent.actor.action_log_prob(states)
            step = agent.dynamics.step(states, actions)
            steps.append((states, actions, log_probs, step.rewards, step.terminated))
            states = step.next_observations
        last_values = agent.value_target(states)
    expected = 0.0
    for i in range(64):
        for t in range(horizon):
            target, discount, over = 0.0, 1.0, False
            for j in range(t, horizon):
                bonus = -ALPHA * steps[j][2][i] if j > t else 0.0
                target += discount * (steps[j][3][i] + bonus)
                discount *= GAMMA
                if steps[j][4][i]:
                    over = True
                    break
            if not over:
                target += discount * last_values[i]
            q = agent.critic(steps[t][0][i : i + 1], steps[t][1][i : i + 1])
            expected += 0.5 * ((q - target) ** 2).sum() / (64 * horizon)
            if steps[t][4][i]:  # what is imagined behind a terminal does not count
                break
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_one_update_against_a_plain_reimplementation():
    agent = known_agent(learning_rate=1e-3, tau=0.1)
    twin = MlpPolicy(agent.observation_space, agent.action_space, agent.lr_schedule, net_arch=[16])
    twin.load_state_dict(agent.policy.state_dict())
    state = np.random.get_state()  # noqa: NPY002
    th.manual_seed(5)
    agent.train(1, batch_size=16)
    np.random.set_state(state)  # noqa: NPY002
    th.manual_seed(5)

    batch = agent.replay_buffer.sample(16)
    actions, log_probs = twin.actor.action_log_prob(batch.observations)
    low, high = th.as_tensor(agent.action_space.low), th.as_tensor(agent.action_space.high)
    next_states, rewards = PointModel().step(batch.observations, low + (actions + 1) / 2 * (high - low))
    actor_loss = -(rewards - ALPHA * log_probs + GAMMA * twin.value(next_states)).mean()
    with th.no_grad():
        v_target = twin.critic(batch.observations, actions).min(dim=0).values - ALPHA * log_probs
        q_target = batch.rewards[:, 0] + GAMMA * (1 - batch.dones[:, 0]) * twin.value_target(batch.next_observations)
    v_loss = nn.functional.mse_loss(twin.value(batch.observations), v_target) / 2
    q_loss = sum(nn.functional.mse_loss(q, q_target) / 2 for q in twin.critic(batch.observations, batch.actions))
    critics = [*twin.critic.parameters(), *twin.value.parameters()]
    actor_gradient = th.autograd.grad(actor_loss, list(twin.actor.parameters()))
    critic_gradient = th.autograd.grad(v_loss + q_loss, critics)
    _adam_step(agent.actor.optimizer, list(agent.actor.parameters()), twin.actor.parameters(), actor_gradient, 1e-3)
    ours = [*agent.critic.parameters(), *agent.value.parameters()]
    _adam_step(agent.critic.optimizer, ours, critics, critic_gradient, 2e-3)
    pairs = zip(twin.value_target.parameters(), twin.value.parameters(), strict=True)
    for expected, online, ours in zip(*zip(*pairs, strict=True), agent.value_target.parameters(), strict=True):
        assert th.allclose(ours, 0.9 * expected + 0.1 * online, atol=1e-6)


def _adam_step(optimizer, ours, parameters, gradients, learning_rate):
    """Adam's rule by hand from the moments behind the update, and the parameters that it leads to."""
    for own, parameter, gradient in zip(ours, parameters, gradients, strict=True):
        state = optimizer.state[own]
        assert th.allclose(own.grad, gradient, atol=1e-6)
        step = float(state["step"])
        mean, square = state["exp_avg"] / (1 - 0.9**step), state["exp_avg_sq"] / (1 - 0.999**step)
        parameter.data -= learning_rate * mean / (square.sqrt() + 1e-8)
        assert th.allclose(own, parameter, atol=1e-6)


def test_only_the_value_has_a_target_and_it_follows_every_so_often():
    agent = known_agent(tau=0.25, target_update_interval=3, steps=20)
    assert not any("critic_target" in name for name in agent.policy.state_dict())
    agent.policy.value_target.load_state_dict(agent.value.state_dict())
    for update in range(1, 5):
        before = [p.clone() for p in agent.value_target.parameters()]
        agent._n_updates = update - 1
        agent.train(1, batch_size=8)
        for old, now, online in zip(before, agent.value_target.parameters(), agent.value.parameters(), strict=True):
            expected = 0.75 * old + 0.25 * online if update % 3 == 0 else old
            assert th.allclose(now, expected, atol=1e-7)
    assert not agent.value_target.training
    assert agent.value.training


def test_learning_rates():
    agent = known_agent(learning_rate=lambda progress: 0.1 * progress, value_learning_rate=lambda progress: 0.2 * progress)
    progress = agent._current_progress_remaining
    assert agent.actor.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * progress, abs=0.01)
    assert agent.critic.optimizer.param_groups[0]["lr"] == pytest.approx(
        2 * float(agent.actor.optimizer.param_groups[0]["lr"]), rel=1e-6
    )
    assert make_agent(steps=0, learning_rate=5e-4, value_learning_rate=None).value_lr_schedule(1.0) == 5e-4


# -- The model ----------------------------------------------------------------------------------------------------------------


def test_the_sampled_error_is_the_paper_s_on_average():
    mean, log_var, target = th.tensor([1.0, -2.0]), th.tensor([0.5, -1.0]), th.tensor([0.0, 3.0])
    errors = sampled_squared_error(*(x.expand(200_000, 2) for x in (mean, log_var, target)))
    expected = 0.5 * ((mean - target) ** 2 + log_var.exp())
    assert th.allclose(errors.mean(dim=0), expected, rtol=0.02)


def test_a_second_network_predicts_the_last_dimension():
    ensemble = GaussianEnsemble(4, 5, 4, 1, [8], last_net_arch=[6, 6])
    first, last = GaussianEnsemble(4, 5, 3, 1, [8]), GaussianEnsemble(4, 5, 1, 0, [6, 6])
    first.mlp.load_state_dict(ensemble.mlp.state_dict())
    last.mlp.load_state_dict(ensemble.last_mlp.state_dict())
    inputs = th.randn(4, 7, 5)
    mean, log_var, logits = ensemble(inputs)
    assert (mean.shape, log_var.shape, logits.shape) == ((4, 7, 4), (4, 7, 4), (4, 7, 1))
    for part, columns in ((first, slice(0, 3)), (last, slice(3, 4))):
        part_mean, part_log_var, _ = part(inputs)
        assert th.allclose(mean[..., columns], part_mean)
        assert th.allclose(log_var[..., columns], part_log_var)
    assert th.allclose(logits, first(inputs)[2])
    frozen = ensemble.subset([2, 0])
    assert th.allclose(frozen(inputs[[2, 0]])[0], mean[[2, 0]], atol=1e-6)
    assert not any(p.requires_grad for p in frozen.parameters())
    # The reward's error does not reach the dynamics
    gradients = th.autograd.grad(mean[..., 3].sum(), list(ensemble.mlp.parameters()), allow_unused=True)
    assert not any(gradient.any() for gradient in gradients if gradient is not None)


def test_reward_and_dynamics_networks():
    assert make_agent(steps=0).world_model.ensemble.last_mlp is not None
    assert make_agent(steps=0, reward_net_arch=None).world_model.ensemble.last_mlp is None
    known_reward = make_agent(steps=0, reward_fn=lambda s, a, s_: -s_.square().sum(dim=-1))
    assert known_reward.world_model.ensemble.last_mlp is None
    assert make_agent(steps=0).model_trainer.loss_fn is sampled_mse_loss
    assert make_agent(steps=0, model_loss="nll").model_trainer.loss_fn is nll_loss
    assert make_agent(steps=0, model_loss=nll_loss).model_trainer.loss_fn is nll_loss


@pytest.mark.parametrize("model_loss", ["sampled_mse", "nll"])
@pytest.mark.parametrize("reward_net_arch", [None, [16]])
def test_the_model_learns_a_linear_system(model_loss, reward_net_arch):
    agent = make_agent(
        steps=201,
        learning_starts=200,
        model_loss=model_loss,
        reward_net_arch=reward_net_arch,
        model_gradient_steps=200,
        model_learning_rate=5e-3,
    )
    data = agent.real_data[:]
    with th.no_grad():
        step = agent.world_model.step(data.observations, data.actions)
    change = data.next_observations - data.observations
    assert (step.next_observations - data.next_observations).square().mean() < 0.05 * change.square().mean()
    assert (step.rewards - data.rewards).square().mean() < 0.05 * data.rewards.var()


def test_true_pendulum():
    env = gym.make("Pendulum-v1")
    agent = make_agent(env=env, true_model="gymnasium", steps=60)
    assert agent.model_fit_at is None
    assert agent.model_updates == 0
    batch = agent.replay_buffer.sample(32)
    step = agent.dynamics.step(batch.observations, batch.actions)
    assert th.allclose(step.next_observations, batch.next_observations, atol=1e-5)
    assert th.allclose(step.rewards, batch.rewards.squeeze(1), atol=1e-4)
    assert not step.terminated.any()


# -- As an SB3 algorithm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", [MEMB, SVG1])
def test_save_and_load_keep_every_tensor(algorithm, tmp_path):
    agent = make_agent(algorithm, ent_coef="auto")
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "agent", env=agent.env)
    loaded.load_replay_buffer(tmp_path / "buffer")
    saved, restored = agent.get_parameters(), loaded.get_parameters()
    assert _tensors(saved).keys() == _tensors(restored).keys()
    assert {"policy.value_target.v_network.0.weight", "policy.value.v_network.0.weight"} <= _tensors(saved).keys()
    assert any(name.startswith("critic.optimizer.state") for name in _tensors(saved))
    for name, tensor in _tensors(saved).items():
        assert th.equal(tensor, _tensors(restored)[name]), name
    observation = np.zeros((1, 3), dtype=np.float32)
    assert np.array_equal(
        agent.predict(observation, deterministic=True)[0], loaded.predict(observation, deterministic=True)[0]
    )
    updates = loaded._n_updates
    loaded.learn(10, reset_num_timesteps=False)
    assert loaded._n_updates > updates
    assert loaded.num_timesteps == agent.num_timesteps + 10


def _tensors(tree, prefix=""):
    """Every tensor of nested dicts and lists, by path."""
    if isinstance(tree, th.Tensor):
        return {prefix[:-1]: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    return {path: tensor for key, value in items for path, tensor in _tensors(value, f"{prefix}{key}.").items()}


def test_a_known_reward_takes_the_place_of_the_true_model_s():
    agent = known_agent(reward_fn=lambda s, a, s2: 2 * s[..., 0] + a[..., 1] - s2[..., 1])
    batch = batch_of(agent)
    step = agent.dynamics.step(batch.observations, batch.actions)
    (states, actions), next_states = _raw(agent, batch), step.next_observations
    assert th.equal(next_states, PointModel().step(states, actions)[0])
    assert th.equal(step.rewards, 2 * states[:, 0] + actions[:, 1] - next_states[:, 1])


def test_a_loaded_true_model_still_works(tmp_path):
    agent = known_agent()
    agent.save(tmp_path / "agent")
    loaded = MEMB.load(tmp_path / "agent", env=agent.env)
    batch = batch_of(agent)
    assert th.equal(loaded.dynamics.step(batch.observations, batch.actions)[0], PointModel().step(*_raw(agent, batch))[0])


def _raw(agent, batch):
    return batch.observations, agent.world_model.unscale_actions(batch.actions)


@pytest.mark.parametrize("algorithm", [MEMB, SVG1])
def test_vec_normalize(algorithm):
    env = VecNormalize(DummyVecEnv([PointEnv, PointEnv]))
    agent = make_agent(algorithm, env=env, steps=80)
    batch = batch_of(agent, 200)
    seen = env.normalize_obs(batch.observations.numpy())
    assert np.allclose(agent._view.observations(batch.observations), seen, atol=1e-4)
    if algorithm is MEMB:
        loss, _ = agent._critic_loss(batch, agent.entropy_coef())
        rewards = th.as_tensor(env.normalize_reward(batch.rewards[:, 0].numpy()), dtype=th.float32)
        next_seen = th.as_tensor(env.normalize_obs(batch.next_observations.numpy()), dtype=th.float32)
        targets = rewards + GAMMA * (1 - batch.dones[:, 0]) * agent.value_target(next_seen)
        errors = agent.critic(th.as_tensor(seen, dtype=th.float32), batch.actions) - targets
        assert loss.item() == pytest.approx(0.5 * errors.square().mean(dim=1).sum().item(), rel=1e-3)


@pytest.mark.parametrize("k", [1, 3])
def test_the_actor_s_rewards_are_normalised_as_the_critics(k):
    env = VecNormalize(DummyVecEnv([PointEnv]))
    agent = known_agent(env=env, steps=80, imagination_horizon=k, termination_fn=beyond_limit)
    batch = batch_of(agent)

    def normalised(observations):
        return th.as_tensor(env.normalize_obs(observations.numpy()), dtype=th.float32)

    with th.no_grad():
        actual = embedded_values(agent, batch)
        th.manual_seed(3)
        actions, log_probs = agent._policy_fn(batch.observations)
        states, total, weight = batch.observations, 0.0, th.ones(32)
        for step in range(k):
            if step:
                actions, log_probs = agent.actor.action_log_prob(normalised(states))
            next_states, rewards = PointModel().step(states, agent.world_model.unscale_actions(actions))
            rewards = th.as_tensor(env.normalize_reward(rewards.numpy()), dtype=th.float32)
            total = total + weight * (rewards - ALPHA * log_probs)
            weight = weight * GAMMA * (1 - beyond_limit(states, actions, next_states).float())
            states = next_states
        values = total + weight * agent.value(normalised(states))
    assert th.allclose(actual, values, rtol=1e-3, atol=1e-3)


def test_shared_features_extractor():
    agent = known_agent(policy_kwargs={"net_arch": [16], "share_features_extractor": True})
    batch = batch_of(agent)
    observations = batch.observations.requires_grad_()
    # The gradient through the next state must survive: V(s') sees the shared extractor too
    th.autograd.grad(agent.value(observations).sum(), observations)
    assert agent.value.features_extractor is agent.actor.features_extractor
    assert agent.value_target.features_extractor is not agent.actor.features_extractor


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"imagination_horizon": 0}, "`imagination_horizon`"),
        ({"value_expansion_horizon": 0}, "`value_expansion_horizon`"),
        ({"model_loss": "mse"}, "`model_loss` must be one of 'sampled_mse', 'nll'"),
        ({"model_kwargs": {"loss_fn": nll_loss}}, "`model_kwargs` has a `loss_fn`, but MEMB's is `model_loss`"),
        ({"true_model": "pendulum"}, "`true_model` must be"),
        ({"true_model": "gymnasium"}, "Pendulum-v1"),
        ({"true_model": ColumnOfRewards()}, r"\(3, 2\), but they are \(3, 2, 3\), \(3, 2, 1\)"),
        ({"true_model": NoRewards()}, r"but they are \(3, 2, 3\)\."),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_agent(steps=0, **kwargs)


# -- SVG(1) -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_elites", [1, 3])
def test_svg_reconstructs_the_real_transition(n_elites, monkeypatch):
    agent = make_agent(SVG1, ensemble_size=3, n_elites=n_elites)
    model = agent.world_model
    model.fit_normalizers(agent.real_data[:])  # transitions since the last fit may lie beyond its range
    batch = batch_of(agent)
    transitions = Transitions(*batch[:3], batch.rewards[:, 0], batch.dones[:, 0])
    actions = batch.actions.clone().requires_grad_()
    order = th.tensor([0.3, 0.1, 0.2])[:n_elites]  # elites 0, 1, 2 get blocks 1, 2, 0
    monkeypatch.setattr(th, "rand", lambda n, device: order)
    step = reconstructed_step(model, transitions, actions)
    assert th.allclose(step.next_observations, batch.next_observations, atol=1e-4)
    assert th.allclose(step.rewards, batch.rewards[:, 0], atol=1e-4)
    # In gradient it is the model of the row's elite, with that noise
    mean, log_var, _ = model.elite_ensemble(model.inputs(batch.observations, actions))
    targets = model.target_normalizer.normalize(model.targets(transitions))
    noise = ((targets - mean) / (0.5 * log_var).exp()).detach()
    rewards = model.target_normalizer.denormalize(mean + (0.5 * log_var).exp() * noise)[..., -1]
    block = -(-32 // n_elites)
    elite_of_row = th.tensor([2, 0, 1] if n_elites > 1 else [0]).repeat_interleave(block)[:32]
    expected = th.autograd.grad(rewards[elite_of_row, th.arange(32)].sum(), actions)[0]
    assert th.allclose(th.autograd.grad(step.rewards.sum(), actions)[0], expected, atol=1e-5)


def test_svg_log_probs_where_float32_cannot_tell_an_action_from_its_bound():
    mean = th.tensor([[0.3, 9.0], [-2.0, -30.0], [1.0, 5.0], [0.0, 6.0]])
    std = th.tensor([[0.5, 0.7], [1.0, 2.0], [0.2, 2.0], [1.0, 0.3]])
    actions = th.tensor([[0.4, 1.0], [-0.9, -1.0], [0.5, 1.0], [-0.2, -1.0]])
    normal = th.distributions.Normal(mean.double(), std.double())
    inside = th.distributions.TransformedDistribution(normal, th.distributions.TanhTransform())
    bound = np.arctanh(1 - 1e-6)
    beyond = th.where(actions > 0, 1 - normal.cdf(th.tensor(bound)), normal.cdf(th.tensor(-bound)))[:, 1]
    density = inside.log_prob(actions.double().clamp(-0.99, 0.99))[:, 0]
    expected = density + beyond.log()
    log_probs = squashed_log_probs(mean, std, actions)
    # The last one is 44 standard deviations away, which is below what a double's probability can say
    assert th.allclose(log_probs[:3].double(), expected[:3], atol=1e-2)  # the bound is rounded to float32
    assert th.allclose(log_probs[3].double(), density[3] - 0.5 * ((6 + bound) / 0.3) ** 2, rtol=0.02)
    # What a policy prefers is not improbable
    assert log_probs[1] > -3


def test_svg_policy_at_given_actions():
    agent = make_agent(SVG1)
    batch = batch_of(agent)
    actions, log_probs = agent._action_log_probs(batch.observations, batch.actions)
    mean, log_std, _ = agent.actor.get_action_dist_params(batch.observations)
    assert th.allclose(actions, batch.actions, atol=1e-5)
    base = th.distributions.Normal(mean, log_std.exp())
    squashed = th.distributions.TransformedDistribution(base, th.distributions.TanhTransform())
    expected = squashed.log_prob(batch.actions).sum(dim=1)
    inside = (batch.actions.abs() < 0.99).all(dim=1)
    assert th.allclose(log_probs[inside], expected[inside], atol=1e-3)


def test_svg_remembers_how_likely_its_actions_were():
    agent = make_agent(SVG1, steps=30, learning_starts=20, gradient_steps=0)
    buffer = agent.replay_buffer
    assert isinstance(buffer, BehaviorReplayBuffer)
    # Uniform over a square of side 2 at first, then the policy, which no update has changed
    assert np.allclose(buffer.behavior_log_probs[:20, 0], -2 * np.log(2))
    observations, actions = (th.as_tensor(x[20:30, 0]) for x in (buffer.observations, buffer.actions))
    with th.no_grad():
        _, log_probs = agent._action_log_probs(observations, actions)
    assert np.allclose(buffer.behavior_log_probs[20:30, 0], log_probs, atol=1e-3)


def test_svg_weights_are_cut_off():
    agent = make_agent(SVG1, max_importance_weight=2.0)
    batch = batch_of(agent)
    with th.no_grad():
        _, log_probs = agent._action_log_probs(batch.observations, batch.actions)
        values = {}
        for ratio in (0.5, 1.0, 2.0, 5.0):
            shifted = batch._replace(behavior_log_probs=log_probs - np.log(ratio))
            th.manual_seed(0)  # which elite has which row
            values[ratio] = agent._embedded_values(shifted, batch.actions, th.zeros(32), agent.entropy_coef())
    assert th.allclose(values[0.5], 0.5 * values[1.0], atol=1e-5)
    assert th.allclose(values[2.0], 2 * values[1.0], atol=1e-5)
    assert th.allclose(values[5.0], values[2.0], atol=1e-5)


@pytest.mark.parametrize("kwargs", [{"use_sde": True}, {"true_model": PointModel()}, {"imagination_horizon": 2}])
def test_svg_refuses_what_it_cannot_infer(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        make_agent(SVG1, steps=0, **kwargs)


def test_svg_refuses_a_buffer_without_the_probabilities_of_its_actions(tmp_path):
    agent = make_agent(SVG1)
    agent.save_replay_buffer(tmp_path / "own")
    make_agent(MEMB).save_replay_buffer(tmp_path / "other")
    agent.load_replay_buffer(tmp_path / "own")
    with pytest.raises(ValueError, match="BehaviorReplayBuffer"):
        agent.load_replay_buffer(tmp_path / "other")


def test_svg_objective_by_a_plain_loop():
    # A known termination ends some real transitions, and VecNormalize changes what the agent sees
    env = VecNormalize(DummyVecEnv([PointEnv]))
    agent = make_agent(SVG1, env=env, steps=80)
    batch = batch_of(agent)
    batch = batch._replace(dones=(th.arange(32) % 3 == 0).float().unsqueeze(1))
    agent.world_model.fit_normalizers(agent.real_data[:])
    fresh_log_probs = th.randn(32)
    values = agent._embedded_values(batch, batch.actions, fresh_log_probs, agent.entropy_coef()).detach()
    for row in range(32):
        seen, next_seen = (
            th.as_tensor(env.normalize_obs(x[row : row + 1].numpy()), dtype=th.float32)
            for x in (batch.observations, batch.next_observations)
        )
        mean, log_std, _ = agent.actor.get_action_dist_params(seen)
        log_prob = squashed_log_probs(mean, log_std.exp(), batch.actions[row : row + 1]).detach()
        weight = min(float((log_prob - batch.behavior_log_probs[row]).exp()), agent.max_importance_weight)
        value = float(env.normalize_reward(batch.rewards[row].numpy())[0])
        if row % 3:
            value += GAMMA * agent.value(next_seen).item()
        expected = weight * value - ALPHA * fresh_log_probs[row].item()
        assert values[row].item() == pytest.approx(expected, rel=2e-3, abs=2e-3)
