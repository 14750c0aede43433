"""
Pure targets on imagined trajectories: one recursion for the actors of all algorithms and for value expansion, and
the STEVE mixture of horizons.

Time is the first dimension. ``discounts[t]`` is gamma * (1 - d_t): it is 0 behind a terminal step, so that nothing
after it counts.
"""

import torch as th


def lambda_returns(
    rewards: th.Tensor,
    discounts: th.Tensor,
    next_values: th.Tensor,
    lambdas: th.Tensor | float = 1.0,
) -> th.Tensor:
    r"""
    The lambda-return at every step of a trajectory:

    .. math:: G_t = r_t + \gamma_t [(1 - \lambda_t) v_{t+1} + \lambda_t G_{t+1}], \qquad G_H = v_H

    With ``lambdas=1`` it is the H-step return that bootstraps at the end only (MAAC's objective, MVE); with
    ``lambdas=0`` the one-step target (MEMB's equation 8).

    :param rewards: r_t, with the entropy bonus or penalty where the caller wants one, [H, ...]
    :param discounts: gamma_t = gamma * (1 - d_t), [H, ...]
    :param next_values: v_{t+1}, values of the states *after* each step, [H, ...]
    :param lambdas: lambda_t, how far the step after t is trusted over v_{t+1}; broadcast to [H, ...]
    :return: G_t for t = 0 ... H - 1, [H, ...]
    """
    horizon = rewards.shape[0]
    if not isinstance(lambdas, th.Tensor):
        lambdas = rewards.new_full((), lambdas)
    weights = lambdas.expand_as(rewards)
    returns: list[th.Tensor] = []
    following = next_values[-1]
    for t in reversed(range(horizon)):
        # At the last step G_{t+1} is v_H itself, whatever lambda says
        mixed = following if t == horizon - 1 else th.lerp(next_values[t], following, weights[t])
        following = th.addcmul(rewards[t], discounts[t], mixed)
        returns.append(following)
    return th.stack(returns[::-1])


def discounted_sum(rewards: th.Tensor, discounts: th.Tensor, terminal_value: th.Tensor) -> th.Tensor:
    r"""
    The H-step return of the first state only, :math:`\sum_{t<H} (\prod_{i<t} \gamma_i) r_t + (\prod_{i<H} \gamma_i) v_H`;
    equal to ``lambda_returns(...)[0]`` with lambda = 1, and defined for H = 0, where it is v_0.

    :param rewards: [H, ...]
    :param discounts: gamma_t = gamma * (1 - d_t), [H, ...]
    :param terminal_value: v_H, [...]
    :return: [...]
    """
    total = terminal_value
    for t in reversed(range(rewards.shape[0])):
        total = th.addcmul(rewards[t], discounts[t], total)
    return total


def k_step_returns(rewards: th.Tensor, discounts: th.Tensor, next_values: th.Tensor) -> th.Tensor:
    r"""
    The returns of the first state that bootstrap after k = 1 ... H steps:

    .. math:: R_k = \sum_{t<k} \Big(\prod_{i<t} \gamma_i\Big) r_t + \Big(\prod_{i<k} \gamma_i\Big) v_k

    :param rewards: [H, ...]
    :param discounts: gamma_t = gamma * (1 - d_t), [H, ...]
    :param next_values: v_{t+1}, [H, ...]
    :return: R_1 ... R_H, [H, ...]
    """
    survival = th.cumprod(discounts, dim=0)
    before = th.cat([th.ones_like(survival[:1]), survival[:-1]])
    return th.cumsum(before * rewards, dim=0) + survival * next_values


def alive(terminated: th.Tensor) -> th.Tensor:
    r"""
    Probability that a trajectory still goes on when a step is taken, :math:`\prod_{i<t} (1 - d_i)`: what is learned at
    states behind a terminal would be learned of states that do not exist.

    :param terminated: probability d_t that step t ends the task, [H, ...]
    :return: 1 at t = 0, [H, ...]
    """
    return th.cat([th.ones_like(terminated[:1]), (1 - terminated[:-1]).cumprod(dim=0)])


def steve_weights(variances: th.Tensor, epsilon: float = 1e-8) -> th.Tensor:
    r"""
    STEVE's weights over horizons (Buckman et al., 2018, section 3): the inverse variance over the ensemble of each
    horizon's target, normalised over horizons, :math:`w_h \propto 1 / \sigma^2_h`.

    :param variances: variance over the ensemble of each horizon's target, [H, ...]
    :param epsilon: added to the variances, so that a horizon on which all members agree gets a finite weight
    :return: weights that sum to one over the first dimension, [H, ...]
    """
    inverse = 1.0 / (variances + epsilon)
    return inverse / inverse.sum(dim=0, keepdim=True)
