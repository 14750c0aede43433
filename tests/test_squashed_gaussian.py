"""The actor's short way to an action and its log-probability against SB3's own distribution."""

import pytest
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.sac.policies import Actor

from sb3_modelbased import MAAC
from sb3_modelbased.common.policies import sample_squashed_gaussian


@pytest.mark.parametrize("shape", [(5, 1), (64, 3), (256, 6)])
def test_sample_squashed_gaussian(shape):
    mean, log_std = th.randn(shape, requires_grad=True), (th.randn(shape) - 1).requires_grad_()
    distribution, results = SquashedDiagGaussianDistribution(shape[1]), []
    for sample in (sample_squashed_gaussian, distribution.log_prob_from_params):
        th.manual_seed(3)
        actions, log_probs = sample(mean, log_std)
        gradients = th.autograd.grad((actions * th.arange(shape[1])).sum() + log_probs.square().sum(), (mean, log_std))
        results.append((actions, log_probs, *gradients))
    for ours, reference in zip(*results, strict=True):
        th.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("use_sde", [False, True])
def test_actor_against_sb3(use_sde):
    actor = MAAC("MlpPolicy", "Pendulum-v1", seed=0, use_sde=use_sde, device="cpu").actor
    observations, results = th.randn(32, 3), []
    for method in (type(actor).action_log_prob, Actor.action_log_prob):
        th.manual_seed(1)
        results.append(method(actor, observations))
    for ours, reference in zip(*results, strict=True):
        th.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)
