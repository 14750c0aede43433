"""Pure measures of how far the members of an ensemble disagree."""

from collections.abc import Callable

import torch as th

# Added to u before a logarithm: identical members must not reward the policy without bound
EPSILON = 1e-8


def one_vs_rest_kl(mean: th.Tensor, log_var: th.Tensor) -> th.Tensor:
    r"""
    One-vs-rest disagreement (Pan et al., 2020; MPDP's equation 8):

    .. math:: u = \sum_i D_{KL}[p_i \,\|\, p_{-i}]

    where :math:`p_{-i}` is the Gaussian that has the mean and the variance of the mixture of all members but i
    (moment matching). It is 0 where all members agree and never negative; it has no unit, because a KL divergence does
    not change when the variables are rescaled.

    :param mean: of each member's diagonal Gaussian, [E, ..., D] with E >= 2
    :param log_var: logarithm of its variances, [E, ..., D]
    :return: u >= 0, summed over members and dimensions, [...]
    """
    rest = mean.shape[0] - 1
    var = log_var.exp()
    # Deviations from the common mean: the squares of the means themselves would cancel in float32
    deviation = mean - mean.mean(dim=0)
    second_moment = var + deviation.square()
    rest_mean = (deviation.sum(dim=0) - deviation) / rest
    rest_var = (second_moment.sum(dim=0) - second_moment) / rest - rest_mean.square()
    # A variance is positive; its float32 difference may not be
    rest_var = rest_var.clamp(min=th.finfo(var.dtype).tiny)
    ratio = (var + (deviation - rest_mean).square()) / rest_var
    return 0.5 * (ratio - 1 + rest_var.log() - log_var).sum(dim=(0, -1)).clamp(min=0)


def log_uncertainty(uncertainty: th.Tensor) -> th.Tensor:
    """
    :param uncertainty: u >= 0, [...]
    :return: log u, bounded below, [...]
    """
    return (uncertainty + EPSILON).log()


def linear_uncertainty(uncertainty: th.Tensor) -> th.Tensor:
    """
    :param uncertainty: u >= 0, [...]
    :return: u, [...]
    """
    return uncertainty


# What the penalty of MPDP is proportional to, by name
PENALTIES: dict[str, Callable[[th.Tensor], th.Tensor]] = {"linear": linear_uncertainty, "log": log_uncertainty}
