"""MPDP's objective against a literal loop, what it reduces to at its limits, and what it saves and refuses."""

from typing import Any

import numpy as np
import pytest
import torch as th
from conftest import SMALL
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger
from torch.distributions import Independent, Normal, kl_divergence
from toy_envs import PointEnv

from sb3_modelbased import MPDP
from sb3_modelbased.common.agent_view import IdentityView
from sb3_modelbased.common.imagination import imagine
from sb3_modelbased.common.policies import frozen
from sb3_modelbased.common.returns import discounted_sum
from sb3_modelbased.mpdp.mpdp import held_fixed

INF = float("inf")
NO_LIMIT = 1e9


def ends_to_the_right(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    return next_observations[..., 0] > 0.6


def never_ends(observations: th.Tensor, actions: th.Tensor, next_observations: th.Tensor) -> th.Tensor:
    return th.zeros_like(next_observations[..., 0], dtype=th.bool)


def make(**kwargs: Any) -> MPDP:
    """
    :param kwargs: arguments in place of, or on top of, small ones
    :return: an agent that has not learned; its model disagrees as fresh networks do
    """
    arguments = {**SMALL, "n_elites": 3, "horizon": 4, "ent_coef": 0.2, "termination_fn": ends_to_the_right, **kwargs}
    agent = MPDP("MlpPolicy", PointEnv(), **arguments)
    agent._view = IdentityView()
    return agent


def spread_out(agent: MPDP) -> None:
    """Give the model a moderate variance and normalisers that do something, so that u varies over pairs."""
    model = agent.world_model
    model.ensemble.max_log_var.data.fill_(-3.0)
    model.target_normalizer.std.copy_(th.tensor([0.5, 0.2, 0.3, 1.0])[: model.target_dim])
    for module in model.ensemble.mlp:
        if hasattr(module, "weight"):
            module.weight.data.mul_(2.0)
    model.refresh_elites()


@pytest.fixture
def _no_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Gaussian draw is 0.3 and the member a function of the row's state: the loop can follow it."""
    constant = 0.3
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal", lambda shape, dtype, device: th.full(shape, constant, dtype=dtype)
    )
    monkeypatch.setattr(th, "randn_like", lambda x: th.full_like(x, constant))


def member_of(observations: th.Tensor, n: int) -> th.Tensor:
    return (observations.detach().double().sum(dim=-1) * 1e4).long().abs() % n


def draw_members_by_state(agent: MPDP, monkeypatch: pytest.MonkeyPatch) -> None:
    model = agent.world_model
    step_predicted = model.step_predicted

    def step(observations: th.Tensor, actions: th.Tensor, predictions: Any, rows: th.Tensor) -> Any:
        monkeypatch.setattr(model, "draw_members", lambda n: member_of(observations, model.n_elites))
        return step_predicted(observations, actions, predictions, rows)

    monkeypatch.setattr(model, "step_predicted", step)


def literal_objective(agent: MPDP, start: th.Tensor, ent_coef: th.Tensor, learned: bool) -> tuple[th.Tensor, str, int]:
    """
    Equation 9 for one start state, step by step, in the paper's words.

    :param learned: whether termination is a classifier of the model
    :return: J, what ended the plan, and the number of model steps
    """
    model, state = agent.world_model, start
    total, discount = th.zeros(()), th.ones(())
    for step in range(agent.horizon):
        action, log_prob = agent.policy.policies[step].action_log_prob(state.unsqueeze(0))
        action, log_prob = action[0], log_prob[0]
        mean, log_var, logits = model.elite_ensemble(model.inputs(state.unsqueeze(0), action.unsqueeze(0)))
        mean, std = mean[:, 0], (0.5 * log_var[:, 0]).exp()
        u = th.zeros(())
        for i in range(len(mean)):
            rest = [j for j in range(len(mean)) if j != i]
            rest_mean = sum(mean[j] for j in rest) / len(rest)
            rest_var = sum(std[j] ** 2 + mean[j] ** 2 for j in rest) / len(rest) - rest_mean**2
            u = u + kl_divergence(Independent(Normal(mean[i], std[i]), 1), Independent(Normal(rest_mean, rest_var.sqrt()), 1))
        if u.log() >= agent.uncertainty_threshold:
            value = agent.critic(state.unsqueeze(0), action.unsqueeze(0)).min() - ent_coef * log_prob
            return total + discount * value, "error", step
        member = int(member_of(state, len(mean)))
        sample = mean[member] + 0.3 * std[member]
        targets = sample * model.target_normalizer.std + model.target_normalizer.mean
        next_state, reward = state + targets[:-1], targets[-1]
        total = total + discount * (agent._view.rewards(reward) - ent_coef * log_prob - agent.uncertainty_coef * u)
        ends = 1 / (1 + (-logits[member, 0, 0]).exp()) if learned else (next_state[0] > 0.6).float()
        if ends >= 0.99:
            return total, "terminal", step + 1
        discount = discount * agent.gamma * (1 - ends)
        state = next_state
    with frozen(agent.actor):
        action, log_prob = agent.actor.action_log_prob(state.unsqueeze(0))
    value = agent.critic(state.unsqueeze(0), action).min() - ent_coef * log_prob[0]
    return total + discount * value, "horizon", agent.horizon


class HalvedRewards(IdentityView):
    """What VecNormalize does to rewards."""

    def rewards(self, rewards: th.Tensor) -> th.Tensor:
        return 0.5 * rewards


@pytest.mark.usefixtures("_no_chance")
@pytest.mark.parametrize("learned", [False, True])
def test_objective_and_gradients_against_a_literal_loop(monkeypatch: pytest.MonkeyPatch, learned: bool) -> None:
    agent = make(uncertainty_coef=0.5, termination_fn=None if learned else ends_to_the_right)
    agent._view = HalvedRewards()
    if learned:  # a classifier of everything between certain and impossible
        agent.world_model.terminations_seen.fill_(True)
        last = agent.world_model.ensemble.mlp[-1]
        last.weight.data[..., -1] *= 30.0
    spread_out(agent)
    draw_members_by_state(agent, monkeypatch)
    starts, ent_coef = 0.5 * th.randn(200, 3), agent.entropy_coef()
    # A threshold in the middle of what is met, so that plans stop for every reason and at every step
    agent.uncertainty_threshold = INF
    agent.uncertainty_threshold = agent._plan(starts, ent_coef).uncertainties.log().quantile(0.75).item()

    parameters = [p for policy in agent.policy.policies for p in policy.parameters()]
    plan = agent._plan(starts, ent_coef)
    objective = agent._objective(plan, ent_coef)
    gradients = th.autograd.grad(objective.mean(), parameters, allow_unused=True)

    expected, reasons, lengths = zip(*(literal_objective(agent, start, ent_coef, learned) for start in starts), strict=True)
    expected_gradients = th.autograd.grad(th.stack(expected).mean(), parameters, allow_unused=True)

    assert min(reasons.count(reason) for reason in ("error", "terminal", "horizon")) >= 10
    assert set(lengths) == set(range(agent.horizon + 1))
    assert plan.stopped_by_error == reasons.count("error")
    assert plan.stopped_by_terminal == reasons.count("terminal")
    assert plan.steps == [sum(length > step for length in lengths) for step in range(agent.horizon)]
    th.testing.assert_close(objective, th.stack(expected), rtol=1e-4, atol=1e-4)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        if expected_gradient is None:
            assert gradient is None
        else:
            th.testing.assert_close(gradient, expected_gradient, rtol=2e-3, atol=1e-4)


def test_trusting_nothing_is_the_actor_loss_of_sac_bit_for_bit() -> None:
    agent, starts = make(uncertainty_threshold=-INF), th.randn(64, 3)
    assert not agent.uses_model
    th.manual_seed(1)
    loss = -agent._objective(agent._plan(starts, agent.entropy_coef()), agent.entropy_coef()).mean()
    th.manual_seed(1)
    actions, log_probs = agent.actor.action_log_prob(starts)
    expected = (agent.entropy_coef() * log_probs - agent.critic(starts, actions).amin(dim=0)).mean()
    assert loss.item() == expected.item()
    parameters = list(agent.actor.parameters())
    for gradient, expected_gradient in zip(
        th.autograd.grad(loss, parameters), th.autograd.grad(expected, parameters), strict=True
    ):
        assert gradient.equal(expected_gradient)


def test_trusting_nothing_trains_as_sb3s_sac() -> None:
    arguments: dict[str, Any] = {"learning_starts": 20, "batch_size": 8, "policy_kwargs": {"net_arch": [16]}, "seed": 3}
    # One after the other: both seed the global generators
    agent = MPDP("MlpPolicy", PointEnv(), uncertainty_threshold=-INF, horizon=5, device="cpu", **arguments).learn(80)
    sac = SAC("MlpPolicy", PointEnv(), device="cpu", **arguments).learn(80)
    assert agent._n_updates == sac._n_updates > 50
    for parameter, expected in zip(agent.actor.parameters(), sac.actor.parameters(), strict=True):
        th.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("_no_chance")
def test_one_trusted_step_is_equation_5(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(horizon=1, uncertainty_threshold=INF, uncertainty_coef=0.0, termination_fn=never_ends)
    draw_members_by_state(agent, monkeypatch)
    starts, alpha = th.randn(16, 3), agent.entropy_coef()
    actions, log_probs = agent.actor.action_log_prob(starts)
    predictions = agent.world_model.predict_members(starts, actions)
    step = agent.world_model.step_predicted(starts, actions, predictions, th.arange(16))
    with frozen(agent.actor):
        next_actions, next_log_probs = agent.actor.action_log_prob(step.next_observations)
    next_values = agent.critic(step.next_observations, next_actions).amin(dim=0) - alpha * next_log_probs
    expected = step.rewards - alpha * log_probs + agent.gamma * next_values
    objective = agent._objective(agent._plan(starts, alpha), alpha)
    th.testing.assert_close(objective, expected)
    parameters = list(agent.actor.parameters())
    for gradient, expected_gradient in zip(
        th.autograd.grad(objective.mean(), parameters), th.autograd.grad(expected.mean(), parameters), strict=True
    ):
        th.testing.assert_close(gradient, expected_gradient)


@pytest.mark.usefixtures("_no_chance")
def test_tied_policies_that_trust_everything_are_maacs_actor_with_entropy_at_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = make(uncertainty_threshold=INF, uncertainty_coef=0.0)
    spread_out(agent)
    for planner in agent.policy.planners:
        planner.load_state_dict(agent.actor.state_dict())
    draw_members_by_state(agent, monkeypatch)
    starts, alpha = 0.5 * th.randn(64, 3), agent.entropy_coef()

    class Dynamics:
        """The model's step with the members that the plan draws."""

        def step(self, observations: th.Tensor, actions: th.Tensor) -> Any:
            predictions = agent.world_model.predict_members(observations, actions)
            return agent.world_model.step_predicted(observations, actions, predictions, th.arange(len(observations)))

    # MAAC: one policy, the shared rollout and the shared recursion; a terminal step's discount of 0 ends it
    policy = lambda observations, step: agent.actor.action_log_prob(observations)  # noqa: E731
    trajectory = imagine(Dynamics(), policy, starts, agent.horizon)
    with frozen(agent.actor):
        last_actions, last_log_probs = policy(trajectory.observations[-1], agent.horizon)
    last_values = agent.critic(trajectory.observations[-1], last_actions).amin(dim=0) - alpha * last_log_probs
    rewards, discounts = trajectory.rewards - alpha * trajectory.log_probs, agent.gamma * (1 - trajectory.terminated)
    expected = discounted_sum(rewards, discounts, last_values)

    plan = agent._plan(starts, alpha)
    objective = agent._objective(plan, alpha)
    assert plan.stopped_by_terminal > 0
    th.testing.assert_close(objective, expected, rtol=1e-4, atol=1e-5)
    # Tied: the gradients of the H copies add up to that of the one policy
    copies = [th.autograd.grad(objective.mean(), list(p.parameters()), retain_graph=True) for p in agent.policy.policies]
    expected_gradients = th.autograd.grad(expected.mean(), list(agent.actor.parameters()))
    for *gradients, expected_gradient in zip(*copies, expected_gradients, strict=True):
        th.testing.assert_close(th.stack(gradients).sum(dim=0), expected_gradient, rtol=1e-3, atol=1e-5)


def test_rows_that_stopped_are_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(horizon=6)
    spread_out(agent)
    starts, ent_coef = 0.5 * th.randn(100, 3), agent.entropy_coef()
    agent.uncertainty_threshold = INF
    agent.uncertainty_threshold = agent._plan(starts, ent_coef).uncertainties.log().quantile(0.5).item()
    looked_at = []
    predict_members = agent.world_model.predict_members
    monkeypatch.setattr(agent.world_model, "predict_members", lambda s, a: looked_at.append(len(s)) or predict_members(s, a))
    plan = agent._plan(starts, ent_coef)
    assert looked_at[0] == 100
    assert looked_at == sorted(looked_at, reverse=True)
    assert looked_at[-1] < 100
    assert sum(looked_at) == len(plan.uncertainties) == sum(plan.steps) + plan.stopped_by_error
    assert len(plan.rows) == 100 - plan.stopped_by_terminal
    assert sorted(plan.rows.tolist()) == sorted(set(plan.rows.tolist()))


def test_plans_that_all_end_in_a_terminal_state_need_no_value() -> None:
    agent = make(horizon=3, uncertainty_threshold=INF, termination_fn=lambda s, a, s2: th.ones(s2.shape[:-1], dtype=th.bool))
    spread_out(agent)
    starts, alpha = 0.5 * th.randn(20, 3), agent.entropy_coef()
    plan = agent._plan(starts, alpha)
    assert plan.stopped_by_terminal == 20
    assert plan.steps == [20]
    assert len(plan.rows) == 0
    objective = agent._objective(plan, alpha)
    assert th.equal(objective, plan.returns)
    # Their one reward still has a gradient for the first policy
    gradient = th.autograd.grad(objective.mean(), agent.policy.policies[0].mu.weight)[0]
    assert gradient.abs().max() > 0


def test_policies_that_no_plan_reached_stay_as_they_are_and_cost_nothing() -> None:
    agent = make(horizon=8, uncertainty_threshold=-NO_LIMIT)
    agent.learn(20)
    before = [p.clone() for p in agent.policy.planners.parameters()]
    agent.learn(20, reset_num_timesteps=False)
    assert agent._n_updates > 0
    assert all(p.equal(q) for p, q in zip(agent.policy.planners.parameters(), before, strict=True))
    assert len(agent.actor.optimizer.state) == len(list(agent.actor.parameters()))
    assert agent.imagined_transitions == 0


def test_all_policies_learn_where_everything_is_trusted() -> None:
    agent = make(horizon=3, uncertainty_threshold=INF, termination_fn=never_ends)
    before = [p.clone() for policy in agent.policy.policies for p in policy.parameters()]
    agent.learn(30)
    after = [p for policy in agent.policy.policies for p in policy.parameters()]
    assert all(not p.equal(q) for p, q in zip(after, before, strict=True))
    assert agent.imagined_transitions == agent._n_updates * 3 * agent.batch_size


def test_the_critics_get_no_gradient_from_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(uncertainty_threshold=INF)
    agent.learn(25)
    left_by_their_own_loss = []
    critic_step = agent.critic.optimizer.step

    def step(*args: Any, **kwargs: Any) -> None:
        left_by_their_own_loss[:] = [p.grad.clone() for p in agent.critic.parameters()]
        critic_step(*args, **kwargs)

    monkeypatch.setattr(agent.critic.optimizer, "step", step)
    agent._sample_and_update(8)
    assert all(p.requires_grad for p in agent.actor.parameters())
    assert all(p.grad.equal(own) for p, own in zip(agent.critic.parameters(), left_by_their_own_loss, strict=True))
    assert all(p.grad is None for p in agent.world_model.elite_ensemble.parameters())


@pytest.mark.parametrize("use_sde", [False, True])
def test_the_value_behind_the_horizon_has_no_gradient_for_the_policy_that_acts(use_sde: bool) -> None:
    agent = make(use_sde=use_sde)
    if use_sde:
        agent.policy.reset_noise()
    states = th.randn(6, 3, requires_grad=True)
    with held_fixed(agent.actor):
        actions, log_probs = agent.actor.action_log_prob(states)
    value = agent.critic(states, actions).sum() - log_probs.sum()
    *of_the_policy, of_the_states = th.autograd.grad(value, [*agent.actor.parameters(), states], allow_unused=True)
    assert of_the_policy == [None] * len(of_the_policy)
    assert of_the_states is not None
    # Afterwards it learns again, the deviation of its noise included
    actions, log_probs = agent.actor.action_log_prob(states)
    gradients = th.autograd.grad(actions.sum() + log_probs.sum(), list(agent.actor.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_the_penalty_is_linear_or_logarithmic() -> None:
    starts, objectives = 0.1 * th.randn(32, 3), {}
    for penalty, coef in (("linear", 0.0), ("linear", 2.0), ("log", 2.0)):
        agent = make(horizon=1, uncertainty_threshold=INF, uncertainty_coef=coef, uncertainty_penalty=penalty)
        spread_out(agent)
        th.manual_seed(0)
        plan = agent._plan(starts, agent.entropy_coef())
        objectives[penalty, coef] = plan.returns.detach(), plan.uncertainties
    free, u = objectives["linear", 0.0]
    th.testing.assert_close(free - objectives["linear", 2.0][0], 2 * u, rtol=1e-3, atol=1e-3)
    th.testing.assert_close(free - objectives["log", 2.0][0], 2 * u.log(), rtol=1e-3, atol=1e-3)


def test_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make(horizon=5)
    spread_out(agent)
    logged: dict[str, Any] = {}
    monkeypatch.setattr(Logger, "record", lambda self, key, value, exclude=None: logged.update({key: value}))
    agent.uncertainty_threshold = NO_LIMIT
    agent.learn(60, log_interval=1)
    shares = [logged[f"train/stopped_by_{reason}"] for reason in ("error", "terminal", "horizon")]
    assert sum(shares) == pytest.approx(1)
    assert all(0 <= share <= 1 for share in shares)
    assert 0 <= logged["train/horizon_mean"] <= logged["train/horizon_max"] <= 5
    assert logged["train/imagined_transitions"] == pytest.approx(agent.batch_size * logged["train/horizon_mean"])
    assert logged["train/uncertainty_q10"] <= logged["train/uncertainty_q50"] <= logged["train/uncertainty_q90"]
    assert {"train/uncertainty", "train/actor_grad_norm", "model/imagined_transitions"} <= set(logged)


def test_save_and_load_every_tensor(tmp_path: Any) -> None:
    agent = make(uncertainty_threshold=NO_LIMIT, ent_coef="auto", ensemble_size=4)
    agent.learn(40)
    agent.save(tmp_path / "agent")
    agent.save_replay_buffer(tmp_path / "buffer")
    loaded = MPDP.load(tmp_path / "agent", env=PointEnv())
    loaded.load_replay_buffer(tmp_path / "buffer")
    saved_parameters, loaded_parameters = agent.get_parameters(), loaded.get_parameters()
    assert saved_parameters.keys() == loaded_parameters.keys()
    assert {"policy", "actor.optimizer", "critic.optimizer", "world_model", "entropy_coef"} <= saved_parameters.keys()
    assert any("planners.2." in name for name in saved_parameters["policy"])
    # All four policies have been reached, so each has its moments in the one optimiser
    assert len(saved_parameters["actor.optimizer"]["state"]) == 4 * len(list(agent.actor.parameters()))

    def flatten(tree: Any) -> list[Any]:
        values = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else None
        return [tree] if values is None else [leaf for value in values for leaf in flatten(value)]

    leaves, loaded_leaves = flatten(saved_parameters), flatten(loaded_parameters)
    assert len(leaves) == len(loaded_leaves)
    for leaf, loaded_leaf in zip(leaves, loaded_leaves, strict=True):
        assert leaf.equal(loaded_leaf) if isinstance(leaf, th.Tensor) else leaf == loaded_leaf
    assert loaded.horizon == 4
    observation = np.zeros(3, dtype=np.float32)
    assert (agent.predict(observation, deterministic=True)[0] == loaded.predict(observation, deterministic=True)[0]).all()
    loaded.learn(20, reset_num_timesteps=False)
    assert loaded.num_timesteps == 60


def test_the_policy_alone_is_saved_and_loaded(tmp_path: Any) -> None:
    agent = make()
    agent.policy.save(tmp_path / "policy")
    loaded = type(agent.policy).load(tmp_path / "policy")
    for name, value in agent.policy.state_dict().items():
        assert loaded.state_dict()[name].equal(value)


def test_sde_samples_noise_for_every_policy() -> None:
    agent = make(use_sde=True, uncertainty_threshold=NO_LIMIT)
    matrices = [policy.action_dist.exploration_mat.clone() for policy in agent.policy.policies]
    agent.policy.reset_noise()
    for policy, before in zip(agent.policy.policies, matrices, strict=True):
        assert not policy.action_dist.exploration_mat.equal(before)
    agent.learn(25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"horizon": 0}, "`horizon` must be a whole number >= 1"),
        ({"uncertainty_threshold": float("nan")}, "`uncertainty_threshold` must be"),
        ({"uncertainty_coef": -0.1}, "`uncertainty_coef` must be a number >= 0"),
        ({"uncertainty_penalty": "quadratic"}, "`uncertainty_penalty` must be one of 'linear', 'log'"),
        ({"n_elites": 1}, "`n_elites` must be a whole number >= 2"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)
