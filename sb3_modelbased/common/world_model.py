"""One differentiable step of an imagined environment: normaliser, ensemble, reward and termination together."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_modelbased.common.ensemble import GaussianEnsemble
from sb3_modelbased.common.normalizer import Normalizer
from sb3_modelbased.common.type_aliases import RewardFn, TerminationFn, Transitions

# Predictions are kept within the range of the data, widened by this share of it on either side: a rollout that
# leaves it is wrong anyway, and unbounded it would overflow and poison the critics.
OBSERVATION_MARGIN = 0.5
# More rows than these do not change a mean and a standard deviation, and a fit's cost must not grow with the data
STATISTICS_ROWS = 100_000


class ModelStep(NamedTuple):
    """
    What a model says of one step.

    :param next_observations: [..., O]
    :param rewards: [...]
    :param terminated: probability that the step ends the task, [...]
    """

    next_observations: th.Tensor
    rewards: th.Tensor
    terminated: th.Tensor


class MemberPredictions(NamedTuple):
    """
    What every elite says of the same pairs, in normalised units.

    :param mean: [n_elites, B, D]
    :param log_var: [n_elites, B, D]
    :param logits: of termination, [n_elites, B, 1], or [n_elites, B, 0] where it is known
    """

    mean: th.Tensor
    log_var: th.Tensor
    logits: th.Tensor


class Dynamics(Protocol):
    """Anything that can be imagined with: a learned :class:`WorldModel`, or a known environment written in torch."""

    def step(self, observations: th.Tensor, actions: th.Tensor) -> ModelStep:
        """
        :param observations: [B, O]
        :param actions: scaled to [-1, 1], [B, A]
        :return: a sampled step, differentiable with respect to both arguments
        """
        ...


class WorldModel(nn.Module):
    """
    A probabilistic ensemble over (next observation - observation, reward), in normalised units.

    Imagination uses the elites only, through a frozen copy that :meth:`refresh_elites` makes after every fit: no
    gradient is computed for the model's weights when the policy is trained through it.

    :param observation_dim: O
    :param action_space: the environment's actions, for their bounds
    :param ensemble_size: number of members E
    :param n_elites: number of members, the best on the holdout, that imagine
    :param net_arch: hidden layers of each member
    :param activation_fn: activation of each member
    :param reward_fn: known reward function; None to learn the reward
    :param termination_fn: known termination function; None to learn a classifier
    :param reward_net_arch: hidden layers of a reward network of its own in each member; None to predict the reward with
        the change of the observation
    :param dropout: probability of dropping a hidden unit while the model is fitted
    :param bfloat16: multiply in bfloat16 in all layers but the last
    """

    elites: th.Tensor
    fitted: th.Tensor
    terminations_seen: th.Tensor
    action_low: th.Tensor
    action_high: th.Tensor
    observation_low: th.Tensor
    observation_high: th.Tensor
    elite_ensemble: GaussianEnsemble

    def __init__(
        self,
        observation_dim: int,
        action_space: spaces.Box,
        ensemble_size: int = 7,
        n_elites: int = 5,
        net_arch: Sequence[int] = (200, 200, 200, 200),
        activation_fn: type[nn.Module] = nn.SiLU,
        reward_fn: RewardFn | None = None,
        termination_fn: TerminationFn | None = None,
        reward_net_arch: Sequence[int] | None = None,
        dropout: float = 0.0,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.observation_dim = observation_dim
        self.action_dim = math.prod(action_space.shape)
        self.reward_fn = reward_fn
        self.termination_fn = termination_fn
        self.n_elites = n_elites
        self.target_dim = observation_dim + (reward_fn is None)
        input_dim, n_logits = observation_dim + self.action_dim, int(termination_fn is None)
        self.ensemble = GaussianEnsemble(
            ensemble_size,
            input_dim,
            self.target_dim,
            n_logits,
            net_arch,
            activation_fn,
            dropout,
            last_net_arch=reward_net_arch if reward_fn is None else None,  # the reward is the last of the targets
            bfloat16=bfloat16,
        )
        self.input_normalizer = Normalizer(input_dim)
        self.target_normalizer = Normalizer(self.target_dim)
        low, high = (np.asarray(bound, dtype=np.float32).reshape(-1) for bound in (action_space.low, action_space.high))
        self.register_buffer("action_low", th.as_tensor(low))
        self.register_buffer("action_high", th.as_tensor(high))
        self.register_buffer("observation_low", th.full((observation_dim,), -th.inf))
        self.register_buffer("observation_high", th.full((observation_dim,), th.inf))
        self.register_buffer("elites", th.arange(n_elites))
        # Whether an episode has ever ended in the data: a classifier that never saw one predicts noise
        self.register_buffer("terminations_seen", th.zeros((), dtype=th.bool))
        self.register_buffer("fitted", th.zeros((), dtype=th.bool))
        self.register_load_state_dict_post_hook(lambda module, _: module.refresh_elites())
        self._make_elite_ensemble()

    def _apply(self, fn: Any, recurse: bool = True) -> "WorldModel":
        super()._apply(fn, recurse)
        self._make_elite_ensemble()
        return self

    def _make_elite_ensemble(self) -> None:
        # No submodule, so that it is neither saved nor trained
        self.__dict__["elite_ensemble"] = self.ensemble.subset(self.elites.tolist())

    @th.no_grad()
    def refresh_elites(self) -> None:
        """Copy the elites' weights into the network that imagination evaluates, in place (a CUDA graph may hold it)."""
        for kept, parameter in zip(self.elite_ensemble.parameters(), self.ensemble.parameters(), strict=True):
            kept.copy_(parameter[self.elites])

    @property
    def ensemble_size(self) -> int:
        """Number of members E."""
        return self.ensemble.ensemble_size

    @property
    def learns_reward(self) -> bool:
        """Whether the reward is a dimension of the prediction."""
        return self.reward_fn is None

    @property
    def learns_termination(self) -> bool:
        """Whether termination is a classifier of the ensemble."""
        return self.termination_fn is None

    def inputs(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: [..., O]
        :param actions: scaled to [-1, 1], [..., A]
        :return: normalised inputs of the ensemble, [..., O + A]
        """
        return self.input_normalizer.normalize(th.cat([observations, actions], dim=-1))

    def targets(self, transitions: Transitions) -> th.Tensor:
        """
        :param transitions: real transitions
        :return: (next observation - observation[, reward]) in environment units, [..., D]
        """
        change = transitions.next_observations - transitions.observations
        return th.cat([change, transitions.rewards.unsqueeze(-1)], dim=-1) if self.learns_reward else change

    @th.no_grad()
    def fit_normalizers(self, transitions: Transitions) -> None:
        """
        Set the normalisers, from a sample of large data, and the range of plausible observations.

        :param transitions: [N, ...]
        """
        n, sample = len(transitions.rewards), transitions
        if n > STATISTICS_ROWS:
            rows = th.randint(n, (STATISTICS_ROWS,), device=transitions.rewards.device)
            sample = Transitions(*(field[rows] for field in transitions))
        self.input_normalizer.fit(th.cat([sample.observations, sample.actions], dim=-1))
        self.target_normalizer.fit(self.targets(sample))
        low, high = th.aminmax(transitions.next_observations, dim=0)
        margin = OBSERVATION_MARGIN * (high - low)
        self.observation_low.copy_(low - margin)
        self.observation_high.copy_(high + margin)
        self.terminations_seen.copy_(transitions.terminated.any())

    def step(self, observations: th.Tensor, actions: th.Tensor) -> ModelStep:
        """
        A sampled step of every row by one random elite (trajectory sampling TS1 of PETS), differentiable.

        The rows are cut into as many blocks as there are elites and the blocks dealt out at random, so that each
        row's elite is uniform and the cost is that of one network.

        :param observations: [B, O]
        :param actions: scaled to [-1, 1], [B, A]
        :return: [B, ...]
        """
        blocks, put_back = self.deal(observations, actions)
        return ModelStep(*map(put_back, self.step_members(*blocks)))

    def deal(self, *rows: th.Tensor) -> tuple[tuple[th.Tensor, ...], Callable[[th.Tensor], th.Tensor]]:
        """
        Cut rows into one block per elite and deal the blocks out at random.

        :param rows: one or more times [B, D]
        :return: their blocks, [n_elites, ceil(B / n_elites), D], and what brings results [n_elites, ...] back into the
            order of the rows, [B, ...]
        """
        n, batch = self.n_elites, rows[0].shape[0]
        if n == 1:  # nothing to deal out
            return tuple(x.unsqueeze(0) for x in rows), lambda results: results.squeeze(0)
        padding = -batch % n
        padded = tuple(_pad_rows(x, padding) for x in rows) if padding else rows
        order = th.rand(n, device=rows[0].device).argsort()
        blocks = tuple(x.reshape(n, -1, x.shape[-1]).index_select(0, order) for x in padded)
        back = order.argsort()
        return blocks, lambda results: results.index_select(0, back).flatten(0, 1)[:batch]

    def step_members(self, observations: th.Tensor, actions: th.Tensor) -> ModelStep:
        """
        A sampled step in which elite ``i`` evaluates block ``i``, differentiable.

        :param observations: [n_elites, B, O]
        :param actions: scaled to [-1, 1], [n_elites, B, A]
        :return: [n_elites, B, ...]
        """
        mean, log_var, logits = self.elite_ensemble(self.inputs(observations, actions))
        sample = th.addcmul(mean, (0.5 * log_var).exp(), th.randn_like(mean))
        return self.assemble(observations, actions, sample, logits)

    def predict_members(self, observations: th.Tensor, actions: th.Tensor) -> MemberPredictions:
        """
        The distributions that all elites predict for every row, differentiable.

        :param observations: [B, O]
        :param actions: scaled to [-1, 1], [B, A]
        :return: [n_elites, B, ...]
        """
        return MemberPredictions(*self.elite_ensemble(self.inputs(observations, actions)))

    def step_predicted(
        self, observations: th.Tensor, actions: th.Tensor, predictions: MemberPredictions, rows: th.Tensor
    ) -> ModelStep:
        """
        As :meth:`step`, from predictions that were made before: a sampled step of the chosen rows, each by one random
        elite.

        :param observations: of the chosen rows, [N, O]
        :param actions: of the chosen rows, scaled to [-1, 1], [N, A]
        :param predictions: of all rows, [n_elites, B, ...]
        :param rows: numbers of the chosen rows, [N]
        :return: [N, ...]
        """
        members = self.draw_members(len(rows))
        mean, log_var, logits = (prediction[members, rows] for prediction in predictions)
        sample = th.addcmul(mean, (0.5 * log_var).exp(), th.randn_like(mean))
        return self.assemble(observations, actions, sample, logits)

    def draw_members(self, n: int) -> th.Tensor:
        """
        :param n: number of rows
        :return: a uniform elite for each, [n]
        """
        return th.randint(self.n_elites, (n,), device=self.action_low.device)

    def assemble(
        self, observations: th.Tensor, actions: th.Tensor, normalized_targets: th.Tensor, logits: th.Tensor
    ) -> ModelStep:
        """
        From the ensemble's output to a step in environment units.

        :param observations: [..., O]
        :param actions: scaled to [-1, 1], [..., A]
        :param normalized_targets: (change of the observation[, reward]), [..., D]
        :param logits: of termination, [..., 1], or [..., 0] where it is known
        :return: [...]
        """
        targets = self.target_normalizer.denormalize(normalized_targets)
        next_observations = observations + targets[..., : self.observation_dim]
        next_observations = th.clamp(next_observations, self.observation_low, self.observation_high)
        if self.reward_fn is None:
            rewards = targets[..., -1]
        else:
            rewards = self.reward_fn(observations, self.unscale_actions(actions), next_observations)
        if self.termination_fn is None:
            terminated = logits.squeeze(-1).sigmoid() * self.terminations_seen
        else:
            terminated = self.termination_fn(observations, self.unscale_actions(actions), next_observations).to(rewards.dtype)
        return ModelStep(next_observations, rewards, terminated)

    def unscale_actions(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: scaled to [-1, 1], [..., A]
        :return: in environment units, [..., A]
        """
        return self.action_low + 0.5 * (actions + 1.0) * (self.action_high - self.action_low)


def _pad_rows(rows: th.Tensor, padding: int) -> th.Tensor:
    """
    :param rows: [B, D]
    :param padding: number of rows to add; their results are thrown away
    :return: [B + padding, D]
    """
    return th.cat([rows, rows[:1].detach().expand(padding, -1)])
