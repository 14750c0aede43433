"""The batched ensemble against one torch.nn network per member, and its likelihood against torch.distributions."""

import math

import pytest
import torch as th
from stable_baselines3.common.torch_layers import create_mlp
from torch import nn

from sb3_modelbased.common.ensemble import (
    EnsembleLayerNorm,
    EnsembleLinear,
    EnsembleMLP,
    GaussianEnsemble,
    gaussian_nll,
)

MEMBERS, BATCH, INPUTS = 3, 5, 4


def member_networks(mlp: nn.Sequential) -> list[nn.Sequential]:
    """The members of a batched network as ordinary ones, with copies of their weights."""
    size = next(module.weight.shape[0] for module in mlp if isinstance(module, EnsembleLinear))
    networks = []
    for i in range(size):
        layers: list[nn.Module] = []
        for module in mlp:
            if isinstance(module, EnsembleLinear):
                layer = nn.Linear(module.weight.shape[1], module.weight.shape[2])
                layer.weight.data.copy_(module.weight[i].t())
                layer.bias.data.copy_(module.bias[i, 0])
            elif isinstance(module, EnsembleLayerNorm):
                layer = nn.LayerNorm(module.size)
                layer.weight.data.copy_(module.weight[i, 0])
                layer.bias.data.copy_(module.bias[i, 0])
            else:
                layer = module
            layers.append(layer)
        networks.append(nn.Sequential(*layers))
    return networks


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("net_arch", [[], [6], [6, 7]])
def test_mlp_is_a_loop_over_members(net_arch, layer_norm):
    mlp = EnsembleMLP(MEMBERS, INPUTS, 2, net_arch, nn.Tanh, layer_norm=layer_norm)
    for parameter in mlp.parameters():  # layer norms would start as the identity
        parameter.data += 0.1 * th.randn_like(parameter)
    inputs = th.randn(MEMBERS, BATCH, INPUTS)
    outputs = mlp(inputs)
    assert outputs.shape == (MEMBERS, BATCH, 2)
    shared = mlp(inputs[0])
    for i, network in enumerate(member_networks(mlp)):
        assert th.allclose(outputs[i], network(inputs[i]), atol=1e-6)
        assert th.allclose(shared[i], network(inputs[0]), atol=1e-6)


def test_members_are_drawn_as_create_mlp_draws_them():
    th.manual_seed(3)
    mlp = EnsembleMLP(2, INPUTS, 1, [6, 7], nn.ReLU)
    th.manual_seed(3)
    expected = [nn.Sequential(*create_mlp(INPUTS, 1, [6, 7])) for _ in range(2)]
    for ours, theirs in zip(member_networks(mlp), expected, strict=True):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert a.equal(b)


def test_dropout_drops_hidden_units_in_training_only():
    mlp = EnsembleMLP(2, INPUTS, 1, [1000], nn.ReLU, dropout=0.3)
    hidden = nn.Sequential(*list(mlp)[:2])  # linear, dropout
    inputs = th.randn(1, INPUTS)
    share = (hidden(inputs) == 0).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.05)
    mlp.eval()
    assert not (hidden(inputs) == 0).any()
    for i, network in enumerate(member_networks(mlp)):
        assert th.allclose(mlp(inputs)[i], network(inputs), atol=1e-6)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_bfloat16_is_in_the_hidden_layers_only(layer_norm):
    mlp = EnsembleMLP(2, INPUTS, 3, [64, 64], nn.SiLU, layer_norm=layer_norm, bfloat16=True)
    inputs = th.randn(2, BATCH, INPUTS)
    outputs = mlp(inputs)
    outputs.square().sum().backward()
    assert outputs.dtype == th.float32
    for i, network in enumerate(member_networks(mlp)):
        exact = network(inputs[i])
        *hidden, last = network
        low = inputs[i].bfloat16()
        for layer in hidden:  # every layer's output is rounded to eight bits
            low = layer.bfloat16()(low)
        expected = last(low.float())
        assert not th.allclose(outputs[i], exact, atol=1e-5)
        assert th.allclose(outputs[i], exact, atol=0.03)
        assert th.allclose(outputs[i], expected, atol=0.01)
    for parameter in mlp.parameters():
        assert parameter.dtype == th.float32
        assert parameter.grad.dtype == th.float32


def test_bfloat16_gradients_are_those_of_float32_but_for_rounding():
    mlp = EnsembleMLP(2, INPUTS, 3, [64, 64], nn.SiLU)
    inputs = th.randn(2, 100, INPUTS, requires_grad=True)
    gradients = []
    for bfloat16 in (False, True):
        mlp.use_bfloat16 = bfloat16
        gradients.append(th.autograd.grad(mlp(inputs).square().mean(), [inputs, *mlp.parameters()]))
    for exact, rounded in zip(*gradients, strict=True):
        assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_a_frozen_copy_rounds_as_its_ensemble_does():
    ensemble = GaussianEnsemble(MEMBERS, INPUTS, 2, net_arch=[64], last_net_arch=[32], dropout=0.1, bfloat16=True)
    frozen = ensemble.subset([2, 0])
    ensemble.eval()
    inputs = th.randn(BATCH, INPUTS)
    for ours, theirs in zip(frozen(inputs), ensemble(inputs), strict=True):
        assert ours.equal(theirs[[2, 0]])
    assert frozen.mlp.use_bfloat16
    assert frozen.last_mlp.use_bfloat16


def softly_clamped(raw: float, low: float, high: float) -> float:
    """PETS, appendix A.1, in plain floats."""
    upper = high - math.log1p(math.exp(high - raw))
    return low + math.log1p(math.exp(upper - low))


def make_gaussian() -> GaussianEnsemble:
    ensemble = GaussianEnsemble(MEMBERS, INPUTS, 2, n_logits=1, net_arch=[6], activation_fn=nn.Tanh)
    for i in range(MEMBERS):  # bounds that differ between members and dimensions
        ensemble.max_log_var.data[i, 0] = th.tensor([0.5, 0.3]) - 0.1 * i
        ensemble.min_log_var.data[i, 0] = th.tensor([-2.0, -3.0]) + 0.1 * i
    return ensemble


def test_outputs_of_the_gaussian_ensemble():
    ensemble = make_gaussian()
    inputs = 3 * th.randn(MEMBERS, BATCH, INPUTS)
    mean, log_var, logits = ensemble(inputs)
    for i, network in enumerate(member_networks(ensemble.mlp)):
        raw = network(inputs[i])
        assert th.allclose(mean[i], raw[:, :2], atol=1e-6)
        assert th.allclose(logits[i], raw[:, 4:], atol=1e-6)
        for row in range(BATCH):
            for dim in range(2):
                bounds = (ensemble.min_log_var[i, 0, dim].item(), ensemble.max_log_var[i, 0, dim].item())
                assert log_var[i, row, dim].item() == pytest.approx(
                    softly_clamped(raw[row, 2 + dim].item(), *bounds), abs=1e-5
                )


def test_log_variances_stay_near_their_bounds_whatever_the_network_says():
    ensemble = GaussianEnsemble(MEMBERS, INPUTS, 2, net_arch=[])
    ensemble.mlp[0].weight.data *= 1e4
    _, log_var, _ = ensemble(th.randn(100, INPUTS))
    assert log_var.isfinite().all()
    assert log_var.min() >= -10.0
    assert log_var.max() <= 0.5 + 1e-4  # the lower clamp lifts by log(1 + e^-10.5)
    assert log_var.min() < -9.9
    assert log_var.max() > 0.4


def test_bounds_loss_by_hand():
    # 3 members x 2 dimensions x (0.5 + 10)
    assert GaussianEnsemble(MEMBERS, INPUTS, 2).log_var_bounds_loss().item() == pytest.approx(63.0)


def test_nll_and_its_gradient_against_torch_distributions():
    ensemble = make_gaussian()
    inputs, targets = th.randn(MEMBERS, BATCH, INPUTS), th.randn(MEMBERS, BATCH, 2)
    mean, log_var, _ = ensemble(inputs)
    nll = gaussian_nll(mean, log_var, targets)
    nll.sum().backward()
    for i, network in enumerate(member_networks(ensemble.mlp)):
        low = ensemble.min_log_var[i, 0].detach().clone().requires_grad_()
        high = ensemble.max_log_var[i, 0].detach().clone().requires_grad_()
        outputs = network(inputs[i])
        member_log_var = high - nn.functional.softplus(high - outputs[:, 2:4])
        member_log_var = low + nn.functional.softplus(member_log_var - low)
        distribution = th.distributions.Normal(outputs[:, :2], th.sqrt(th.exp(member_log_var)))
        expected = -distribution.log_prob(targets[i])
        assert th.allclose(nll[i], expected, atol=1e-5)
        expected.sum().backward()
        linears = [module for module in network if isinstance(module, nn.Linear)]
        batched = [module for module in ensemble.mlp if isinstance(module, EnsembleLinear)]
        for linear, layer in zip(linears, batched, strict=True):
            assert th.allclose(layer.weight.grad[i], linear.weight.grad.t(), atol=1e-4, rtol=1e-4)
            assert th.allclose(layer.bias.grad[i, 0], linear.bias.grad, atol=1e-4, rtol=1e-4)
        assert th.allclose(ensemble.max_log_var.grad[i, 0], high.grad, atol=1e-4, rtol=1e-4)
        assert th.allclose(ensemble.min_log_var.grad[i, 0], low.grad, atol=1e-4, rtol=1e-4)


def test_members_do_not_influence_each_other():
    ensemble = make_gaussian()
    mean, log_var, logits = ensemble(th.randn(BATCH, INPUTS))
    (mean[1].sum() + log_var[1].sum() + logits[1].sum()).backward()
    for parameter in ensemble.parameters():
        assert parameter.grad[1].abs().sum() > 0
        assert not parameter.grad[[0, 2]].any()


def test_subset_is_a_frozen_copy_in_the_order_asked_for():
    ensemble = make_gaussian()
    subset = ensemble.subset([2, 0])
    inputs = th.randn(BATCH, INPUTS)
    before = [output[[2, 0]].clone() for output in ensemble(inputs)]
    for parameter in ensemble.parameters():
        parameter.data += 1.0
    for expected, output in zip(before, subset(inputs), strict=True):
        assert th.allclose(output, expected, atol=1e-6)
        assert not output.requires_grad
    assert not any(parameter.requires_grad for parameter in subset.parameters())
