"""
Ensembles evaluated as one batched network.

All members live in stacked weights ``[E, in, out]``, so that a layer of E networks is a single batched matrix product.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch as th
from torch import nn
from torch.nn import functional as F

# PETS' bounds on the log-variance, in normalised units (Chua et al., 2018, appendix A.1; values of MBPO's code)
MAX_LOG_VAR = 0.5
MIN_LOG_VAR = -10.0


class EnsembleLinear(nn.Module):
    """
    E linear layers, initialised as :class:`torch.nn.Linear` initialises each of them.

    :param layers: one layer per member, all of one shape; their parameters are copied
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.weight = nn.Parameter(th.stack([layer.weight.detach().t() for layer in layers]).contiguous())  # [E, in, out]
        self.bias = nn.Parameter(th.stack([layer.bias.detach() for layer in layers]).unsqueeze(1))  # [E, 1, out]

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: one batch per member [E, B, in], or one batch for all [B, in]
        :return: [E, B, out]
        """
        return th.baddbmm(self.bias, inputs.expand(self.weight.shape[0], *inputs.shape[-2:]), self.weight)


class EnsembleLayerNorm(nn.Module):
    """
    Layer normalisation over the last dimension with a scale and an offset per member.

    :param ensemble_size: E
    :param size: size of the last dimension D
    """

    def __init__(self, ensemble_size: int, size: int) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(th.ones(ensemble_size, 1, size))
        self.bias = nn.Parameter(th.zeros(ensemble_size, 1, size))

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: [E, B, D]
        :return: [E, B, D]
        """
        # Member by member: torch's fused backward adds up rows once, that of a batched scale takes up to twice as long
        members = zip(inputs, self.weight, self.bias, strict=True)
        return th.stack([F.layer_norm(rows, (self.size,), weight[0], bias[0]) for rows, weight, bias in members])


class EnsembleMLP(nn.Sequential):
    """
    E multi-layer perceptrons of one shape, without an activation behind the last layer.

    The layers are drawn member by member, in the order in which SB3's ``create_mlp`` would draw them, so that the same
    seed gives the same networks.

    :param ensemble_size: number of members E
    :param input_dim: size of the input
    :param output_dim: size of the output
    :param net_arch: sizes of the hidden layers
    :param activation_fn: activation between the layers
    :param layer_norm: normalise each hidden layer before its activation
    :param dropout: probability of dropping a hidden unit, 0 for none
    :param bfloat16: multiply in bfloat16 in all layers but the last; weights, gradients and outputs stay in float32
    """

    def __init__(
        self,
        ensemble_size: int,
        input_dim: int,
        output_dim: int,
        net_arch: Sequence[int],
        activation_fn: type[nn.Module] = nn.ReLU,
        layer_norm: bool = False,
        dropout: float = 0.0,
        bfloat16: bool = False,
    ) -> None:
        sizes = [input_dim, *net_arch, output_dim]
        members = [[nn.Linear(i, o) for i, o in pairwise(sizes)] for _ in range(ensemble_size)]
        modules: list[nn.Module] = []
        for index, layers in enumerate(zip(*members, strict=True)):
            modules.append(EnsembleLinear(layers))
            if index < len(net_arch):
                if dropout > 0:
                    modules.append(nn.Dropout(dropout))
                if layer_norm:
                    modules.append(EnsembleLayerNorm(ensemble_size, net_arch[index]))
                # Nobody else reads a layer's output, so that it can be overwritten: one pass over memory less
                modules.append(nn.ReLU(inplace=True) if activation_fn is nn.ReLU else activation_fn())
        super().__init__(*modules)
        self.use_bfloat16 = bfloat16

    def forward(self, inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: one batch per member [E, B, in], or one batch for all [B, in]
        :return: [E, B, out]
        """
        if not self.use_bfloat16:
            return super().forward(inputs)
        *hidden, last = self
        with th.autocast(inputs.device.type, th.bfloat16):
            for module in hidden:
                inputs = module(inputs)
        return last(inputs.float())

    def frozen_members(self, index: th.Tensor) -> "EnsembleMLP":
        """
        :param index: members to keep
        :return: a copy of these members, without a gradient and without dropout
        """
        frozen = EnsembleMLP.__new__(EnsembleMLP)
        nn.Sequential.__init__(frozen, *(_select_members(layer, index) for layer in self if not isinstance(layer, nn.Dropout)))
        frozen.use_bfloat16 = self.use_bfloat16
        return frozen


class GaussianEnsemble(nn.Module):
    """
    E members that each predict the mean and log-variance of a diagonal Gaussian, and optionally a logit.

    The log-variance is softly clamped between learned bounds, as in PETS.

    :param ensemble_size: number of members E
    :param input_dim: size of the input
    :param target_dim: dimension of the Gaussian D
    :param n_logits: number of extra outputs without a distribution (1 for a termination classifier)
    :param net_arch: sizes of the hidden layers
    :param activation_fn: activation between the layers; a smooth one, for the gradient runs through it
    :param dropout: probability of dropping a hidden unit in training mode
    :param last_net_arch: hidden layers of a second network of each member, which shares no weight with the first and predicts
        the last dimension of the Gaussian; None for one network
    :param bfloat16: multiply in bfloat16 in all layers but the last
    """

    def __init__(
        self,
        ensemble_size: int,
        input_dim: int,
        target_dim: int,
        n_logits: int = 0,
        net_arch: Sequence[int] = (200, 200, 200, 200),
        activation_fn: type[nn.Module] = nn.SiLU,
        dropout: float = 0.0,
        last_net_arch: Sequence[int] | None = None,
        bfloat16: bool = False,
    ) -> None:
        super().__init__()
        self.ensemble_size = ensemble_size
        self.target_dim = target_dim
        self.n_logits = n_logits
        outputs = 2 * (target_dim - (last_net_arch is not None)) + n_logits
        shared: dict[str, Any] = {"activation_fn": activation_fn, "dropout": dropout, "bfloat16": bfloat16}
        self.mlp = EnsembleMLP(ensemble_size, input_dim, outputs, net_arch, **shared)
        self.last_mlp: EnsembleMLP | None = None
        if last_net_arch is not None:
            self.last_mlp = EnsembleMLP(ensemble_size, input_dim, 2, last_net_arch, **shared)
        self.max_log_var = nn.Parameter(th.full((ensemble_size, 1, target_dim), MAX_LOG_VAR))
        self.min_log_var = nn.Parameter(th.full((ensemble_size, 1, target_dim), MIN_LOG_VAR))

    def forward(self, inputs: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """
        :param inputs: one batch per member [E, B, in], or one batch for all [B, in]
        :return: means [E, B, D], log-variances [E, B, D] and logits [E, B, n_logits]
        """
        dim = self.target_dim - (self.last_mlp is not None)
        mean, raw, logits = self.mlp(inputs).split((dim, dim, self.n_logits), dim=-1)
        if self.last_mlp is not None:
            last_mean, last_raw = self.last_mlp(inputs).split(1, dim=-1)
            mean, raw = th.cat([mean, last_mean], dim=-1), th.cat([raw, last_raw], dim=-1)
        log_var = self.max_log_var - F.softplus(self.max_log_var - raw)
        log_var = self.min_log_var + F.softplus(log_var - self.min_log_var)
        return mean, log_var, logits

    def log_var_bounds_loss(self) -> th.Tensor:
        """
        :return: what keeps the learned bounds tight, summed over members and dimensions (PETS, appendix A.1)
        """
        return self.max_log_var.sum() - self.min_log_var.sum()

    @th.no_grad()
    def subset(self, members: Sequence[int]) -> "GaussianEnsemble":
        """
        A frozen copy of some members: what imagination evaluates, without a gradient for its weights and without dropout.

        :param members: indices of the members to keep
        :return: an ensemble of ``len(members)`` members whose parameters do not require a gradient
        """
        frozen = GaussianEnsemble.__new__(GaussianEnsemble)
        nn.Module.__init__(frozen)
        frozen.ensemble_size, frozen.target_dim, frozen.n_logits = len(members), self.target_dim, self.n_logits
        index = th.as_tensor(members, device=self.max_log_var.device)
        frozen.mlp = self.mlp.frozen_members(index)
        frozen.last_mlp = None if self.last_mlp is None else self.last_mlp.frozen_members(index)
        frozen.max_log_var = nn.Parameter(self.max_log_var[index], requires_grad=False)
        frozen.min_log_var = nn.Parameter(self.min_log_var[index], requires_grad=False)
        return frozen


def _select_members(module: nn.Module, index: th.Tensor) -> nn.Module:
    """
    :param module: a layer of an ensemble
    :param index: members to keep
    :return: the layer of these members, frozen; a layer without parameters is shared
    """
    if not isinstance(module, EnsembleLinear):
        return module
    selected = EnsembleLinear.__new__(EnsembleLinear)
    nn.Module.__init__(selected)
    selected.weight = nn.Parameter(module.weight[index], requires_grad=False)
    selected.bias = nn.Parameter(module.bias[index], requires_grad=False)
    return selected


def gaussian_nll(mean: th.Tensor, log_var: th.Tensor, target: th.Tensor) -> th.Tensor:
    r"""
    Negative log-likelihood per dimension,
    :math:`\frac12 [(y - \mu)^2 e^{-\log \sigma^2} + \log \sigma^2 + \log 2\pi]`.

    :param mean: [...]
    :param log_var: [...]
    :param target: [...]
    :return: [...]
    """
    return 0.5 * ((target - mean).square() * (-log_var).exp() + log_var + math.log(2 * math.pi))


def sampled_squared_error(mean: th.Tensor, log_var: th.Tensor, target: th.Tensor) -> th.Tensor:
    r"""
    Squared error of one reparameterised sample, :math:`\frac12 (\mu + \sigma \zeta - y)^2` with
    :math:`\zeta \sim \mathcal N(0, 1)`: equation 4 of MEMB. Its expectation is :math:`\frac12 [(\mu - y)^2 + \sigma^2]`, so it
    fits the mean and drives the deviation to zero.

    :param mean: [...]
    :param log_var: [...]
    :param target: [...]
    :return: [...]
    """
    sample = th.addcmul(mean, (0.5 * log_var).exp(), th.randn_like(mean))
    return 0.5 * (sample - target).square()
