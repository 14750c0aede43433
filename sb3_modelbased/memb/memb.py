"""Model Embedding Model-Based Reinforcement Learning (Tan et al., 2020, https://arxiv.org/abs/2006.09234)."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule
from torch import nn

from sb3_modelbased.common.errors import check_count
from sb3_modelbased.common.imagination import imagine
from sb3_modelbased.common.known_dynamics import KnownDynamics, TrueModel, check_true_model, resolve_true_model
from sb3_modelbased.common.model_based_algorithm import ModelBasedAlgorithm
from sb3_modelbased.common.model_trainer import ModelLoss, nll_loss, sampled_mse_loss
from sb3_modelbased.common.returns import alive, discounted_sum, lambda_returns
from sb3_modelbased.common.type_aliases import Trajectory
from sb3_modelbased.common.world_model import Dynamics, WorldModel
from sb3_modelbased.memb.policies import MEMBPolicy, ValueFunction

SelfMEMB = TypeVar("SelfMEMB", bound="MEMB")

MODEL_LOSSES: dict[str, ModelLoss] = {"sampled_mse": sampled_mse_loss, "nll": nll_loss}


class MEMB(ModelBasedAlgorithm):
    """
    Model Embedding Model-Based Reinforcement Learning (MEMB).

    The model is embedded in the soft Bellman equation: the actor's gradient runs through the reward, the dynamics and
    the next state's value, from real states. Q and V learn from real transitions. Nothing of the environment is assumed
    to be known.

    Paper: https://arxiv.org/abs/2006.09234

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate of the actor and the entropy coefficient
    :param value_learning_rate: learning rate of Q and V; None for ``learning_rate``
    :param batch_size: minibatch size of each update
    :param gradient_steps: updates m after each rollout (env step)
    :param imagination_horizon: model steps k in the actor's objective
    :param value_expansion_horizon: length H of the trajectories that Q is trained on, 1 for real transitions only; the
        H - 1 steps behind the real one are imagined (appendix B.1)
    :param ensemble_size: members of the dynamics ensemble; the paper has one
    :param n_elites: members, the best on the holdout, that imagine
    :param model_net_arch: hidden layers of each member's dynamics network
    :param reward_net_arch: hidden layers of each member's reward network; None to predict the reward by the dynamics
        network
    :param model_loss: "sampled_mse" (equation 4), "nll", or a function as
        :class:`~sb3_modelbased.common.model_trainer.ModelLoss`
    :param true_model: the true dynamics instead of a learned model: an object with
        ``step(observations, actions) -> (next_observations, rewards)`` in environment units, or "gymnasium" for those of a
        Gymnasium task (Pendulum-v1). ``termination_fn`` says where it terminates; without one it never does. A
        ``reward_fn`` takes the place of its rewards
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: further arguments of :class:`~sb3_modelbased.common.model_based_algorithm.ModelBasedAlgorithm`: SB3's
        and the model's
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MEMBPolicy}
    policy: MEMBPolicy
    value: ValueFunction
    value_target: ValueFunction

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        value_learning_rate: float | Schedule | None = 1e-3,
        batch_size: int = 100,
        gradient_steps: int = 5,
        imagination_horizon: int = 1,
        value_expansion_horizon: int = 1,
        ensemble_size: int = 5,
        n_elites: int = 5,
        model_net_arch: Sequence[int] = (200, 200, 200),
        reward_net_arch: Sequence[int] | None = (200, 200, 200),
        model_loss: str | ModelLoss = "sampled_mse",
        true_model: TrueModel | str | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            policy,
            env,
            learning_rate,
            batch_size=batch_size,
            gradient_steps=gradient_steps,
            value_learning_rate=value_learning_rate,
            ensemble_size=ensemble_size,
            n_elites=n_elites,
            model_net_arch=model_net_arch,
            _init_setup_model=False,
            **kwargs,
        )
        self.imagination_horizon = imagination_horizon
        self.value_expansion_horizon = value_expansion_horizon
        self.reward_net_arch = reward_net_arch
        self.model_loss = model_loss
        self.true_model = true_model
        self._known_true_model: TrueModel | None = None
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_count("imagination_horizon", self.imagination_horizon, 1)
        check_count("value_expansion_horizon", self.value_expansion_horizon, 1)
        if not callable(self.model_loss) and self.model_loss not in MODEL_LOSSES:
            raise ValueError(
                f"`model_loss` must be one of {', '.join(map(repr, MODEL_LOSSES))}, or a function (ensemble, mean, log_var, "
                f"targets) -> loss, but it is {self.model_loss!r}. Leave it out for the paper's 'sampled_mse'."
            )
        if "loss_fn" in (self.model_kwargs or {}):
            raise ValueError("`model_kwargs` has a `loss_fn`, but MEMB's is `model_loss`. Give it there.")

    def _setup_model(self) -> None:
        super()._setup_model()
        self.model_trainer.loss_fn = self.model_loss if callable(self.model_loss) else MODEL_LOSSES[self.model_loss]
        self._setup_true_model()

    def _setup_true_model(self) -> None:
        self._known_true_model = resolve_true_model(self.true_model, self.env, self._known_true_model)
        self.dynamics: Dynamics = self.world_model
        if self._known_true_model is not None:
            check_true_model(self._known_true_model, *self._example_pairs())
            self.dynamics = KnownDynamics(self._known_true_model, self.world_model)

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        As in SB3; a known termination function and a known true model are read anew from the environment.

        :param env: The environment for learning a policy
        :param force_reset: Force call to ``reset()`` before training
        """
        super().set_env(env, force_reset=force_reset)
        self._setup_true_model()

    def _make_world_model(self, observation_dim: int, **kwargs: Any) -> WorldModel:
        return super()._make_world_model(observation_dim, reward_net_arch=self.reward_net_arch, **kwargs)

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.critic = self.policy.critic
        self.value = self.policy.value
        self.value_target = self.policy.value_target

    @property
    def uses_model(self) -> bool:
        """False with a true model: there is nothing to fit."""
        return self._known_true_model is None

    def _imagined_per_update(self, batch_size: int) -> int:
        return batch_size * (self.imagination_horizon + self.value_expansion_horizon - 1)

    def _averaged_networks(self) -> tuple[nn.Module, nn.Module]:
        """
        :return: the target value function, and the one that it follows
        """
        return self.value_target, self.value

    def _update(self, batch: ReplayBufferSamples) -> None:
        """
        One update of Q, V, the actor and the entropy coefficient (algorithm 1, phase 3).

        :param batch: transitions in environment units
        """
        if self.use_sde:
            self.actor.reset_noise()
        ent_coef = self.entropy_coef()
        observations = self._view.observations(batch.observations)
        actions, log_probs = self._policy_fn(batch.observations)

        ent_coef_loss = self.entropy_coef.update(log_probs)

        # V(s) = r(s, a) - alpha log pi(a|s) + gamma V(f(s, a, zeta)) with a = kappa(s, eta; theta)
        soft_values = self._embedded_values(batch, actions, log_probs, ent_coef)
        actor_loss = -soft_values.mean()
        actor_parameters = self.actor.optimizer.param_groups[0]["params"]
        self.actor.optimizer.zero_grad()
        actor_loss.backward(inputs=actor_parameters)  # no gradient for V's weights

        # J_V = 1/2 E[(V(s) - min_j Q_j(s, a) + alpha log pi(a|s))^2]
        value_loss = self._value_loss(observations, actions, log_probs, ent_coef)

        # J_Q = 1/2 sum_j E[(Q_j(s, a) - r - gamma V_target(s'))^2]
        critic_loss, q_values = self._critic_loss(batch, ent_coef)

        # The box calculates all gradients first, then updates
        self.critic.optimizer.zero_grad()
        (critic_loss + value_loss).backward(inputs=self.critic.optimizer.param_groups[0]["params"])
        self.critic.optimizer.step()
        self.actor.optimizer.step()

        self.metrics.add(
            ent_coef=ent_coef,
            actor_loss=actor_loss.detach(),
            critic_loss=critic_loss.detach(),
            value_loss=value_loss.detach(),
            q_value=q_values.detach().mean(),
            entropy=-log_probs.detach().mean(),
            actor_grad_norm=th.nn.utils.get_total_norm([p.grad for p in actor_parameters if p.grad is not None]),
        )
        if ent_coef_loss is not None:
            self.metrics.add(ent_coef_loss=ent_coef_loss)

    def _embedded_values(
        self, batch: ReplayBufferSamples, actions: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor
    ) -> th.Tensor:
        r"""
        The soft Bellman equation with the model in it (equation 8), unrolled k times:

        .. math:: V(s_0) = \sum_{t<k} \gamma^t [\hat r_t - \alpha \log \pi(a_t|s_t)] + \gamma^k V_\psi(s_k)

        where nothing counts behind an imagined terminal. Differentiable with respect to the actor (equation 9).

        :param batch: real transitions, of which the states start the rollouts
        :param actions: a_0 ~ pi, [B, A]
        :param log_probs: log pi(a_0 | s_0), [B]
        :param ent_coef: alpha
        :return: [B]
        """
        first = self.dynamics.step(batch.observations, actions)
        then = imagine(self.dynamics, self._policy_fn, first.next_observations, self.imagination_horizon - 1)
        last_values = self.value(self._view.observations(then.observations[-1]))
        rewards = self._view.rewards(then.rewards) - ent_coef * then.log_probs
        next_values = discounted_sum(rewards, self.gamma * (1 - then.terminated), last_values)
        return self._view.rewards(first.rewards) - ent_coef * log_probs + self.gamma * (1 - first.terminated) * next_values

    def _value_loss(self, observations: th.Tensor, actions: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor) -> th.Tensor:
        r"""
        Equation 5, :math:`J_V = \frac12 E[(V(s) - \min_j Q_j(s, a) + \alpha \log \pi(a|s))^2]`.

        :param observations: as the agent sees them, [B, O]
        :param actions: a ~ pi, [B, A]
        :param log_probs: log pi(a | s), [B]
        :param ent_coef: alpha
        :return: scalar
        """
        with th.no_grad():
            targets = self.critic(observations, actions).amin(dim=0) - ent_coef * log_probs
        return 0.5 * (self.value(observations) - targets).square().mean()

    def _critic_loss(self, batch: ReplayBufferSamples, ent_coef: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        r"""
        Equation 6, on trajectories of value expansion (section 3.2) whose first transition is real:

        .. math:: J_Q = \frac{1}{2H} \sum_{t<H} \sum_j E[(Q_j(s_t, a_t) - y_t)^2], \qquad
            y_t = r_t + \gamma_t (y_{t+1} - \alpha \log \pi(a_{t+1}|s_{t+1})), \qquad
            y_{H-1} = r_{H-1} + \gamma_{H-1} \bar V(s_H)

        With H = 1 only the real transition is left. Imagined transitions behind a terminal do not count.

        :param batch: real transitions
        :param ent_coef: alpha
        :return: the loss, and Q_j at the real transitions [n_critics, B]
        """
        with th.no_grad():
            trajectory = self._expand(batch)
            discounts = self.gamma * (1 - trajectory.terminated)
            bonus = -ent_coef * trajectory.log_probs
            last_values = self.value_target(self._view.observations(trajectory.observations[-1]))
            # An H-step return looks at the last of the values only. It holds its first step's bonus, Q does not.
            returns = lambda_returns(trajectory.rewards + bonus, discounts, last_values.expand_as(discounts))
            targets = returns - bonus
            weights = alive(trajectory.terminated)
        states = self._view.observations(trajectory.observations[:-1])
        q_values = self.critic(states.flatten(0, 1), trajectory.actions.flatten(0, 1))
        errors = q_values.unflatten(1, weights.shape) - targets
        return 0.5 * (weights * errors.square()).mean(dim=(1, 2)).sum(), q_values[:, : weights.shape[1]]

    def _expand(self, batch: ReplayBufferSamples) -> Trajectory:
        """
        :param batch: real transitions
        :return: H steps, of which the first is real; it has no entropy bonus, so that its log-probability is 0
        """
        states = th.stack([batch.observations, batch.next_observations])
        rewards = batch.rewards.T
        real = Trajectory(
            states, batch.actions.unsqueeze(0), th.zeros_like(rewards), self._view.rewards(rewards), batch.dones.T
        )
        imagined_steps = self.value_expansion_horizon - 1
        if not imagined_steps:
            return real
        then = imagine(self.dynamics, self._policy_fn, batch.next_observations, imagined_steps)
        then = then._replace(observations=then.observations[1:], rewards=self._view.rewards(then.rewards))
        return Trajectory(*(th.cat(parts) for parts in zip(real, then, strict=True)))

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "value", "value_target", "dynamics"]

    def learn(
        self: SelfMEMB,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "MEMB",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfMEMB:
        """See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.learn`."""
        return super().learn(
            total_timesteps=total_timesteps,
            callback=callback,
            log_interval=log_interval,
            tb_log_name=tb_log_name,
            reset_num_timesteps=reset_num_timesteps,
            progress_bar=progress_bar,
        )
