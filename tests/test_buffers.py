"""The rings against lists, and the mirror against SB3's own replay buffer."""

from collections import deque

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl

from sb3_modelbased.common.buffers import ImaginaryBuffer, ReplayMirror, TransitionRing, _uniform_from_content
from sb3_modelbased.common.type_aliases import Transitions

OBSERVATION_SPACE = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
ACTION_SPACE = spaces.Box(-1.0, 1.0, (2,), np.float32)


def numbered(*numbers: float) -> Transitions:
    """Transitions that carry their number in every field."""
    column = th.tensor(numbers).unsqueeze(1)
    return Transitions(column.expand(-1, 3), column * 10, column.expand(-1, 3) + 0.5, column[:, 0] * 100, column[:, 0] % 2)


def contents(ring: TransitionRing) -> list[float]:
    """The numbers in the ring, after checking that no field was mixed up."""
    stored = ring[:]
    numbers = stored.observations[:, 0]
    for ours, expected in zip(stored, numbered(*numbers.tolist()), strict=True):
        assert ours.equal(expected)
    return sorted(numbers.tolist())


@pytest.mark.parametrize("capacity", [1, 7, 1500])
def test_a_ring_keeps_the_newest(capacity):
    ring, reference = TransitionRing(capacity, 3, 1), deque(maxlen=capacity)
    number = 0
    rng = np.random.default_rng(0)
    for _ in range(30):
        size = int(rng.integers(0, 2 * capacity // 3 + 3))
        batch = [float(number + i) for i in range(size)]
        number += size
        ring.extend(numbered(*batch))
        reference.extend(batch)
        assert contents(ring) == sorted(reference)
        assert len(ring) == ring.size() == len(reference)
    assert number > 2 * capacity


def test_a_batch_beyond_the_capacity():
    ring = TransitionRing(5, 3, 1)
    ring.extend(numbered(0, 1, 2))
    ring.extend(numbered(*range(3, 15)))
    assert contents(ring) == [10, 11, 12, 13, 14]
    ring.extend(numbered(15, 16))
    assert contents(ring) == [12, 13, 14, 15, 16]
    ring.clear()
    assert len(ring) == 0
    ring.extend(numbered(20))
    assert contents(ring) == [20]


def test_rows_by_index():
    ring = TransitionRing(10, 3, 1)
    ring.extend(numbered(*range(6)))
    rows = ring[th.tensor([[5, 0], [2, 2]])]
    assert rows.observations.shape == (2, 2, 3)
    assert rows.rewards.tolist() == [[500.0, 0.0], [200.0, 200.0]]


def test_imaginary_samples_look_like_those_of_sb3():
    buffer = ImaginaryBuffer(8, 3, 1)
    buffer.extend(numbered(*range(12)))  # 4 to 11 stay
    sample = buffer.sample(4000)
    reference = ReplayBuffer(1, spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,)), "cpu")
    reference.add(np.zeros(3), np.zeros(3), np.zeros(1), np.zeros(1), np.zeros(1), [{}])
    for ours, theirs in zip(sample[:5], reference.sample(4000)[:5], strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
    numbers, counts = sample.observations[:, 0].unique(return_counts=True)
    assert numbers.tolist() == list(range(4, 12))
    assert ((counts - 500).abs() < 5 * (4000 * 1 / 8 * 7 / 8) ** 0.5).all()
    assert sample.rewards[:, 0].equal(100 * sample.observations[:, 0])
    assert sample.dones[:, 0].equal(sample.observations[:, 0] % 2)
    assert sample.actions[:, 0].equal(10 * sample.observations[:, 0])


def test_an_empty_imaginary_buffer_says_so():
    with pytest.raises(ValueError, match="empty"):
        ImaginaryBuffer(8, 3, 1).sample(2)


class Filler:
    """Adds numbered transitions to a replay buffer and remembers what the mirror should hold."""

    def __init__(self, size: int, n_envs: int, **kwargs) -> None:
        self.buffer = ReplayBuffer(size, OBSERVATION_SPACE, ACTION_SPACE, "cpu", n_envs, **kwargs)
        self.expected: deque[tuple[float, ...]] = deque(maxlen=self.buffer.buffer_size * n_envs)
        self.n_envs, self.time = n_envs, 0
        self.ends = True  # whether there are terminal steps

    def add(self, steps: int) -> None:
        for _ in range(steps):
            numbers = 1000.0 * np.arange(self.n_envs) + self.time
            observations = np.tile(numbers[:, None, None], (1, 2, 3)) + np.arange(6).reshape(2, 3) / 10
            dones = np.array([self.ends and self.time % 3 == 2] * self.n_envs)
            timeouts = np.array([self.time % 2 == 0 and self.buffer.handle_timeout_termination] * self.n_envs)
            actions = np.stack([numbers / 1e4, -numbers / 1e4], axis=1)
            infos = [{"TimeLimit.truncated": bool(timeout)} for timeout in timeouts]
            self.buffer.add(observations, observations + 1.0, actions, -numbers, dones, infos)
            for number, done, timeout in zip(numbers, dones, timeouts, strict=True):
                self.expected.append((number, number / 1e4, number + 1.0, -number, float(done and not timeout)))
            self.time += 1

    def check(self, mirror: ReplayMirror, missing: int = 0) -> None:
        stored = mirror[:]
        steps = th.arange(6.0) / 10
        assert th.allclose(stored.observations, stored.observations[:, :1] + steps, atol=1e-3)
        assert th.allclose(stored.next_observations, stored.next_observations[:, :1] + steps, atol=1e-3)
        assert stored.actions[:, 1].equal(-stored.actions[:, 0])
        first = (stored.observations[:, 0], stored.actions[:, 0], stored.next_observations[:, 0])
        rows = th.stack([*first, stored.rewards, stored.terminated], dim=1)
        assert all(field.dtype == th.float32 for field in stored)
        expected = list(self.expected)[missing:]
        np.testing.assert_allclose(sorted(rows.tolist()), sorted(expected), atol=1e-3)


def make_mirror(size: int = 20) -> ReplayMirror:
    return ReplayMirror(size, 6, 2)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_mirror_follows_the_buffer(n_envs):
    filler, mirror = Filler(20, n_envs), make_mirror()
    for steps in (0, 1, 3, 0, 4, 1, 6, 5, 9, 2, 10, 0, 3):  # wraps around several times
        filler.add(steps)
        mirror.sync(filler.buffer)
        filler.check(mirror)
    assert filler.time > 2 * filler.buffer.buffer_size


@pytest.mark.parametrize("first", [1, 5, 19, 20])
@pytest.mark.parametrize("steps", [19, 20, 21, 39, 45])
def test_mirror_after_a_buffer_that_went_round(first, steps):
    filler, mirror = Filler(20, 1), make_mirror()
    filler.add(first)
    mirror.sync(filler.buffer)
    filler.add(steps)
    mirror.sync(filler.buffer)
    filler.check(mirror)


def test_mirror_copies_only_what_is_new(monkeypatch):
    filler, mirror = Filler(20, 2), make_mirror()
    filler.add(4)
    mirror.sync(filler.buffer)
    copied = []
    extend = ReplayMirror.extend
    monkeypatch.setattr(ReplayMirror, "extend", lambda self, rows: (copied.append(len(rows.rewards)), extend(self, rows)))
    filler.add(3)
    mirror.sync(filler.buffer)
    mirror.sync(filler.buffer)
    assert copied == [6]


def test_mirror_starts_anew_with_another_buffer():
    """What ``load_replay_buffer`` and ``load`` do."""
    mirror = make_mirror()
    first, second = Filler(20, 1), Filler(20, 2)
    first.add(13)
    mirror.sync(first.buffer)
    second.add(7)
    mirror.sync(second.buffer)
    second.check(mirror)
    second.add(2)
    mirror.sync(second.buffer)
    second.check(mirror)
    # A full buffer, such as one that is loaded late
    third = Filler(20, 1)
    third.add(33)
    mirror.sync(third.buffer)
    third.check(mirror)


@pytest.mark.parametrize("before", [5, 15, 25])
@pytest.mark.parametrize("after", [0, 3, 12])
def test_mirror_starts_anew_after_a_reset(before, after):
    mirror, filler = make_mirror(), Filler(20, 1)
    filler.add(before)
    mirror.sync(filler.buffer)
    filler.buffer.reset()
    filler.expected.clear()
    filler.add(after)
    mirror.sync(filler.buffer)
    filler.check(mirror)


def memory_efficient(n_envs: int) -> Filler:
    filler = Filler(20, n_envs, optimize_memory_usage=True, handle_timeout_termination=False)
    filler.ends = False
    return filler


@pytest.mark.parametrize("n_envs", [1, 2])
def test_mirror_of_the_memory_efficient_buffer(n_envs):
    filler, mirror = memory_efficient(n_envs), make_mirror()
    for steps in (1, 3, 4, 6, 0, 7, 9):
        filler.add(steps)
        mirror.sync(filler.buffer)
        filler.check(mirror)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_memory_efficient_buffer_has_one_invalid_row_once_it_is_full(n_envs):
    filler, mirror = memory_efficient(n_envs), make_mirror()
    filler.add(33)
    mirror.sync(filler.buffer)
    filler.check(mirror, missing=n_envs)  # the oldest: its observation has made way for the newest's next one
    filler.add(2)
    mirror.sync(filler.buffer)
    filler.check(mirror)


def test_the_memory_efficient_buffer_forgets_terminal_observations():
    space = spaces.Box(-1, 1, (1,))
    buffer = ReplayBuffer(10, space, space, "cpu", optimize_memory_usage=True, handle_timeout_termination=False)
    in_one_go, step_by_step = ReplayMirror(10, 1, 1), ReplayMirror(10, 1, 1)
    for observation, next_observation, done in [(0, 1, False), (1, 2, True), (5, 6, False), (6, 7, False), (7, 8, True)]:
        action = np.random.default_rng(observation).random((1, 1))
        buffer.add(
            *(np.array([x], dtype=np.float32) for x in (observation, next_observation)), action, action[0], [done], [{}]
        )
        step_by_step.sync(buffer)
    in_one_go.sync(buffer)
    rows = [tuple(row) for row in zip(*(f.flatten().tolist() for f in step_by_step[:]), strict=True)]
    assert [(row[0], row[2], row[4]) for row in rows] == [(0, 1, 0), (1, 2, 1), (5, 6, 0), (6, 7, 0), (7, 8, 1)]
    # 1 -> 5 is no step of the environment; 7 -> 8 is still to be seen
    assert in_one_go[:].observations.flatten().tolist() == [0, 5, 6, 7]
    assert in_one_go[:].next_observations.flatten().tolist() == [1, 6, 7, 8]


@pytest.mark.parametrize("n_envs", [1, 2])
def test_mirrored_rows_are_those_that_sb3_samples(n_envs):
    filler, mirror = Filler(20, n_envs), make_mirror()
    filler.add(27)
    mirror.sync(filler.buffer)
    rows = {tuple(row) for row in th.cat([field.reshape(20, -1) for field in mirror[:]], dim=1).numpy().round(3).tolist()}
    sample = filler.buffer.sample(2000)
    fields = (sample.observations, sample.actions, sample.next_observations, sample.rewards, sample.dones)
    sampled = th.cat([field.reshape(2000, -1).float() for field in fields], dim=1).numpy().round(3).tolist()
    assert {tuple(row) for row in sampled} == rows


def test_holdout_split():
    mirror = ReplayMirror(10_000, 3, 1)
    mirror.extend(numbered(*range(4000)))
    train, holdout = mirror.holdout_split(0.25, 5000)
    assert sorted(train.tolist() + holdout.tolist()) == list(range(4000))
    assert len(holdout) == pytest.approx(1000, abs=5 * (4000 * 0.25 * 0.75) ** 0.5)
    again = mirror.holdout_split(0.25, 5000)
    assert again[0].equal(train)
    assert again[1].equal(holdout)
    # What is held out of a larger set at the most that may be held out was held out before
    smaller = mirror.holdout_split(0.25, 100)[1]
    assert set(smaller.tolist()) < set(holdout.tolist())
    mirror.extend(numbered(*range(4000, 8000)))
    assert set(mirror.holdout_split(0.25, 5000)[1].tolist()) & set(range(4000)) == set(holdout.tolist())


def test_a_loaded_buffer_is_split_as_before(tmp_path):
    path = tmp_path / "buffer"
    filler = Filler(100, 2)
    filler.add(40)
    save_to_pkl(path, filler.buffer)
    splits = []
    for buffer in (filler.buffer, load_from_pkl(path)):
        mirror = make_mirror(100)
        mirror.sync(buffer)
        splits.append(mirror.holdout_split(0.3, 5000))
    assert splits[0][0].equal(splits[1][0])
    assert splits[0][1].equal(splits[1][1])


def test_the_content_decides_like_a_coin():
    """Uniform, and independent between rows that differ in one bit of one number."""
    rows = th.zeros(50_000, 6)
    rows[:, 2] = th.arange(50_000).float()
    numbers = _uniform_from_content(rows).numpy()
    counts, _ = np.histogram(numbers, bins=20, range=(0.0, 1.0))
    np.testing.assert_allclose(counts, 2500, atol=5 * 2500**0.5)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 5 / 50_000**0.5
    bits = rows.numpy().view(np.int32).copy()
    bits[:, 5] ^= 1
    neighbours = _uniform_from_content(th.as_tensor(bits.view(np.float32))).numpy()
    assert abs(np.corrcoef(numbers, neighbours)[0, 1]) < 5 / 50_000**0.5


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("n", [2, 3])
def test_neither_side_of_a_split_is_empty(n, ratio):
    for seed in range(10):
        th.manual_seed(seed)
        mirror = ReplayMirror(10, 3, 1)
        mirror.extend(numbered(*range(n)))
        train, holdout = mirror.holdout_split(ratio, 5000)
        assert len(train) > 0
        assert len(holdout) > 0
        assert len(train) + len(holdout) == n
