"""The range in which values can lie, for critics that predict inside it."""

import torch as th
from torch import nn

# Rewards below and above these shares of them do not widen the range
LOW, HIGH = 0.01, 0.99
# Weight of a batch in the running average
RATE = 3e-4


class ValueRange(nn.Module):
    r"""
    The values of an agent whose every reward is among the lowest or the highest that it meets,
    :math:`[\underline q, \bar q] = [r_{1\%}, r_{99\%}] / (1 - \gamma)`, as a running average over batches (Kubo et al., 2025,
    bound and scale their critics so).

    A critic that learns :math:`Q = \frac{\bar q + \underline q}2 + \frac{\bar q - \underline q}2 f` does not have to climb
    from zero at the pace of its learning rate and of its target network.
    """

    low: th.Tensor
    high: th.Tensor
    n_updates: th.Tensor

    def __init__(self) -> None:
        super().__init__()
        # Until the first update critics predict their networks' own outputs
        self.register_buffer("low", -th.ones(()))
        self.register_buffer("high", th.ones(()))
        self.register_buffer("n_updates", th.zeros(()))

    @th.no_grad()
    def update(self, rewards: th.Tensor, gamma: float) -> None:
        """
        :param rewards: those of a batch with their entropy bonus, as the agent sees them, of any shape
        :param gamma: discount, below 1
        """
        low, high = th.quantile(rewards.flatten(), rewards.new_tensor([LOW, HIGH])) / (1 - gamma)
        rate = th.where(self.n_updates == 0, 1.0, RATE)  # no average with what is not from rewards
        self.low.lerp_(low, rate)
        self.high.lerp_(high, rate)
        self.n_updates += 1

    def forward(self, outputs: th.Tensor) -> th.Tensor:
        """
        :param outputs: of a network
        :return: values
        """
        return 0.5 * (self.high + self.low) + 0.5 * (self.high - self.low) * outputs

    def clip(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: targets
        :return: the same, inside the range
        """
        return values.clamp(self.low, self.high)
