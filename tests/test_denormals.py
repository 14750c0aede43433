"""Denormal numbers are zero while training, and what somebody asked for before it holds again after it."""

import pytest
import torch as th
from conftest import make_small

from sb3_modelbased import MAAC
from sb3_modelbased.common.denormals import DENORMAL, flushed_denormals


def flushes() -> bool:
    return (th.full((4,), DENORMAL) * 1.0 == 0).all().item()


@pytest.fixture(autouse=True)
def _restore():
    if not th.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    yield
    th.set_flush_denormal(False)


@pytest.mark.parametrize("before", [False, True])
def test_only_inside_the_block(before):
    th.set_flush_denormal(before)
    with flushed_denormals():
        assert flushes()
    assert flushes() == before


def test_an_error_ends_it_too():
    with pytest.raises(RuntimeError), flushed_denormals():
        raise RuntimeError
    assert not flushes()


def test_in_training_only(monkeypatch):
    agent, seen = make_small(MAAC), []
    update = agent._update
    monkeypatch.setattr(agent, "_update", lambda batch_size: seen.append(flushes()) or update(batch_size))
    agent.learn(30)
    assert seen
    assert all(seen)
    assert not flushes()
