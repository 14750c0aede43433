"""SVG(1) (Heess et al., 2015, https://arxiv.org/abs/1510.09142) with MEMB's critics, for MEMB's figure 2a."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_modelbased.common.errors import check_at_least
from sb3_modelbased.common.type_aliases import Transitions
from sb3_modelbased.common.world_model import ModelStep, WorldModel
from sb3_modelbased.memb.memb import MEMB

# Actions at their bounds have no finite noise: they are taken for this far inside
ACTION_MARGIN = 1e-6


class BehaviorSamples(NamedTuple):
    """
    SB3's ``ReplayBufferSamples`` with the log-probability of each action when it was taken.

    :param observations: [B, O]
    :param actions: scaled to [-1, 1], [B, A]
    :param next_observations: [B, O]
    :param dones: 1.0 where the task ended, [B, 1]
    :param rewards: [B, 1]
    :param behavior_log_probs: log pi(a_k | s_k, theta_k), [B]
    """

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    behavior_log_probs: th.Tensor


class BehaviorReplayBuffer(ReplayBuffer):
    """SB3's replay buffer, with the log-probability of each action when it was taken (``infos[i]["behavior_log_prob"]``)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.behavior_log_probs = np.zeros((self.buffer_size, self.n_envs), dtype=np.float32)

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """See :meth:`stable_baselines3.common.buffers.ReplayBuffer.add`."""
        self.behavior_log_probs[self.pos] = [info["behavior_log_prob"] for info in infos]
        super().add(obs, next_obs, action, reward, done, infos)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> BehaviorSamples:  # type: ignore[override]
        rows = batch_inds, np.random.randint(self.n_envs, size=len(batch_inds))  # noqa: NPY002 (as SB3's)
        if self.optimize_memory_usage:
            next_observations = self.observations[(rows[0] + 1) % self.buffer_size, rows[1]]
        else:
            next_observations = self.next_observations[rows]
        terminated = self.dones[rows] * (1 - self.timeouts[rows])
        arrays = (
            self._normalize_obs(self.observations[rows], env),
            self.actions[rows],
            self._normalize_obs(next_observations, env),
            terminated[:, None],
            self._normalize_reward(self.rewards[rows][:, None], env),
            self.behavior_log_probs[rows],
        )
        return BehaviorSamples(*(self.to_torch(np.asarray(array)) for array in arrays))


class SVG1(MEMB):
    """
    Stochastic value gradients SVG(1): MEMB whose actor takes the same gradient at real transitions instead of imagined
    ones. The noise of the policy and of the model is inferred so that they reproduce the transition (s, a, r, s'), and the
    transition is weighted by how much likelier the action is today than when it was taken (algorithm 2 of Heess et al.).

    What is left of MEMB: Q and V, the entropy bonus (``ent_coef=0`` for none) and the number of updates. With action noise
    the weight still takes the policy's own density for that of the actions.

    :param policy: The policy model to use (MlpPolicy, ...)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param max_importance_weight: the weights are cut off here
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :param kwargs: further arguments of :class:`~sb3_modelbased.memb.MEMB`
    """

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str,
        max_importance_weight: float = 10.0,
        replay_buffer_class: type[ReplayBuffer] | None = BehaviorReplayBuffer,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, replay_buffer_class=replay_buffer_class, _init_setup_model=False, **kwargs)
        self.max_importance_weight = max_importance_weight
        if _init_setup_model:
            self._setup_model()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        check_at_least("max_importance_weight", self.max_importance_weight, 0)
        for name, value, expected in (("true_model", self.true_model, None), ("use_sde", self.use_sde, False)):
            if value is not expected:
                raise ValueError(
                    f"SVG1 cannot infer the noise behind a transition with {name}={value!r}. Pass {name}={expected}."
                )
        for name in ("imagination_horizon", "value_expansion_horizon"):
            if getattr(self, name) != 1:
                raise ValueError(
                    f"SVG1 only learns from real transitions, so `{name}` must be 1, but it is {getattr(self, name)}."
                )
        self._check_replay_buffer_class(self.replay_buffer_class or ReplayBuffer)

    def load_replay_buffer(self, *args: Any, **kwargs: Any) -> None:
        """
        SB3's.

        :raises ValueError: if the file holds a buffer without the probabilities of its actions
        """
        super().load_replay_buffer(*args, **kwargs)
        self._check_replay_buffer_class(type(self.replay_buffer))

    def _check_replay_buffer_class(self, given: Any) -> None:
        if not issubclass(given, BehaviorReplayBuffer):
            raise ValueError(
                "`replay_buffer_class` must be a BehaviorReplayBuffer for SVG1, which weighs transitions by the probability "
                f"of their actions, but it is {given}. Leave it out, and load only what SVG1 has saved."
            )

    def _imagined_per_update(self, batch_size: int) -> int:
        return 0

    def _action_log_probs(self, observations: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        r"""
        The current policy at given actions: :math:`a = \kappa(s, \eta; \theta)` with the noise :math:`\eta` that gives them.

        :param observations: as the agent sees them, [B, O]
        :param actions: scaled to [-1, 1], [B, A]
        :return: the same actions as functions of the policy's parameters, [B, A], and log pi(a | s) without gradient, [B]
        """
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        std = log_std.exp()
        noise = ((squashing_inverse(actions) - mean) / std).detach()
        return (mean + std * noise).tanh(), squashed_log_probs(mean.detach(), std.detach(), actions)

    def _embedded_values(
        self, batch: ReplayBufferSamples, actions: th.Tensor, log_probs: th.Tensor, ent_coef: th.Tensor
    ) -> th.Tensor:
        r"""
        Equation 1 with the entropy bonus of equation 8: the gradient at the real transition.

        :param batch: real transitions with ``behavior_log_probs``
        :param actions: a ~ pi, of no use here
        :param log_probs: log pi(a | s) of those, [B]
        :param ent_coef: alpha
        :return: :math:`w [r + \gamma V(s')] - \alpha \log \pi(a|s)`, [B]
        """
        taken, taken_log_probs = self._action_log_probs(self._view.observations(batch.observations), batch.actions)
        log_ratio = taken_log_probs - batch.behavior_log_probs  # type: ignore[attr-defined]
        weights = log_ratio.exp().clamp(max=self.max_importance_weight)
        transitions = Transitions(
            batch.observations, batch.actions, batch.next_observations, batch.rewards.squeeze(-1), batch.dones.squeeze(-1)
        )
        step = reconstructed_step(self.world_model, transitions, taken)
        next_values = self.value(self._view.observations(step.next_observations))
        values = self._view.rewards(step.rewards) + self.gamma * (1 - transitions.terminated) * next_values
        self.metrics.add(importance_weight=weights.mean())
        return weights * values - ent_coef * log_probs

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        action, buffer_action = super()._sample_action(learning_starts, action_noise, n_envs)
        if self.num_timesteps < learning_starts:  # uniform over [-1, 1]^A
            self._behavior_log_probs = np.full(n_envs, -math.log(2.0) * buffer_action[0].size)
        else:
            # VecNormalize has been at work on this observation already
            arrays = (np.asarray(array, dtype=np.float32) for array in (self._last_obs, buffer_action))
            with th.no_grad():
                _, log_probs = self._action_log_probs(
                    *(th.as_tensor(array, device=self.device).flatten(1) for array in arrays)
                )
            self._behavior_log_probs = log_probs.cpu().numpy()
        return action, buffer_action

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        for info, log_prob in zip(infos, self._behavior_log_probs, strict=True):
            info["behavior_log_prob"] = float(log_prob)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)


def squashing_inverse(actions: th.Tensor) -> th.Tensor:
    """
    :param actions: a = tanh(u), those at the bounds included
    :return: u, finite
    """
    return actions.clamp(-1 + ACTION_MARGIN, 1 - ACTION_MARGIN).atanh()


def squashed_log_probs(mean: th.Tensor, std: th.Tensor, actions: th.Tensor) -> th.Tensor:
    r"""
    :math:`\log \pi(a|s)` of :math:`a = \tanh(u)`, :math:`u \sim \mathcal N(\mu, \sigma^2)`, of which the values beyond what
    float32 tells from the bounds are censored:

    .. math:: \log \pi(a) = \log \mathcal N(u; \mu, \sigma^2) - \log(1 - a^2), \qquad
        \log P(u \ge u_{max}) = \log \Phi\left(\frac{\mu - u_{max}}{\sigma}\right)

    and likewise at the lower bound. The density at :math:`u_{max}` instead would call such an action next to impossible for
    the very policy that prefers it, and its weight any number.

    :param mean: [B, A]
    :param std: [B, A]
    :param actions: scaled to [-1, 1], [B, A]
    :return: summed over dimensions, [B]
    """
    inverse = squashing_inverse(actions)
    gaussian = -0.5 * ((inverse - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)
    density = gaussian - (1 - actions.square()).log()
    censored = th.special.log_ndtr((mean * actions.sign() - inverse.abs()) / std)
    return th.where(actions.abs() < 1 - ACTION_MARGIN, density, censored).sum(dim=1)


def reconstructed_step(world_model: WorldModel, transitions: Transitions, actions: th.Tensor) -> ModelStep:
    r"""
    The step of every row by one random elite, with the noise :math:`\zeta` that makes it the real one:
    :math:`s' = f(s, a, \zeta)` in value, and the model's in gradient.

    :param world_model: the model
    :param transitions: real ones, [B, ...]
    :param actions: ``transitions.actions`` as a function of the policy's parameters, [B, A]
    :return: [B, ...]
    """
    targets = world_model.target_normalizer.normalize(world_model.targets(transitions))
    blocks, put_back = world_model.deal(transitions.observations, actions, targets)
    observations, actions, targets = blocks
    mean, log_var, logits = world_model.elite_ensemble(world_model.inputs(observations, actions))
    noise = ((targets - mean) * (-0.5 * log_var).exp()).detach()
    sample = mean + (0.5 * log_var).exp() * noise
    return ModelStep(*map(put_back, world_model.assemble(observations, actions, sample, logits)))
