"""SB3's SAC policy with critics that are evaluated as one batched network and an actor that samples in fewer operations."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import nn

from sb3_modelbased.common.ensemble import EnsembleMLP

# As in SB3's SquashedDiagGaussianDistribution: keeps the logarithm finite where an action saturates
SQUASHING_EPSILON = 1e-6


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """
    Evaluate a module as a constant function: the gradient flows to its inputs and not to its parameters.

    :param module: whose parameters all require a gradient outside
    """
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


def standard_normal(like: th.Tensor) -> th.Tensor:
    """
    :param like: gives shape, type and device
    :return: the policy's noise
    """
    return th.randn_like(like)


def sample_squashed_gaussian(mean: th.Tensor, log_std: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    r"""
    A reparameterised action :math:`a = \tanh(\mu + \sigma \zeta)`, :math:`\zeta \sim \mathcal N(0, 1)`, and

    .. math:: \log \pi(a) = -\tfrac12 \zeta^2 - \log \sigma - \tfrac12 \log 2\pi - \log(1 - a^2)

    summed over dimensions. SB3's distribution computes the same from :math:`(a - \mu) / \sigma`, in about three times as many
    operations and as many backward; the random numbers are the same.

    :param mean: [B, A]
    :param log_std: [B, A]
    :return: actions in [-1, 1], [B, A], and log-probabilities [B]
    """
    noise = standard_normal(mean)
    actions = th.addcmul(mean, log_std.exp(), noise).tanh()
    squashing = (1 - actions.square() + SQUASHING_EPSILON).log()
    # Without gradient: the noise does not depend on the policy
    gaussian = noise.square().mul_(-0.5).sub_(0.5 * math.log(2 * math.pi))
    return actions, (gaussian - log_std - squashing).sum(dim=1)


class FastActor(Actor):
    """SB3's SAC actor with fewer operations per sample; parameters, random numbers and results are the same."""

    def action_log_prob(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        :param obs: as the agent sees them, [B, O]
        :return: actions in [-1, 1], [B, A], and their log-probabilities [B]
        """
        if self.use_sde:
            return super().action_log_prob(obs)
        mean, log_std, _ = self.get_action_dist_params(obs)
        return sample_squashed_gaussian(mean, log_std)


class EnsembleCritic(BaseModel):
    """
    ``n_critics`` Q-functions in one batched network, drawn in the order in which SB3's ``ContinuousCritic`` draws its
    own: the same seed gives the same critics.

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not
    :param n_critics: Number of critic networks
    :param share_features_extractor: Whether the features extractor is shared with the actor
    :param layer_norm: Normalise each hidden layer before its activation
    :param dropout: Probability of dropping a hidden unit in training
    :param bfloat16: Multiply in bfloat16 in all layers but the last
    """

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: type[nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.n_critics = n_critics
        self.share_features_extractor = share_features_extractor
        input_dim = features_dim + get_action_dim(action_space)
        self.q_networks = EnsembleMLP(n_critics, input_dim, 1, net_arch, activation_fn, layer_norm, dropout, bfloat16)

    def forward(self, observations: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        :param observations: as the agent sees them, [B, O]
        :param actions: scaled to [-1, 1], [B, A]
        :return: every critic's value, [n_critics, B]
        """
        assert self.features_extractor is not None
        # A shared extractor learns from the actor's own features only, as in SB3; imagined states need their gradient
        with frozen(self.features_extractor) if self.share_features_extractor else nullcontext():
            features = self.extract_features(observations, self.features_extractor)
        return self.q_networks(th.cat([features, actions], dim=1)).squeeze(-1)


class ModelBasedSACPolicy(SACPolicy):
    """
    Policy class (with both actor and critic) for the algorithms that build on SAC.

    All of :class:`~stable_baselines3.sac.policies.SACPolicy`'s parameters, and

    :param critic_layer_norm: Layer normalisation in the critics: keeps them from diverging at high update ratios
    :param critic_dropout: Dropout probability in the critics
    :param critic_bfloat16: Whether the critics' hidden layers multiply in bfloat16: faster for large batches on processors
        and GPUs that have it
    """

    actor: FastActor
    critic: EnsembleCritic  # type: ignore[assignment]
    critic_target: EnsembleCritic  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        use_sde: bool = False,
        log_std_init: float = -3,
        use_expln: bool = False,
        clip_mean: float = 2.0,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 2,
        share_features_extractor: bool = False,
        critic_layer_norm: bool = False,
        critic_dropout: float = 0.0,
        critic_bfloat16: bool = False,
    ) -> None:
        self.critic_extras: dict[str, Any] = {
            "layer_norm": critic_layer_norm,
            "dropout": critic_dropout,
            "bfloat16": critic_bfloat16,
        }
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = {"fused": True}  # one kernel instead of a Python loop over parameters
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch,
            activation_fn,
            use_sde,
            log_std_init,
            use_expln,
            clip_mean,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            n_critics,
            share_features_extractor,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        data = super()._get_constructor_parameters()
        data.update({f"critic_{name}": value for name, value in self.critic_extras.items()})
        return data

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> FastActor:
        """
        :param features_extractor: the critics', when it is shared
        :return: the actor, on the policy's device
        """
        actor_kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return FastActor(**actor_kwargs).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> EnsembleCritic:  # type: ignore[override]
        """
        :param features_extractor: the actor's, when it is shared
        :return: the critics, on the policy's device
        """
        critic_kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return EnsembleCritic(**critic_kwargs, **self.critic_extras).to(self.device)
