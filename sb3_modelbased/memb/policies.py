"""Policies for MEMB."""

from contextlib import nullcontext

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_modelbased.common.ensemble import EnsembleMLP
from sb3_modelbased.common.policies import EnsembleCritic, ModelBasedSACPolicy, frozen


class ValueFunction(BaseModel):
    """
    The soft state value V(s).

    :param observation_space: Observation space
    :param action_space: Action space
    :param net_arch: Network architecture
    :param features_extractor: Network to extract features
    :param features_dim: Number of features
    :param activation_fn: Activation function
    :param normalize_images: Whether to normalize images or not
    :param share_features_extractor: Whether the features extractor is shared with the actor, which then trains it
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
        share_features_extractor: bool = False,
        layer_norm: bool = False,
        dropout: float = 0.0,
        bfloat16: bool = False,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.share_features_extractor = share_features_extractor
        # An ensemble of one: the network that the critics are made of
        self.v_network = EnsembleMLP(1, features_dim, 1, net_arch, activation_fn, layer_norm, dropout, bfloat16)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """
        :param observations: as the agent sees them, [B, O]
        :return: [B]
        """
        assert self.features_extractor is not None
        with frozen(self.features_extractor) if self.share_features_extractor else nullcontext():
            features = self.extract_features(observations, self.features_extractor)
        return self.v_network(features)[0].squeeze(-1)


class MEMBPolicy(ModelBasedSACPolicy):
    """
    Policy class for MEMB: a squashed Gaussian actor, two Q-functions, a state value and its target. The Q-functions and
    the value share one optimiser, ``critic.optimizer``; there is no target for the Q-functions.

    The parameters are those of :class:`~sb3_modelbased.common.policies.ModelBasedSACPolicy`; the value has the critics'
    ``net_arch`` (``qf``), layer normalisation and dropout.
    """

    critic_target: None  # type: ignore[assignment]
    value: ValueFunction
    value_target: ValueFunction

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self.actor.optimizer = self._make_optimizer(self.actor, lr_schedule)
        shared = self.actor.features_extractor if self.share_features_extractor else None
        self.critic = self.make_critic(shared)
        self.value = self.make_value(shared)
        # The target has an extractor of its own, or Polyak averaging would move the shared one
        self.value_target = self.make_value()
        self.value_target.load_state_dict(self.value.state_dict())
        self.value_target.set_training_mode(False)
        self.critic.optimizer = self._make_optimizer(nn.ModuleList([self.critic, self.value]), lr_schedule)

    def _make_optimizer(self, module: nn.Module, lr_schedule: Schedule) -> th.optim.Optimizer:
        """
        :param module: what to train
        :param lr_schedule: learning rate
        :return: its optimiser; the actor's loss alone trains a shared features extractor, as in SB3
        """
        others = self.share_features_extractor and module is not self.actor
        named = module.named_parameters()
        parameters = [parameter for name, parameter in named if not (others and "features_extractor" in name)]
        return self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_value(self, features_extractor: BaseFeaturesExtractor | None = None) -> ValueFunction:
        """
        :param features_extractor: the actor's, when it is shared
        :return: a state value, on the policy's device
        """
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        del kwargs["n_critics"]
        return ValueFunction(**kwargs, **self.critic_extras).to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training, False for evaluation; the target stays in evaluation mode
        """
        super().set_training_mode(mode)
        self.value.set_training_mode(mode)


MlpPolicy = MEMBPolicy

__all__ = ["EnsembleCritic", "MEMBPolicy", "MlpPolicy", "ValueFunction"]
