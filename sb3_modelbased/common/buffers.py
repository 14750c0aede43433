"""Where transitions live as tensors: a mirror of SB3's replay buffer for the model, and a ring of imagined ones."""

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples

from sb3_modelbased.common.type_aliases import Transitions


class TransitionRing:
    """
    A ring buffer of transitions, tensors on the training device.

    Memory grows with the content up to ``capacity``: an agent that is stopped early never pays for the rest.

    :param capacity: most transitions to keep
    :param observation_dim: O
    :param action_dim: A
    :param device: where the tensors live
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int, device: th.device | str = "cpu") -> None:
        self.capacity = capacity
        self.device = th.device(device)
        self._widths = Transitions(observation_dim, action_dim, observation_dim, 1, 1)  # type: ignore[arg-type]
        # One row per transition: a sample is one gather, whatever the number of fields
        self._data = th.empty(0, sum(self._widths), device=self.device)  # type: ignore[arg-type]
        self._next = 0
        self._size = 0
        # The size on the device: a CUDA graph that samples reads it there
        self._device_size = th.zeros((), dtype=th.float64, device=self.device)

    def __len__(self) -> int:
        return self._size

    def size(self) -> int:
        """
        :return: number of transitions stored
        """
        return self._size

    def clear(self) -> None:
        """Forget everything."""
        self._next = self._size = 0
        self._device_size.zero_()

    def extend(self, transitions: Transitions) -> None:
        """
        Append a batch, overwriting the oldest transitions once the ring is full.

        :param transitions: [N, ...]
        """
        rows = th.cat(
            [
                transitions.observations,
                transitions.actions,
                transitions.next_observations,
                transitions.rewards.unsqueeze(-1),
                transitions.terminated.unsqueeze(-1),
            ],
            dim=-1,
        ).to(self._data)[-self.capacity :]
        self._grow(min(self._size + len(rows), self.capacity))
        head = min(len(rows), self.capacity - self._next)
        self._data[self._next : self._next + head] = rows[:head]
        self._data[: len(rows) - head] = rows[head:]
        self._next = (self._next + len(rows)) % self.capacity
        self._size = min(self._size + len(rows), self.capacity)
        self._device_size.fill_(self._size)

    def _grow(self, needed: int) -> None:
        if needed > len(self._data):
            rows = min(max(needed, 2 * len(self._data), 1024), self.capacity)
            grown = th.empty(rows, self._data.shape[1], device=self.device)
            grown[: self._size] = self._data[: self._size]
            self._data = grown

    def __getitem__(self, index: th.Tensor | slice) -> Transitions:
        """
        :param index: rows, in no particular order of time
        :return: [..., D] for an index of shape [...]
        """
        data = self._data[: self._size] if isinstance(index, slice) else self._data
        observations, actions, next_observations, rewards, terminated = data[index].split(list(self._widths), dim=-1)
        return Transitions(observations, actions, next_observations, rewards.squeeze(-1), terminated.squeeze(-1))

    def random_rows(self, n: int) -> th.Tensor:
        """
        :param n: number of rows
        :return: uniform row numbers, with replacement, from torch's generator, [n]
        """
        return (th.rand(n, dtype=th.float64, device=self.device) * self._device_size).long()

    @property
    def address(self) -> int:
        """Where the storage lies; it moves when the ring grows."""
        return self._data.data_ptr()


class ImaginaryBuffer(TransitionRing):
    """A ring of imagined transitions that is sampled like SB3's replay buffer."""

    def sample(self, batch_size: int) -> ReplayBufferSamples:
        """
        :param batch_size: number of transitions
        :return: a uniform sample, with ``rewards`` and ``dones`` of shape [batch_size, 1] as SB3 has them
        """
        if not self._size:
            raise ValueError("The imaginary buffer is empty: fill it with `extend` before sampling from it.")
        batch = self[self.random_rows(batch_size)]
        return ReplayBufferSamples(
            batch.observations,
            batch.actions,
            batch.next_observations,
            batch.terminated.unsqueeze(-1),
            batch.rewards.unsqueeze(-1),
        )


class ReplayMirror(TransitionRing):
    """
    What the model is fitted to: the content of SB3's replay buffer, flattened over environments, as float32 tensors
    on the training device. :meth:`sync` copies only the rows that are new.

    Observations and rewards are the raw ones (``VecNormalize`` statistics move, the dynamics do not), and time limits
    do not count as terminations.

    Each row has a number in [0, 1) that its content gives it, which decides whether it is held out of training: the same
    transition is on the same side of every split, also after a replay buffer was saved and loaded.
    See :meth:`holdout_split`.
    """

    def __init__(self, capacity: int, observation_dim: int, action_dim: int, device: th.device | str = "cpu") -> None:
        super().__init__(capacity, observation_dim, action_dim, device)
        self._source: ReplayBuffer | None = None
        self._synced_to = 0
        self._synced_full = False
        self._last_row = b""
        self._holdout_keys = th.empty(0, device=self.device)

    def sync(self, replay_buffer: ReplayBuffer) -> None:
        """
        Append what was added to the replay buffer since the last call; start anew for another buffer.

        :param replay_buffer: the agent's replay buffer
        """
        if self._must_start_anew(replay_buffer):
            self.clear()
            self._source = replay_buffer
            # The memory-efficient buffer has overwritten the oldest observation with the newest's next one
            count = replay_buffer.size() - (replay_buffer.full and replay_buffer.optimize_memory_usage)
        else:
            count = (replay_buffer.pos - self._synced_to) % replay_buffer.buffer_size
        rows = (replay_buffer.pos - count + np.arange(count)) % replay_buffer.buffer_size
        self._synced_to, self._synced_full = replay_buffer.pos, replay_buffer.full
        if count:
            self.extend(_read_rows(replay_buffer, rows))
        self._last_row = _fingerprint(replay_buffer, self._synced_to)

    def _must_start_anew(self, replay_buffer: ReplayBuffer) -> bool:
        """
        :param replay_buffer: the agent's replay buffer
        :return: whether it is another buffer (``load_replay_buffer``), was reset, or went round since the last call
        """
        if replay_buffer is not self._source:
            return True
        if not replay_buffer.full and (self._synced_full or replay_buffer.pos < self._synced_to):
            return True
        # SB3's buffer does not count what was added: it went round if the row that was the newest has changed
        return _fingerprint(replay_buffer, self._synced_to) != self._last_row

    def extend(self, transitions: Transitions) -> None:
        start, count = self._next, min(len(transitions.rewards), self.capacity)
        super().extend(transitions)
        if len(self._holdout_keys) < len(self._data):
            self._holdout_keys = th.cat([self._holdout_keys, self._data.new_empty(len(self._data) - len(self._holdout_keys))])
        rows = (start + th.arange(count, device=self.device)) % self.capacity
        self._holdout_keys[rows] = _uniform_from_content(self._data[rows])

    def holdout_split(self, ratio: float, max_rows: int) -> tuple[th.Tensor, th.Tensor]:
        """
        Split into rows to train on and rows to judge the model by. A row never enters the holdout after it was
        trained on: warm-started fits would otherwise be judged by what they have seen.

        :param ratio: share of the rows that is held out
        :param max_rows: expected number of rows that is held out at most
        :return: row numbers of the training set and of the holdout, both non-empty given two rows
        """
        share = min(ratio, max_rows / max(self._size, 1))
        held_out = self._holdout_keys[: self._size] < share
        if self._size > 1 and (held_out.all() or not held_out.any()):
            held_out[-1] = not bool(held_out[-1])
        return (~held_out).nonzero().squeeze(-1), held_out.nonzero().squeeze(-1)


def _uniform_from_content(rows: th.Tensor) -> th.Tensor:
    """
    A hash of each row: a multiply-add over the bits of its numbers, then a finaliser in which every bit of the sum
    changes half of the result's (that of MurmurHash3).

    :param rows: float32, [N, D]
    :return: float32 in [0, 1), [N]
    """
    bits = rows.contiguous().view(th.int32).to(th.int64)
    factors = th.full((rows.shape[1],), -7046029254386353131, device=rows.device).cumprod(dim=0)  # odd, modulo 2^64
    mixed = (bits * factors).sum(dim=1)
    for factor in (-49064778989728563, -4265267296055464877):
        mixed = (mixed ^ (mixed >> 33 & 0x7FFFFFFF)) * factor
    return (mixed >> 40 & 0xFFFFFF).to(th.float32) / 2**24


def _fingerprint(replay_buffer: ReplayBuffer, end: int) -> bytes:
    """
    :param replay_buffer: SB3's buffer
    :param end: row after the one in question
    :return: its action and reward, which no two rows share in practice
    """
    return replay_buffer.actions[end - 1].tobytes() + replay_buffer.rewards[end - 1].tobytes()


def _read_rows(replay_buffer: ReplayBuffer, rows: np.ndarray) -> Transitions:
    """
    :param replay_buffer: SB3's buffer, arrays of shape [size, n_envs, ...]
    :param rows: rows to read, [N]
    :return: [N * n_envs, ...], less what a memory-efficient buffer no longer knows
    """
    # With ``optimize_memory_usage`` the next observation is the observation of the next row
    if replay_buffer.optimize_memory_usage:
        next_observations = replay_buffer.observations[(rows + 1) % replay_buffer.buffer_size]
    else:
        next_observations = replay_buffer.next_observations[rows]
    terminated = replay_buffer.dones[rows] * (1 - replay_buffer.timeouts[rows])
    arrays = (replay_buffer.observations[rows], replay_buffer.actions[rows], next_observations)
    vectors = (th.as_tensor(array, dtype=th.float32).reshape(len(rows) * replay_buffer.n_envs, -1) for array in arrays)
    scalars = (th.as_tensor(array, dtype=th.float32).reshape(-1) for array in (replay_buffer.rewards[rows], terminated))
    transitions = Transitions(*vectors, *scalars)
    if not replay_buffer.optimize_memory_usage:
        return transitions
    # It overwrites the last observation of an episode with the first of the next one: such a step teaches nothing true
    lost = replay_buffer.dones[rows] * (rows != (replay_buffer.pos - 1) % replay_buffer.buffer_size)[:, None]
    kept = th.as_tensor(lost.reshape(-1) == 0)
    return Transitions(*(field[kept] for field in transitions))
