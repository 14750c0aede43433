"""Arithmetic on a CPU without denormal numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

DENORMAL = 1e-40  # float32 is normal from 1.2e-38 on


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """
    Take numbers too small for float32's normal range for zero, in this thread and as long as the block runs.

    Adam's averages decay into that range where gradients stay zero, as behind ReLUs that are off, and a CPU takes many times
    as long for each of them. Does nothing where the processor cannot.
    """
    # Somebody may have asked for it before; torch has no way to ask it
    before = (th.full((1,), DENORMAL, device="cpu") * 1.0).item() == 0.0
    th.set_flush_denormal(True)
    try:
        yield
    finally:
        th.set_flush_denormal(before)
