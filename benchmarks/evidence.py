"""
What explains a curve, computed from the last checkpoint of a run of ``learning.py``.

    python benchmarks/evidence.py Hopper-v4_maac_s0 Hopper-v4_sac_s0

- *Value bias*: what the critics say of the states that the stochastic policy visits, less the return that follows (Monte
  Carlo, entropy bonus included, as the critics are trained).
- *Model error k steps ahead*: the model follows the actions of real episodes; distance to the states that really came, per
  dimension in standard deviations of the visited states.
- *Imagined against real states*: the model follows the policy from real states; distance between the distributions after k
  steps (Wasserstein-1 per dimension, in the same unit), beside that of one half of the real states from the other.

The actor's gradient norm, the mean horizon and the model's holdout error are logged during the run, in its result file.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from records import EVAL_SEED, ROOT, Job, read_csv, write_csv
from scipy.stats import wasserstein_distance
from single_run import Run, latest_checkpoint, load_checkpoint
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

# Episodes that neither training nor evaluation has seen
EVIDENCE_SEED = EVAL_SEED + 100_000
HORIZONS = (1, 2, 3, 5, 10, 20)
# A state counts for the value bias if its episode terminates, or if the critics' own estimate at the cut weighs at most this
MAX_BOOTSTRAP_WEIGHT = 1 / 3
MAX_STARTS = 1000


@dataclass(frozen=True)
class Episode:
    """
    A real episode of the stochastic policy, T steps.

    :param observations: raw, [T + 1, O]
    :param seen: the same as the policy sees them, [T + 1, O]
    :param actions: scaled to [-1, 1], [T, A]
    :param log_probs: of the actions, [T]
    :param rewards: as the critics see them, [T]
    :param raw_rewards: [T]
    :param terminated: whether it ended in a terminal state, not at a time limit
    """

    observations: np.ndarray
    seen: np.ndarray
    actions: np.ndarray
    log_probs: np.ndarray
    rewards: np.ndarray
    raw_rewards: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


@th.no_grad()
def collect(model: Any, env: VecEnv, seed: int) -> list[Episode]:
    """
    One episode in each environment.

    :param model: the agent
    :param env: vectorised environment
    :param seed: environment i starts from ``reset(seed=seed + i)``
    :return: the episodes
    """
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None:
        sync_envs_normalization(model.get_env(), env)

    def raw(observations: np.ndarray) -> np.ndarray:
        return normalizer.unnormalize_obs(observations) if normalizer is not None else observations

    model.policy.set_training_mode(False)
    env.seed(seed)
    seen = env.reset()
    steps: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
    episodes: dict[int, Episode] = {}
    while len(episodes) < env.num_envs:
        actions, log_probs = model.actor.action_log_prob(th.as_tensor(seen, dtype=th.float32, device=model.device))
        actions, log_probs = actions.cpu().numpy(), log_probs.reshape(-1).cpu().numpy()
        following, rewards, dones, infos = env.step(model.policy.unscale_action(actions))
        for index in range(env.num_envs):
            if index in episodes:
                continue
            next_seen = infos[index]["terminal_observation"] if dones[index] else following[index]
            steps[index].append((seen[index], actions[index], log_probs[index], rewards[index]))
            if dones[index]:
                before, taken, probs, raw_rewards = (np.array(column) for column in zip(*steps[index], strict=True))
                visited = np.concatenate([before, next_seen[None]])
                scaled = normalizer.normalize_reward(raw_rewards) if normalizer is not None else raw_rewards
                cut = bool(infos[index].get("TimeLimit.truncated", False))
                episodes[index] = Episode(raw(visited), visited, taken, probs, scaled, raw_rewards, not cut)
        seen = following
    return [episodes[index] for index in range(env.num_envs)]


# --------------------------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------------------------
def q_values(model: Any, seen: np.ndarray, actions: np.ndarray) -> np.ndarray:
    """
    The value that the algorithm's targets are made of: the least of the critics, or the mean over TQC's quantiles.

    :param model: the agent
    :param seen: observations as the policy sees them, [T, O]
    :param actions: scaled to [-1, 1], [T, A]
    :return: [T]
    """
    inputs = (th.as_tensor(array, dtype=th.float32, device=model.device) for array in (seen, actions))
    with th.no_grad():
        values = model.critic(*inputs)
    if isinstance(values, tuple):  # SAC and CrossQ: one [T, 1] per critic
        return th.cat(values, dim=1).amin(dim=1).cpu().numpy()
    if values.ndim == 3:  # TQC: [T, critics, quantiles]
        return values.mean(dim=(1, 2)).cpu().numpy()
    return values.amin(dim=0).cpu().numpy()  # ours: [critics, T]


@th.no_grad()
def entropy_coefficient(model: Any) -> float:
    """
    :param model: the agent
    :return: alpha
    """
    if hasattr(model, "entropy_coef"):
        return float(model.entropy_coef())
    return float(model.log_ent_coef.exp() if model.log_ent_coef is not None else model.ent_coef_tensor)


def soft_returns(episode: Episode, gamma: float, alpha: float, last_value: float) -> np.ndarray:
    r"""
    What a critic should say: :math:`G_t = r_t + \gamma (G_{t+1} - \alpha \log \pi(a_{t+1}|s_{t+1}))`. The bonus of the first
    action is not part of its value.

    :param episode: T steps
    :param gamma: discount
    :param alpha: entropy coefficient
    :param last_value: soft value of the state at which a time limit cut the episode; not used behind a terminal state
    :return: [T]
    """
    returns = np.empty(len(episode))
    value = 0.0 if episode.terminated else last_value
    for step in reversed(range(len(episode))):
        returns[step] = episode.rewards[step] + gamma * value
        value = returns[step] - alpha * episode.log_probs[step]
    return returns


def value_bias(model: Any, episodes: list[Episode]) -> dict[str, float]:
    """
    Compare the critics with what follows.

    :param model: the agent
    :param episodes: of its stochastic policy
    :return: means over states: the critics' value, the return, their difference, its standard deviation, and the difference
        as a share of the mean absolute return
    """
    gamma, alpha = model.gamma, entropy_coefficient(model)
    estimates, returns = [], []
    for episode in episodes:
        last_value = 0.0
        if not episode.terminated:
            with th.no_grad():
                last = th.as_tensor(episode.seen[-1:], dtype=th.float32, device=model.device)
                action, log_prob = model.actor.action_log_prob(last)
            last_value = float(q_values(model, episode.seen[-1:], action.cpu().numpy())[0] - alpha * log_prob.item())
        weights = gamma ** np.arange(len(episode), 0, -1)
        counted = np.full(len(episode), True) if episode.terminated else weights <= MAX_BOOTSTRAP_WEIGHT
        estimates.append(q_values(model, episode.seen[:-1], episode.actions)[counted])
        returns.append(soft_returns(episode, gamma, alpha, last_value)[counted])
    estimate, actual = np.concatenate(estimates), np.concatenate(returns)
    if not len(actual):
        return {}
    difference = estimate - actual
    return {
        "value": float(estimate.mean()),
        "return": float(actual.mean()),
        "value_bias": float(difference.mean()),
        "value_bias_std": float(difference.std()),
        "value_bias_share": float(difference.mean() / np.abs(actual).mean()),
    }


# --------------------------------------------------------------------------------------------------------------------
# Model
# --------------------------------------------------------------------------------------------------------------------
def windows(episodes: list[Episode], length: int, rng: np.random.Generator) -> list[tuple[Episode, int]]:
    """
    Places from which an episode goes on for some time.

    :param episodes: real episodes
    :param length: least number of steps that follow
    :param rng: chooses among them
    :return: at most ``MAX_STARTS`` pairs of an episode and a step in it
    """
    every = [(episode, start) for episode in episodes for start in range(len(episode) - length + 1)]
    chosen = rng.permutation(len(every))[:MAX_STARTS]
    return [every[index] for index in chosen]


@th.no_grad()
def model_errors(model: Any, episodes: list[Episode], rng: np.random.Generator) -> list[dict[str, Any]]:
    """
    Follow real actions and the policy through the model.

    :param model: the agent
    :param episodes: of its stochastic policy
    :param rng: chooses the states to start from
    :return: rows with ``quantity``, ``k`` and ``value``
    """
    longest = max(map(len, episodes))
    horizons = [k for k in HORIZONS if k <= longest]
    starts = windows(episodes, horizons[-1], rng)
    while not starts:  # episodes may be shorter than the longest horizon
        horizons.pop()
        starts = windows(episodes, horizons[-1], rng)
    every = np.concatenate([episode.observations for episode in episodes])
    std = np.maximum(every.std(axis=0), 1e-6)
    real = np.array([episode.observations[start : start + horizons[-1] + 1] for episode, start in starts])
    actions = np.array([episode.actions[start : start + horizons[-1]] for episode, start in starts])
    rewards = np.array([episode.raw_rewards[start : start + horizons[-1]] for episode, start in starts])

    def tensor(array: np.ndarray) -> th.Tensor:
        return th.as_tensor(array, dtype=th.float32, device=model.device)

    rows = []

    def add(quantity: str, k: int, value: float) -> None:
        rows.append({"quantity": quantity, "k": k, "value": float(value)})

    given, policy, alive = tensor(real[:, 0]), tensor(real[:, 0]), np.full(len(real), True)
    half = rng.permutation(len(real)) < len(real) // 2
    for k in range(1, horizons[-1] + 1):
        step = model.world_model.step(given, tensor(actions[:, k - 1]))
        given = step.next_observations
        imagined = model.world_model.step(policy, model._policy_fn(policy, 0)[0])
        policy = imagined.next_observations
        alive &= (imagined.terminated <= 0.5).cpu().numpy()
        if k not in horizons:
            continue
        now = real[:, k]
        add("model_error", k, rms((given.cpu().numpy() - now) / std))
        add("model_error_no_change", k, rms((real[:, 0] - now) / std))
        add("reward_error", k, np.abs(step.rewards.cpu().numpy() - rewards[:, k - 1]).mean())
        add("imagined_terminated", k, 1 - alive.mean())
        if alive.any():
            add("state_distance", k, distance(policy.cpu().numpy()[alive], now, std))
        add("state_distance_real_halves", k, distance(now[half], now[~half], std))
    return rows


def rms(errors: np.ndarray) -> float:
    """
    :param errors: [N, O]
    :return: median over rows of the root mean square over dimensions: a few rows that diverge do not hide the others
    """
    return float(np.median(np.sqrt(np.square(errors).mean(axis=1))))


def distance(first: np.ndarray, second: np.ndarray, std: np.ndarray) -> float:
    """
    :param first: states [N, O]
    :param second: states [M, O]
    :param std: unit of every dimension [O]
    :return: mean over dimensions of the Wasserstein-1 distance
    """
    return float(np.mean([wasserstein_distance(first[:, i] / std[i], second[:, i] / std[i]) for i in range(len(std))]))


# --------------------------------------------------------------------------------------------------------------------
# Command
# --------------------------------------------------------------------------------------------------------------------
def measure(name: str, results: Path, runs: Path, episodes: int) -> Path:
    """
    Compute the evidence of one run and write it beside the results.

    :param name: of the run
    :param results: folder of the result files
    :param runs: folder of the checkpoints
    :param episodes: real episodes to collect
    :return: the file
    """
    header, _ = read_csv(results / f"{name}.csv")
    checkpoint = latest_checkpoint(runs / name)
    if checkpoint is None:
        raise SystemExit(f"{name}: its checkpoint is not here; evidence needs the machine that made the run.")
    job = Job(
        env=header["env"],
        algo=header["algo"],
        seed=int(header["seed"]),
        steps=int(header["steps"]),
        # The environment is built from these; the agent comes from the checkpoint
        hyperparams=json.loads(header["hyperparameters"]),
        eval_episodes=episodes,
    )
    th.set_num_threads(1)
    run = Run(job)
    try:
        model, _ = load_checkpoint(checkpoint, run.env)
        set_random_seed(EVIDENCE_SEED)
        real = collect(model, run.eval_env, EVIDENCE_SEED)
        rows: list[dict[str, Any]] = [
            {"quantity": quantity, "k": "", "value": value} for quantity, value in value_bias(model, real).items()
        ]
        if hasattr(model, "world_model") and bool(model.world_model.fitted):
            rows += model_errors(model, real, np.random.default_rng(0))
    finally:
        run.close()
    kept = ("env", "algo", "label", "seed", "git_commit", "versions", "machine")
    about = {key: header[key] for key in kept} | {"env_step": model.num_timesteps, "episodes": episodes}
    path = results / "evidence" / f"{name}.csv"
    write_csv(path, about | {"command": f"python benchmarks/evidence.py {name}"}, rows, names=["quantity", "k", "value"])
    return path


def main(argv: list[str] | None = None) -> int:
    """
    :param argv: command line, without the program's name
    :return: exit status
    """
    parser = argparse.ArgumentParser(description="What explains a learning curve, from the run's last checkpoint.")
    parser.add_argument("runs_to_measure", nargs="+", metavar="RUN", help="for example Hopper-v4_maac_s0")
    parser.add_argument("--episodes", type=int, default=10, help="real episodes to collect")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the CSV files")
    parser.add_argument("--runs", type=Path, default=ROOT / "benchmarks" / "runs", help="folder of the checkpoints")
    arguments = parser.parse_args(argv)
    for name in arguments.runs_to_measure:
        print(measure(name.removesuffix(".csv"), arguments.results, arguments.runs, arguments.episodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
