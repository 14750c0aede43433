"""A per-dimension normaliser fitted to the training set and saved with the model."""

import torch as th
from torch import nn


class Normalizer(nn.Module):
    """
    Standardise vectors per dimension with a fitted mean and standard deviation.

    Dimensions that never vary in the training set (Ant's zero contact forces, say) keep a scale of 1.

    :param size: number of dimensions D
    """

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", th.zeros(size))
        self.register_buffer("std", th.ones(size))

    @th.no_grad()
    def fit(self, data: th.Tensor) -> None:
        """
        Set the statistics from data. A single row sets the mean and leaves a scale of 1.

        :param data: [N, D], N >= 1
        """
        std, mean = th.std_mean(data, dim=0, correction=0)
        self.mean.copy_(mean)
        # Relative to the mean: float32 noise on a large constant is not a scale
        self.std.copy_(th.where(std > 1e-6 * mean.abs().clamp(min=1.0), std, th.ones_like(std)))

    def normalize(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: [..., D]
        :return: (values - mean) / std, [..., D]
        """
        return (values - self.mean) / self.std

    def denormalize(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: in units of standard deviations, [..., D]
        :return: values * std + mean, [..., D]
        """
        return th.addcmul(self.mean, values, self.std)
