"""Model-Augmented Actor-Critic (Clavera et al., ICLR 2020, https://arxiv.org/abs/2005.08068)."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule

from sb3_modelbased.common.buffers import ImaginaryBuffer
from sb3_modelbased.common.errors import check_count, check_share
from sb3_modelbased.common.imagination import branched_rollouts, imagine
from sb3_modelbased.common.model_based_algorithm import ModelBasedAlgorithm
from sb3_modelbased.common.returns import alive, discounted_sum, k_step_returns, lambda_returns, steve_weights
from sb3_modelbased.common.schedules import RolloutLengthSchedule
from sb3_modelbased.common.type_aliases import Trajectory

SelfMAAC = TypeVar("SelfMAAC", bound="MAAC")


class MAAC(ModelBasedAlgorithm):
    """
    Model-Augmented Actor-Critic (MAAC).

    The actor's gradient runs through ``horizon`` steps of the learned model and ends in the critics; the critics learn
    from STEVE targets on real and imagined transitions. ``horizon=0, steve=False`` is MBPO (Janner et al., 2019), and
    with ``real_ratio=1.0`` on top it is SAC.

    Paper: https://arxiv.org/abs/2005.08068

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of the actor, the critics and the entropy coefficient
    :param horizon: model steps H in the actor's objective
    :param n_action_samples: imagined trajectories per start state in the actor's objective
    :param steve: learn the critics from STEVE targets; False for one-step targets
    :param steve_horizon: model steps in the critics' targets; None for ``horizon``
    :param on_policy_critic: learn the critics on the actor's own imagined trajectory instead of on the batch, every step
        of it towards its return (model-based value expansion, Feinberg et al., 2018); shares the model steps with the
        actor. Not in the paper; needs ``horizon >= 1`` and takes the place of ``steve``
    :param critic_batch_size: with ``on_policy_critic``, pairs of the imagined trajectories in each update of the critics,
        drawn at random; None for all of them, ``horizon * batch_size * n_action_samples``
    :param real_ratio: share of real transitions in each batch, the others are imagined
    :param rollout_length: model steps of the branched rollouts that fill the imaginary buffer: a number, or
        ``[first, last, start, end]`` to grow from first to last between the env steps start and end
    :param rollout_freq: env steps between two fillings of the imaginary buffer
    :param rollout_batch_size: real states that branched rollouts start from, at each filling
    :param imaginary_buffer_size: imagined transitions to keep, the newest
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: arguments of
        :class:`~sb3_modelbased.common.model_based_algorithm.ModelBasedAlgorithm`: SB3's and the model's
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        horizon: int = 3,
        n_action_samples: int = 1,
        steve: bool = True,
        steve_horizon: int | None = None,
        on_policy_critic: bool = False,
        critic_batch_size: int | None = None,
        real_ratio: float = 0.05,
        rollout_length: int | Sequence[int] = 1,
        rollout_freq: int = 250,
        rollout_batch_size: int = 10_000,
        imaginary_buffer_size: int = 400_000,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, learning_rate, _init_setup_model=False, **kwargs)
        self.horizon = horizon
        self.n_action_samples = n_action_samples
        self.steve = steve
        self.steve_horizon = steve_horizon
        self.on_policy_critic = on_policy_critic
        self.critic_batch_size = critic_batch_size
        self.real_ratio = real_ratio
        self.rollout_length = rollout_length
        self.rollout_freq = rollout_freq
        self.rollout_batch_size = rollout_batch_size
        self.imaginary_buffer_size = imaginary_buffer_size
        self.imagined_at = 0  # env steps at the last filling of the imaginary buffer
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_count("horizon", self.horizon, 0)
        check_count("n_action_samples", self.n_action_samples, 1)
        check_count("steve_horizon", 0 if self.steve_horizon is None else self.steve_horizon, 0)
        if self.on_policy_critic and self.horizon < 1:
            raise ValueError(
                "`on_policy_critic` learns from the actor's imagined trajectory and needs horizon >= 1, but horizon="
                f"{self.horizon}. Pass a longer horizon, or on_policy_critic=False."
            )
        check_count("critic_batch_size", 1 if self.critic_batch_size is None else self.critic_batch_size, 1)
        n_critics = self.policy_kwargs.get("n_critics", 2)
        if self._target_horizon and n_critics == 1:
            raise ValueError(
                "`steve` weighs horizons by how far the critics and the model's members disagree and needs two critics, but "
                "policy_kwargs has n_critics=1: nothing would disagree at the horizon 0. Pass n_critics=2 or more, or "
                "steve=False."
            )
        check_share("real_ratio", self.real_ratio)
        check_count("rollout_freq", self.rollout_freq, 1)
        check_count("rollout_batch_size", self.rollout_batch_size, 1)
        check_count("imaginary_buffer_size", self.imaginary_buffer_size, self.batch_size)

    def _setup_model(self) -> None:
        super()._setup_model()
        self.rollout_length_schedule = RolloutLengthSchedule(self.rollout_length)
        self.imaginary_buffer = ImaginaryBuffer(
            self.imaginary_buffer_size, self.world_model.observation_dim, self.world_model.action_dim, self.device
        )

    @property
    def uses_model(self) -> bool:
        """Whether the model is of use: False where MAAC reduces to SAC."""
        return self.horizon > 0 or self._target_horizon > 0 or self.real_ratio < 1

    @property
    def _target_horizon(self) -> int:
        if not self.steve or self.on_policy_critic:
            return 0
        return self.horizon if self.steve_horizon is None else self.steve_horizon

    def _prepare_imagination(self) -> None:
        """Fit the model and fill D_model where that is due (algorithm 1, lines 3 to 6)."""
        super()._prepare_imagination()
        if self.real_ratio == 1 or self.model_fit_at is None:
            return
        if len(self.imaginary_buffer) and self.num_timesteps - self.imagined_at < self.rollout_freq:
            return
        with self.stopwatch.measure("imagination"):
            starts = self.real_data[self.real_data.random_rows(self.rollout_batch_size)].observations
            length = self.rollout_length_schedule(self.num_timesteps)
            self.imagined_transitions += branched_rollouts(
                self.world_model, self._policy_fn, starts, length, self.imaginary_buffer
            )
            self.imagined_at = self.num_timesteps
        self.logger.record("model/rollout_length", length)

    def _shift_schedule(self, steps: int) -> None:
        super()._shift_schedule(steps)
        self.imagined_at += steps

    def _static_addresses(self) -> tuple[int, ...]:
        return (*super()._static_addresses(), self.imaginary_buffer.address)

    def _imagined_per_update(self, batch_size: int) -> int:
        expansion = self._target_horizon * self.world_model.n_elites
        return batch_size * (self.horizon * self.n_action_samples + expansion)

    def _sample_batch(self, batch_size: int) -> ReplayBufferSamples:
        """
        :param batch_size: number of transitions
        :return: a batch of D = D_env and D_model, in environment units
        """
        n_real = round(self.real_ratio * batch_size)
        parts = [self._real_batch(n_real)] if n_real else []
        if n_real < batch_size:
            parts.append(self.imaginary_buffer.sample(batch_size - n_real))
        if len(parts) == 1:
            return parts[0]
        pairs = [pair for pair in zip(*parts, strict=True) if pair[0] is not None]
        return ReplayBufferSamples(*(th.cat(pair) for pair in pairs))

    def _update(self, batch: ReplayBufferSamples) -> None:
        """
        One update of the entropy coefficient, the critics and the actor (algorithm 1, lines 10 and 11).

        :param batch: transitions in environment units
        """
        if self.use_sde:
            self.actor.reset_noise()
        ent_coef = self.entropy_coef()

        # Imagine s_0, a_0, ..., s_H, a_H: the gradient runs through policy and model at every step
        starts = batch.observations.repeat(self.n_action_samples, 1) if self.n_action_samples > 1 else batch.observations
        trajectory = imagine(self.world_model, self._policy_fn, starts, self.horizon)
        last_actions, last_log_probs = self._policy_fn(trajectory.observations[-1], self.horizon)
        first_log_probs = trajectory.log_probs[0] if self.horizon else last_log_probs

        ent_coef_loss = self.entropy_coef.update(first_log_probs)

        # J_Q = 1/2 sum_j E[(Q_j(s, a) - y)^2]
        if self.on_policy_critic:
            imagined = Trajectory(*(x.detach() for x in trajectory))
            observations, actions = imagined.observations[:-1].flatten(0, 1), imagined.actions.flatten(0, 1)
            targets = self._trajectory_targets(imagined, last_actions.detach(), last_log_probs.detach(), ent_coef)
            weights = alive(imagined.terminated).flatten()
            if self.critic_batch_size is not None:
                # The steps of a long trajectory resemble each other, so that all of them cost more than they say
                chosen = th.randint(len(targets), (self.critic_batch_size,), device=self.device)
                observations, actions, targets, weights = (x[chosen] for x in (observations, actions, targets, weights))
        else:
            observations, actions = batch.observations, batch.actions
            targets = self._batch_targets(batch, ent_coef)
            weights = th.ones_like(targets)
        q_values = self.critic(self._view.observations(observations), actions)
        critic_loss = 0.5 * (weights * (q_values - targets).square()).mean(dim=1).sum()
        self.critic.optimizer.zero_grad()
        critic_loss.backward()
        self.critic.optimizer.step()

        # J_pi = E[sum_{t<H} gamma^t r(s_t, a_t) + gamma^H min_j Q_j(s_H, a_H)] + alpha entropy(pi(.|s_0))
        last_values = self.critic(self._view.observations(trajectory.observations[-1]), last_actions).amin(dim=0)
        discounts = self.gamma * (1 - trajectory.terminated)
        returns = discounted_sum(self._view.rewards(trajectory.rewards), discounts, last_values)
        actor_loss = (ent_coef * first_log_probs - returns).mean()
        actor_parameters = self.actor.optimizer.param_groups[0]["params"]
        self.actor.optimizer.zero_grad()
        actor_loss.backward(inputs=actor_parameters)  # no gradient for the critics' weights
        self.actor.optimizer.step()

        self.metrics.add(
            ent_coef=ent_coef,
            actor_loss=actor_loss.detach(),
            critic_loss=critic_loss.detach(),
            q_value=q_values.detach().mean(),
            entropy=-first_log_probs.detach().mean(),
            actor_grad_norm=th.nn.utils.get_total_norm([p.grad for p in actor_parameters if p.grad is not None]),
        )
        if ent_coef_loss is not None:
            self.metrics.add(ent_coef_loss=ent_coef_loss)

    @th.no_grad()
    def _batch_targets(self, batch: ReplayBufferSamples, ent_coef: th.Tensor) -> th.Tensor:
        r"""
        STEVE targets (Buckman et al., 2018): for each horizon h and each member m the return of h model steps behind the
        transition, :math:`T_h^m = r + \gamma_0 [\hat r_1 - \alpha \log \pi_1 + \gamma_1 [... V(s_{h+1})]]`, averaged over
        members and mixed over h by the inverse of its variance over members and critics. With h = 0 only, SAC's target.

        :param batch: transitions
        :param ent_coef: alpha
        :return: [B]
        """
        horizon, batch_size = self._target_horizon, len(batch.observations)
        members = self.world_model.n_elites if horizon else 1
        rewards = [self._view.rewards(batch.rewards).T.expand(members, -1)]
        discounts = [self.gamma * (1 - batch.dones).T.expand(members, -1)]
        values = []
        # All members start at the same s', with the same action
        states = batch.next_observations.unsqueeze(0)
        for step in range(horizon + 1):
            flat_states = states.flatten(0, 1)
            actions, log_probs = self._policy_fn(flat_states, step)
            q_values = self.critic_target(self._view.observations(flat_states), actions)
            bonus = (-ent_coef * log_probs).reshape(-1, batch_size).expand(members, -1)
            values.append(q_values.unflatten(1, (-1, batch_size)) + bonus)
            if step < horizon:
                states = states.expand(members, -1, -1)
                actions = actions.reshape(-1, batch_size, actions.shape[-1]).expand(members, -1, -1)
                prediction = self.world_model.step_members(states, actions)
                rewards.append(self._view.rewards(prediction.rewards) + bonus)
                discounts.append(self.gamma * (1 - prediction.terminated))
                states = prediction.next_observations
        # [horizon + 1, critics, members, B]
        targets = k_step_returns(th.stack(rewards).unsqueeze(1), th.stack(discounts).unsqueeze(1), th.stack(values))
        pessimistic = targets.amin(dim=1).mean(dim=1)
        if not horizon:
            return pessimistic[0]
        weights = steve_weights(targets.flatten(1, 2).var(dim=1, correction=0))
        return (weights * pessimistic).sum(dim=0)

    @th.no_grad()
    def _trajectory_targets(
        self, trajectory: Trajectory, last_actions: th.Tensor, last_log_probs: th.Tensor, ent_coef: th.Tensor
    ) -> th.Tensor:
        r"""
        Soft H-step returns of every step of an on-policy trajectory,
        :math:`G_t = r_t + \gamma_t [G_{t+1} - \alpha \log \pi(a_{t+1}|s_{t+1})]`, :math:`G_H = \min_j \bar Q_j(s_H, a_H)`.

        :param trajectory: H steps
        :param last_actions: a_H, [B, A]
        :param last_log_probs: log pi(a_H | s_H), [B]
        :param ent_coef: alpha
        :return: [H * B]
        """
        last_values = self.critic_target(self._view.observations(trajectory.observations[-1]), last_actions).amin(dim=0)
        discounts = self.gamma * (1 - trajectory.terminated)
        following_log_probs = th.cat([trajectory.log_probs[1:], last_log_probs.unsqueeze(0)])
        soft_rewards = self._view.rewards(trajectory.rewards) - discounts * ent_coef * following_log_probs
        # With lambda = 1 the values in between do not count
        return lambda_returns(soft_rewards, discounts, last_values.expand_as(soft_rewards)).flatten()

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "imaginary_buffer"]

    def learn(
        self: SelfMAAC,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MAAC",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMAAC:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.learn`."""
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
