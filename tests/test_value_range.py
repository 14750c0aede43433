"""The range of values, and critics that predict inside it."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_modelbased import MAAC, MEMB, MPDP
from sb3_modelbased.common.policies import ModelBasedSACPolicy
from sb3_modelbased.common.value_range import ValueRange
from sb3_modelbased.memb.policies import MEMBPolicy

SPACES = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Box(-1.0, 1.0, (2,), np.float32)


def test_the_first_rewards_set_the_range_and_others_move_it():
    value_range, rng = ValueRange(), np.random.default_rng(0)
    batches = [rng.normal(loc, 2.0, (5, 64)).astype(np.float32) for loc in (0.0, 10.0, 10.0)]
    low, high = np.quantile(batches[0], [0.01, 0.99]) / (1 - 0.95)
    for batch in batches[1:]:
        new_low, new_high = np.quantile(batch, [0.01, 0.99]) / (1 - 0.95)
        low, high = low + 3e-4 * (new_low - low), high + 3e-4 * (new_high - high)
    for batch in batches:
        value_range.update(th.as_tensor(batch), gamma=0.95)
    assert value_range.low.item() == pytest.approx(low, rel=1e-5)
    assert value_range.high.item() == pytest.approx(high, rel=1e-5)


def test_outputs_of_one_are_its_ends_and_clipping_keeps_what_is_inside():
    value_range = ValueRange()
    value_range.update(th.linspace(-1.0, 3.0, 101), gamma=0.5)  # its quantiles are -0.96 and 2.96
    assert value_range(th.tensor([-1.0, 0.0, 0.5, 1.0])).tolist() == pytest.approx([-1.92, 2.0, 3.96, 5.92], abs=1e-5)
    assert value_range.clip(th.tensor([-50.0, 1.25, 50.0])).tolist() == pytest.approx([-1.92, 1.25, 5.92], abs=1e-5)


@pytest.mark.parametrize("policy_class", [ModelBasedSACPolicy, MEMBPolicy])
def test_values_begin_in_the_middle_of_one_range_for_all(policy_class):
    policy = policy_class(*SPACES, lambda _: 1e-3, net_arch=[8], critic_value_range=True)
    policy.critic.value_range.update(th.linspace(-1.0, 3.0, 101), gamma=0.5)
    observations, actions = th.rand(6, 3), th.rand(6, 2)
    values = [policy.critic(observations, actions)]
    if policy_class is MEMBPolicy:
        values += [policy.value(observations), policy.value_target(observations)]
    else:
        values += [policy.critic_target(observations, actions)]
    for value in values:
        assert th.allclose(value, th.tensor(2.0))
    nn.init.constant_(policy.critic.q_networks[-1].bias, 0.5)
    assert th.allclose(policy.critic(observations, actions), th.tensor(3.96))


@pytest.mark.parametrize("algorithm", [MAAC, MEMB, MPDP])
def test_an_agent_follows_the_rewards_that_it_meets(algorithm):
    agent = algorithm(
        "MlpPolicy",
        "Pendulum-v1",
        learning_starts=50,
        batch_size=32,
        ent_coef=0.0,
        model_net_arch=[8],
        model_gradient_steps=5,
        policy_kwargs={"net_arch": [8], "critic_value_range": True},
        seed=0,
        device="cpu",
    ).learn(52)
    # Pendulum's rewards are between -16.3 and 0; what the model imagines is clipped a little outside of them
    assert -40 / (1 - agent.gamma) < agent.critic.value_range.low < agent.critic.value_range.high < 10 / (1 - agent.gamma)
    assert agent.critic.value_range.high - agent.critic.value_range.low > 100
    assert "critic.value_range.low" in agent.get_parameters()["policy"]


def test_targets_stay_in_the_range():
    agent = MPDP("MlpPolicy", "Pendulum-v1", policy_kwargs={"net_arch": [8], "critic_value_range": True}, device="cpu")
    rewards = th.linspace(-2.0, 2.0, 101)
    agent.critic.value_range.update(rewards, agent.gamma)
    nn.init.constant_(agent.critic_target.q_networks[-1].bias, 7.0)  # seven times as high as anything can be
    values = agent.critic_target(th.rand(6, 3), th.rand(6, 1)).amin(dim=0)
    assert (values > 1000).all()
    assert th.allclose(agent._in_range(values), th.tensor(1.96 / 0.01), rtol=1e-4)


def test_undiscounted_rewards_have_no_range():
    with pytest.raises(ValueError, match="critic_value_range=True, which needs gamma < 1"):
        MAAC("MlpPolicy", "Pendulum-v1", gamma=1.0, policy_kwargs={"critic_value_range": True})
