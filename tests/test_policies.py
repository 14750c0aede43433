"""The batched critics against SB3's, and the options that SB3 does not have."""

import io

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

from sb3_modelbased.common.policies import ModelBasedSACPolicy
from sb3_modelbased.memb.policies import MEMBPolicy

OBSERVATION_SPACE = spaces.Box(-1.0, 1.0, (3,), np.float32)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)


def make(cls, seed=0, **kwargs):
    th.manual_seed(seed)
    return cls(OBSERVATION_SPACE, ACTION_SPACE, lambda _: 3e-4, **kwargs)


def stacked(critic):
    """Weights and biases of SB3's critics in the layout of the batched ones."""
    tensors = []
    for layers in zip(*critic.q_networks, strict=True):
        if isinstance(layers[0], nn.Linear):
            tensors += [th.stack([layer.weight.t() for layer in layers]), th.stack([layer.bias for layer in layers])[:, None]]
    return tensors


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"net_arch": [8]},
        {"net_arch": {"pi": [8], "qf": [5, 6]}, "activation_fn": nn.Tanh},
        {"net_arch": [8], "n_critics": 3},
        {"net_arch": [8], "n_critics": 1},
        {"net_arch": [8], "share_features_extractor": True},
        {"net_arch": [8], "use_sde": True},
    ],
)
def test_one_seed_draws_the_same_networks_as_sb3(kwargs):
    ours, theirs = make(ModelBasedSACPolicy, **kwargs), make(SACPolicy, **kwargs)
    for name in ("critic", "critic_target"):
        ensemble = list(getattr(ours, name).parameters())
        for a, b in zip(ensemble, stacked(getattr(theirs, name)), strict=True):
            assert a.equal(b)
    for a, b in zip(ours.actor.parameters(), theirs.actor.parameters(), strict=True):
        assert a.equal(b)
    observations, actions = th.randn(6, 3), 2 * th.rand(6, 2) - 1
    q_values = ours.critic(observations, actions)
    assert q_values.shape == (kwargs.get("n_critics", 2), 6)
    assert th.allclose(q_values, th.cat(theirs.critic(observations, actions), dim=1).T, atol=1e-6)


def test_layer_norm_and_dropout_are_in_the_critics_only():
    policy = make(ModelBasedSACPolicy, net_arch=[64], critic_layer_norm=True, critic_dropout=0.2)
    hidden = th.randn(2, 10, 64) * 100
    names = [type(module).__name__ for module in policy.critic.q_networks]
    assert names == ["EnsembleLinear", "Dropout", "EnsembleLayerNorm", "ReLU", "EnsembleLinear"]
    assert policy.critic.q_networks[2](hidden).std(dim=-1).max() < 1.05
    assert not any(isinstance(module, nn.Dropout | nn.LayerNorm) for module in policy.actor.modules())
    observations, actions = th.randn(6, 3), th.rand(6, 2)
    policy.set_training_mode(True)
    assert not policy.critic(observations, actions).equal(policy.critic(observations, actions))
    policy.set_training_mode(False)
    assert policy.critic(observations, actions).equal(policy.critic(observations, actions))


def test_membs_value_is_made_of_the_critics_layers():
    policy = make(MEMBPolicy, net_arch=[64], activation_fn=nn.SiLU, critic_layer_norm=True)
    observations = th.randn(6, 3)
    first, _, _, last = policy.value.v_network
    hidden = observations @ first.weight[0] + first.bias[0]
    normalized = (hidden - hidden.mean(dim=1, keepdim=True)) / (hidden.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = (nn.functional.silu(normalized) @ last.weight[0] + last.bias[0])[:, 0]
    assert th.allclose(policy.value(observations), expected, atol=1e-6)

    policy = make(MEMBPolicy, net_arch=[64], critic_dropout=0.2)
    policy.set_training_mode(True)
    assert not policy.value(observations).equal(policy.value(observations))
    assert policy.value_target(observations).equal(policy.value_target(observations))


class LinearExtractor(nn.Module):
    def __init__(self, observation_space):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.features_dim = 4

    def forward(self, observations):
        return self.linear(observations)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("imagined", [False, True])
def test_who_trains_the_features_extractor(share, imagined):
    kwargs = {"net_arch": [8], "features_extractor_class": LinearExtractor, "share_features_extractor": share}
    policy = make(MEMBPolicy, **kwargs)
    observations = th.randn(6, 3, requires_grad=imagined)
    (policy.critic(observations, th.rand(6, 2)).sum() + policy.value(observations).sum()).backward()
    for network in (policy.critic, policy.value):
        assert (network.features_extractor is policy.actor.features_extractor) == share
        for parameter in network.features_extractor.parameters():
            assert (parameter.grad is None) == share
            assert parameter.requires_grad
    if imagined:  # the gradient for the state is that of both networks, extractor and all
        assert (observations.grad != 0).any(dim=1).all()
    policy.actor.action_log_prob(th.randn(6, 3))[1].sum().backward()
    assert all(parameter.grad is not None for parameter in policy.actor.features_extractor.parameters())


def test_the_gradient_for_the_action_passes_a_shared_extractor():
    policy = make(ModelBasedSACPolicy, net_arch=[8], share_features_extractor=True)
    actions = th.rand(6, 2, requires_grad=True)
    policy.critic(th.randn(6, 3), actions).sum().backward()
    assert (actions.grad != 0).any(dim=1).all()


def test_save_and_load():
    kwargs = {"net_arch": [8], "n_critics": 3, "critic_layer_norm": True, "critic_dropout": 0.1, "critic_bfloat16": True}
    policy = make(ModelBasedSACPolicy, **kwargs)
    file = io.BytesIO()
    policy.save(file)
    file.seek(0)
    loaded = ModelBasedSACPolicy.load(file, device="cpu")
    assert loaded.critic_extras == {"layer_norm": True, "dropout": 0.1, "bfloat16": True}
    for (name, a), (other, b) in zip(policy.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert a.equal(b)


def test_an_optimizer_of_ones_own():
    policy = make(ModelBasedSACPolicy, net_arch=[8], optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.5})
    assert isinstance(policy.critic.optimizer, th.optim.SGD)
    assert policy.actor.optimizer.param_groups[0]["momentum"] == 0.5
    default = make(ModelBasedSACPolicy, net_arch=[8], optimizer_class=th.optim.SGD)
    assert isinstance(default.critic.optimizer, th.optim.SGD)
