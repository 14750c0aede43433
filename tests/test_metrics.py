"""Running means and the stopwatch."""

import math

import numpy as np
import torch as th

from sb3_modelbased.common.metrics import RunningMeans


def test_means_of_what_was_added_since_the_last_clear():
    means = RunningMeans()
    values = np.random.default_rng(0).normal(size=20)
    for value in values:
        means.add(loss=th.tensor(value))
    means.add(entropy=th.tensor([2.0]))
    assert np.isclose(means.means()["loss"], values.mean())
    means.clear()
    assert means.means() == {}
    means.add(loss=th.tensor(3.0))
    assert means.means() == {"loss": 3.0}


def test_sums_stay_where_they_are():
    means = RunningMeans()
    means.add(loss=th.tensor(1.0))
    address = means._sums["loss",].data_ptr()
    means.clear()
    means.add(loss=th.tensor(2.0))
    assert means._sums["loss",].data_ptr() == address


def test_a_mean_is_over_all_that_was_added_under_its_name():
    means = RunningMeans()
    means.add(loss=th.tensor(1.0), entropy=th.tensor(-1.0))
    means.add(loss=th.tensor(3.0), entropy=th.tensor(-2.0))
    means.add(loss=th.tensor([8.0]))
    assert means.means() == {"loss": 4.0, "entropy": -1.5}


def test_a_value_that_is_not_finite_shows_in_the_mean():
    means = RunningMeans()
    for value in (1.0, math.nan, 1.0):
        means.add(loss=th.tensor(value))
    assert math.isnan(means.means()["loss"])
