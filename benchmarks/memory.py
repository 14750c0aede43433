"""
Resident memory of an agent that has seen many env steps, without waiting for them.

    python benchmarks/memory.py --algo maac --env HalfCheetah-v4 --steps 100000 --imaginary-buffer-size 400000

The replay buffer is filled with random transitions, the model is fitted and the imaginary buffer filled as in a training, with
some updates. Prints the process's resident memory, now and at its highest.
"""

from __future__ import annotations

import argparse
import resource
import sys
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.logger import Logger

import sb3_modelbased

UPDATES = 5
MB = 2**20


def resident() -> int:
    """
    :return: bytes of this process in memory
    """
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(argv: list[str] | None = None) -> None:
    """
    :param argv: command line, without the program's name
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--algo", default="maac", choices=["maac", "memb", "mpdp"])
    parser.add_argument("--env", default="HalfCheetah-v4")
    parser.add_argument("--steps", type=int, default=100_000, help="transitions in the replay buffer")
    parser.add_argument("--imaginary-buffer-size", type=int, default=400_000, help="for MAAC")
    arguments = parser.parse_args(argv)
    th.set_num_threads(1)
    np.random.seed(0)  # noqa: NPY002 (what SB3's buffers draw from)
    print(f"with the packages loaded: {resident() / MB:.0f} MiB")

    own = {"imaginary_buffer_size": arguments.imaginary_buffer_size} if arguments.algo == "maac" else {}
    agent = getattr(sb3_modelbased, arguments.algo.upper())("MlpPolicy", arguments.env, device="cpu", seed=0, **own)
    agent.set_logger(Logger(None, []))
    agent._setup_learn(arguments.steps)
    shape = (arguments.steps, *agent.observation_space.shape)
    observations = np.cumsum(0.01 * np.random.standard_normal(shape), axis=0).astype(np.float32)  # noqa: NPY002
    actions = np.random.uniform(-1, 1, (arguments.steps, *agent.action_space.shape)).astype(np.float32)  # noqa: NPY002
    for index in range(arguments.steps - 1):
        row = (observations[index, None], observations[index + 1, None], actions[index, None])
        agent.replay_buffer.add(*row, reward=np.zeros(1), done=np.zeros(1), infos=[{}])
    del observations, actions
    print(f"with {arguments.steps} transitions: {resident() / MB:.0f} MiB")

    # As often as the imaginary buffer needs to be full
    agent.num_timesteps = arguments.steps
    while True:
        agent.train(UPDATES, agent.batch_size)
        if arguments.algo != "maac" or len(agent.imaginary_buffer) >= agent.imaginary_buffer_size:
            break
        agent.num_timesteps += agent.rollout_freq
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"after a fit and updates with both buffers full: {resident() / MB:.0f} MiB, at the highest {peak / MB:.0f} MiB")


if __name__ == "__main__":
    sys.exit(main())
