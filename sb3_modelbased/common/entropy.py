"""The entropy coefficient, fixed or learned: two small objects with one interface."""

import math

import torch as th
from torch import nn


class FixedEntropyCoef(nn.Module):
    """
    A constant entropy coefficient.

    :param value: alpha >= 0
    """

    optimizer: th.optim.Optimizer | None = None

    def __init__(self, value: float) -> None:
        super().__init__()
        # An argument and nothing learned: not in the state, so that another value can be given when an agent is loaded
        self.register_buffer("value", th.tensor(value), persistent=False)

    def forward(self) -> th.Tensor:
        """
        :return: alpha, a scalar without gradient
        """
        return self.value  # type: ignore[return-value]

    def update(self, log_probs: th.Tensor) -> th.Tensor | None:
        """
        :param log_probs: of actions of the current policy, [B]
        :return: None: there is nothing to learn
        """
        return None


class LearnedEntropyCoef(nn.Module):
    """
    An entropy coefficient learned towards a target entropy (Haarnoja et al., 2018b, section 5), optimised in its
    logarithm as SB3's SAC does.

    :param initial_value: alpha to start from, > 0
    :param target_entropy: entropy that alpha steers to, usually -A
    :param learning_rate: of Adam
    """

    def __init__(self, initial_value: float, target_entropy: float, learning_rate: float) -> None:
        super().__init__()
        self.target_entropy = target_entropy
        self.log_ent_coef = nn.Parameter(th.full((1,), math.log(initial_value)))
        self.optimizer = th.optim.Adam([self.log_ent_coef], lr=learning_rate, fused=True)

    def forward(self) -> th.Tensor:
        """
        :return: alpha, [1], without gradient
        """
        return self.log_ent_coef.detach().exp()

    @th.no_grad()
    def update(self, log_probs: th.Tensor) -> th.Tensor:
        r"""
        One gradient step on SAC's loss in its form :math:`-\log \alpha \cdot E[\log \pi + \bar{\mathcal H}]`, of which the
        derivative is the mean itself.

        :param log_probs: of actions of the current policy, [B]
        :return: the loss
        """
        gradient = -(log_probs.detach() + self.target_entropy).mean().reshape(1)
        loss = (self.log_ent_coef * gradient).squeeze(0)
        self.log_ent_coef.grad = gradient
        self.optimizer.step()
        return loss


def make_entropy_coef(
    ent_coef: str | float, target_entropy: str | float, action_dim: int, learning_rate: float
) -> FixedEntropyCoef | LearnedEntropyCoef:
    """
    :param ent_coef: a value, "auto", or "auto_0.1" to start learning from 0.1
    :param target_entropy: a value, or "auto" for -A
    :param action_dim: A
    :param learning_rate: of the learned coefficient
    :return: a fixed or a learned coefficient
    :raises ValueError: for anything else
    """
    try:
        target = -float(action_dim) if target_entropy == "auto" else float(target_entropy)
        learned = ent_coef == "auto" or (isinstance(ent_coef, str) and ent_coef.startswith("auto_"))
        value = 1.0 if ent_coef == "auto" else float(str(ent_coef).removeprefix("auto_"))
        if not (math.isfinite(target) and 0 <= value < math.inf) or (learned and value == 0):
            raise ValueError
        return LearnedEntropyCoef(value, target, learning_rate) if learned else FixedEntropyCoef(value)
    except (TypeError, ValueError):
        raise ValueError(
            "`ent_coef` must be a number >= 0, 'auto', or 'auto_<start>' with a start > 0, and `target_entropy` a number or "
            f"'auto', but ent_coef={ent_coef!r} and target_entropy={target_entropy!r}. Pass for example ent_coef='auto_0.1'."
        ) from None
