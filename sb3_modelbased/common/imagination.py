"""Rollouts in the model: a differentiable one for the actor and a detached, branched one that fills the buffer."""

import torch as th

from sb3_modelbased.common.buffers import ImaginaryBuffer
from sb3_modelbased.common.type_aliases import PolicyFn, Trajectory, Transitions
from sb3_modelbased.common.world_model import Dynamics

# Rows per pass of a detached rollout: beyond it the activations leave the cache and a row costs twice the time
ROWS_PER_PASS = 4096


def imagine(dynamics: Dynamics, policy: PolicyFn, observations: th.Tensor, horizon: int) -> Trajectory:
    """
    Follow the policy through the model for ``horizon`` steps. The gradient of everything returned flows through the
    model and the policy at every step.

    :param dynamics: the model
    :param policy: actions and log-probabilities for [B, O] observations
    :param observations: states to start from, [B, O]
    :param horizon: number of model steps H >= 0
    :return: H steps
    """
    if horizon == 0:
        nothing = observations.new_empty(0, len(observations))
        return Trajectory(observations.unsqueeze(0), nothing.unsqueeze(-1), nothing, nothing, nothing)
    states, actions, log_probs, rewards, terminated = [observations], [], [], [], []
    for step in range(horizon):
        action, log_prob = policy(states[-1], step)
        prediction = dynamics.step(states[-1], action)
        states.append(prediction.next_observations)
        actions.append(action)
        log_probs.append(log_prob)
        rewards.append(prediction.rewards)
        terminated.append(prediction.terminated)
    return Trajectory(*(th.stack(sequence) for sequence in (states, actions, log_probs, rewards, terminated)))


@th.no_grad()
def branched_rollouts(
    dynamics: Dynamics, policy: PolicyFn, observations: th.Tensor, length: int, buffer: ImaginaryBuffer
) -> int:
    """
    Branch rollouts of the policy off real states and store every transition (Janner et al., 2019, algorithm 2). A
    rollout ends at a predicted terminal.

    :param dynamics: the model
    :param policy: actions for [B, O] observations
    :param observations: real states to start from, [B, O]
    :param length: number of model steps of each rollout
    :param buffer: where to store the transitions
    :return: number of imagined transitions
    """
    imagined = 0
    for states in observations.split(ROWS_PER_PASS):
        for step in range(length):
            actions, _ = policy(states, step)
            prediction = dynamics.step(states, actions)
            terminated = prediction.terminated > 0.5
            buffer.extend(
                Transitions(
                    states, actions, prediction.next_observations, prediction.rewards, terminated.to(prediction.rewards.dtype)
                )
            )
            imagined += len(states)
            states = prediction.next_observations[~terminated]
            if not len(states):
                break
    return imagined
