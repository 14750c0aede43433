"""Model-based Planning Distilled to Policy (Li et al., IJCAI 2023, https://arxiv.org/abs/2307.12933)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule
from stable_baselines3.sac.policies import Actor
from torch import nn

from sb3_modelbased.common.errors import check_at_least, check_count
from sb3_modelbased.common.model_based_algorithm import ModelBasedAlgorithm
from sb3_modelbased.common.policies import frozen
from sb3_modelbased.common.uncertainty import PENALTIES, one_vs_rest_kl
from sb3_modelbased.mpdp.policies import MPDPPolicy

SelfMPDP = TypeVar("SelfMPDP", bound="MPDP")

# A plan is over where an episode goes on with a probability of less than 1 %: nothing that follows would count. Below it a
# learned classifier's probability stays in the discount, and its gradient is what leads away from terminal states
TERMINAL = 0.99
# Quantiles of u that are logged
QUANTILES = (0.1, 0.5, 0.9)


class Plan(NamedTuple):
    """
    A batch of plans, each as long as the model was trusted (T model steps in all, N plans end with a value).

    :param returns: discounted rewards with entropy and penalty up to each plan's end, [B]
    :param rows: plans that end with a value: all but those that met a terminal state, [N]
    :param weights: what their value counts, gamma^t prod (1 - d), [N]
    :param observations: s_t at their end, [N, O]
    :param actions: a_t at their end, [N, A]
    :param log_probs: log pi(a_t | s_t) at their end, [N]
    :param first_log_probs: log pi_0(a_0 | s_0), [B]
    :param uncertainties: u of every pair that was looked at, [T + number of plans that an error stopped]
    :param steps: number of plans that took each model step, so that T is their sum
    :param stopped_by_error: number of plans that ended where the model is not trusted
    :param stopped_by_terminal: number of plans that ended in a terminal state
    """

    returns: th.Tensor
    rows: th.Tensor
    weights: th.Tensor
    observations: th.Tensor
    actions: th.Tensor
    log_probs: th.Tensor
    first_log_probs: th.Tensor
    uncertainties: th.Tensor
    steps: list[int]
    stopped_by_error: int
    stopped_by_terminal: int


class MPDP(ModelBasedAlgorithm):
    """
    Model-based Planning Distilled to Policy (MPDP).

    ``horizon`` policies are trained jointly to plan through the learned model, each plan as long as the members of the
    ensemble agree; the first of them acts. Where nothing is trusted it is SAC.

    Paper: https://arxiv.org/abs/2307.12933

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of the policies, the critics and the entropy coefficient
    :param horizon: most model steps of a plan, H_max, which is the number of policies
    :param uncertainty_threshold: u_T: a plan stops at the first pair whose ``log u`` reaches it; ``float("-inf")`` trusts
        nothing (SAC), ``float("inf")`` everything (a fixed horizon)
    :param uncertainty_coef: beta, what a model step is penalised by its disagreement
    :param uncertainty_penalty: "linear" for the penalty beta u, "log" for beta log u
    :param ensemble_size: members of the dynamics ensemble, K
    :param n_elites: members, the best on the holdout, that imagine and whose disagreement is u
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: arguments of
        :class:`~sb3_modelbased.common.model_based_algorithm.ModelBasedAlgorithm`: SB3's and the model's
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MPDPPolicy}
    policy: MPDPPolicy

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        horizon: int = 25,
        uncertainty_threshold: float = 3.0,
        uncertainty_coef: float = 0.02,
        uncertainty_penalty: str = "linear",
        ensemble_size: int = 7,
        n_elites: int = 7,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy, env, learning_rate, ensemble_size=ensemble_size, n_elites=n_elites, _init_setup_model=False, **kwargs
        )
        self.horizon = horizon
        self.uncertainty_threshold = uncertainty_threshold
        self.uncertainty_coef = uncertainty_coef
        self.uncertainty_penalty = uncertainty_penalty
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_count("horizon", self.horizon, 1)
        check_at_least("uncertainty_threshold", self.uncertainty_threshold, float("-inf"))
        check_at_least("uncertainty_coef", self.uncertainty_coef, 0)
        # One member has no rest to disagree with
        check_count("n_elites", self.n_elites, 2)
        if self.uncertainty_penalty not in PENALTIES:
            raise ValueError(
                f"`uncertainty_penalty` must be one of {', '.join(map(repr, PENALTIES))}, but it is "
                f"{self.uncertainty_penalty!r}. Leave it out for 'linear', the paper's equation 10."
            )

    def _setup_model(self) -> None:
        self.policy_kwargs["n_policies"] = self.horizon
        super()._setup_model()

    @property
    def uses_model(self) -> bool:
        """False where MPDP reduces to SAC."""
        return self.uncertainty_threshold > float("-inf")

    @property
    def _graphs_updates(self) -> bool:
        """False: how many plans go on is known only while planning, and a CUDA graph has one shape."""
        return False

    @property
    def _compiles_updates(self) -> bool:
        """False, for the same reason."""
        return False

    def _policy_fn(self, observations: th.Tensor, step: int = 0) -> tuple[th.Tensor, th.Tensor]:
        """
        :param observations: raw, [B, O]
        :param step: time in the plan
        :return: actions of pi_step in [-1, 1], [B, A], and their log-probabilities [B]
        """
        return self.policy.policies[step].action_log_prob(self._view.observations(observations))

    def _plan(self, observations: th.Tensor, ent_coef: th.Tensor) -> Plan:
        r"""
        Follow pi_0, pi_1, ... through the model (algorithm 1, corrected to equation 9). A plan that stopped leaves the
        batch and costs nothing further.

        :param observations: s_0, [B, O]
        :param ent_coef: alpha
        :return: the plans and where they need a value
        """
        batch_size, device = len(observations), observations.device
        returns = th.zeros(batch_size, device=device)
        rows, weights, states = th.arange(batch_size, device=device), th.ones(batch_size, device=device), observations
        first_log_probs, uncertainties, ends, steps, terminals = None, [], [], [], 0
        for step in range(self.horizon):
            actions, log_probs = self._policy_fn(states, step)
            first_log_probs = log_probs if step == 0 else first_log_probs
            predictions = self.world_model.predict_members(states, actions)
            # u(s_t, a_t) = sum_i KL(p_i || p_{-i})
            u = one_vs_rest_kl(predictions.mean, predictions.log_var)
            uncertainties.append(u.detach())

            # Over the threshold: end with Q(s_t, a_t) - alpha log pi(a_t | s_t), without the model step
            stops = u.detach().log() >= self.uncertainty_threshold
            stopped, trusted = stops.nonzero().squeeze(-1), (~stops).nonzero().squeeze(-1)
            if len(stopped):
                ends.append(_select(stopped, rows, weights, states, actions, log_probs))
            rows, weights, states, actions, log_probs, u = _select(trusted, rows, weights, states, actions, log_probs, u)
            steps.append(len(rows))
            if not len(rows):
                break

            # J <- J + gamma^t [r(s_t, a_t) - alpha log pi(a_t | s_t) - beta u(s_t, a_t)]
            prediction = self.world_model.step_predicted(states, actions, predictions, trusted)
            penalties = self.uncertainty_coef * PENALTIES[self.uncertainty_penalty](u)
            rewards = self._view.rewards(prediction.rewards) - ent_coef * log_probs - penalties
            returns = returns.index_add(0, rows, weights * rewards)

            # Nothing follows a terminal state
            weights = weights * self.gamma * (1 - prediction.terminated)
            alive = (prediction.terminated < TERMINAL).nonzero().squeeze(-1)
            terminals += len(rows) - len(alive)
            rows, weights, states = _select(alive, rows, weights, prediction.next_observations)
            if not len(rows):
                break
        else:
            # At H_max: end with V(s_H) = Q(s_H, a_H) - alpha log pi(a_H | s_H) of the policy that acts, held fixed (pi_old)
            with held_fixed(self.actor):
                actions, log_probs = self._policy_fn(states)
            ends.append((rows, weights, states, actions, log_probs))
        assert first_log_probs is not None
        if not ends:  # every plan met a terminal state
            ends.append(tuple(x[:0] for x in (rows, weights, states, actions, log_probs)))
        rows, weights, states, actions, log_probs = (th.cat(parts) for parts in zip(*ends, strict=True))
        return Plan(
            returns,
            rows,
            weights,
            states,
            actions,
            log_probs,
            first_log_probs=first_log_probs,
            uncertainties=th.cat(uncertainties),
            steps=steps,
            stopped_by_error=sum(map(len, uncertainties)) - sum(steps),
            stopped_by_terminal=terminals,
        )

    def _objective(self, plan: Plan, ent_coef: th.Tensor) -> th.Tensor:
        """
        :param plan: plans of B start states
        :param ent_coef: alpha
        :return: J of each, with the critics' values at their ends (equation 9), [B]
        """
        q_values = self.critic(self._view.observations(plan.observations), plan.actions).amin(dim=0)
        return plan.returns.index_add(0, plan.rows, plan.weights * (q_values - ent_coef * plan.log_probs))

    def _update(self, batch: ReplayBufferSamples) -> None:
        """
        One update of the entropy coefficient, the critics and all policies (algorithm 2, lines 5 to 7).

        :param batch: transitions in environment units
        """
        if self.use_sde:
            self.policy.reset_noise()
        ent_coef = self.entropy_coef()

        # Plan from every state of the batch
        plan = self._plan(batch.observations, ent_coef)

        ent_coef_loss = self.entropy_coef.update(plan.first_log_probs)

        # J_Q = 1/2 sum_j E[(Q_j(s, a) - y)^2], as in SAC
        targets = self._critic_targets(batch, ent_coef)
        q_values = self.critic(self._view.observations(batch.observations), batch.actions)
        critic_loss = 0.5 * (q_values - targets).square().mean(dim=1).sum()
        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        self.critic.optimizer.step()

        # J_pi = E[sum_{t<h} gamma^t (r(s_t, a_t) - alpha log pi_t(a_t | s_t) - beta u(s_t, a_t)) + gamma^h V(s_h)]
        actor_loss = -self._objective(plan, ent_coef).mean()
        reached = nn.ModuleList(self.policy.policies[: len(plan.steps)])
        parameters = list(reached.parameters())
        self.actor.optimizer.zero_grad()
        actor_loss.backward(inputs=parameters)  # no gradient for the critics' weights
        self.actor.optimizer.step()

        self.imagined_transitions += sum(plan.steps)
        self._log_plan(plan)
        self.metrics.add(
            ent_coef=ent_coef,
            actor_loss=actor_loss.detach(),
            critic_loss=critic_loss.detach(),
            q_value=q_values.detach().mean(),
            entropy=-plan.first_log_probs.detach().mean(),
            actor_grad_norm=th.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]),
        )
        if ent_coef_loss is not None:
            self.metrics.add(ent_coef_loss=ent_coef_loss)

    @th.no_grad()
    def _critic_targets(self, batch: ReplayBufferSamples, ent_coef: th.Tensor) -> th.Tensor:
        r"""
        SAC's target :math:`y = r + \gamma (1 - d) [\min_j \bar Q_j(s', a') - \alpha \log \pi_0(a'|s')]`.

        :param batch: real transitions
        :param ent_coef: alpha
        :return: [B]
        """
        actions, log_probs = self._policy_fn(batch.next_observations)
        next_values = self.critic_target(self._view.observations(batch.next_observations), actions).amin(dim=0)
        rewards, discounts = self._view.rewards(batch.rewards).squeeze(-1), self.gamma * (1 - batch.dones.squeeze(-1))
        return rewards + discounts * (next_values - ent_coef * log_probs)

    def _log_plan(self, plan: Plan) -> None:
        """
        :param plan: whose lengths and errors are logged
        """
        # Counts are known without a look at the device: dropping rows has needed them
        batch_size, transitions = len(plan.returns), sum(plan.steps)
        counts = {
            "horizon_mean": transitions / batch_size,
            "horizon_max": sum(count > 0 for count in plan.steps),
            "stopped_by_error": plan.stopped_by_error / batch_size,
            "stopped_by_terminal": plan.stopped_by_terminal / batch_size,
            "stopped_by_horizon": 1 - (plan.stopped_by_error + plan.stopped_by_terminal) / batch_size,
            "imagined_transitions": transitions,
        }
        # One copy to the device, where the means are
        values = plan.uncertainties.new_tensor(list(counts.values()))
        quantiles = plan.uncertainties.quantile(plan.uncertainties.new_tensor(QUANTILES))
        self.metrics.add(
            uncertainty=plan.uncertainties.mean(),
            **{f"uncertainty_q{100 * q:.0f}": value for q, value in zip(QUANTILES, quantiles, strict=True)},
            **dict(zip(counts, values.unbind(), strict=True)),
        )

    def learn(
        self: SelfMPDP,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MPDP",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMPDP:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.learn`."""
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )


def _select(rows: th.Tensor, *tensors: th.Tensor) -> tuple[th.Tensor, ...]:
    """
    :param rows: numbers of rows in ascending order, [N]
    :param tensors: [B, ...]
    :return: these rows of each, [N, ...]; where they are all of them, the tensors themselves
    """
    return tensors if len(rows) == len(tensors[0]) else tuple(x[rows] for x in tensors)


@contextmanager
def held_fixed(policy: Actor) -> Iterator[None]:
    """
    Evaluate a policy as a constant function: the gradient flows to the states and not to its parameters.

    :param policy: whose parameters all require a gradient outside
    """
    with frozen(policy):
        if not policy.use_sde:
            yield
            return
        # gSDE's noise was drawn before, as a function of the policy's deviation
        noise = policy.action_dist
        drawn = noise.exploration_mat, noise.exploration_matrices
        noise.exploration_mat, noise.exploration_matrices = (matrices.detach() for matrices in drawn)
        try:
            yield
        finally:
            noise.exploration_mat, noise.exploration_matrices = drawn
