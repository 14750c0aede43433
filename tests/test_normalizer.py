"""The normaliser against numpy."""

import numpy as np
import pytest
import torch as th

from sb3_modelbased.common.normalizer import Normalizer


def test_statistics_against_numpy():
    data = np.random.default_rng(0).normal([1.0, -20.0, 0.0], [0.1, 5.0, 30.0], size=(1000, 3))
    normalizer = Normalizer(3)
    normalizer.fit(th.as_tensor(data, dtype=th.float32))
    np.testing.assert_allclose(normalizer.mean, data.mean(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(normalizer.std, data.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(
        normalizer.normalize(th.as_tensor(data[:5], dtype=th.float32)),
        (data[:5] - data.mean(axis=0)) / data.std(axis=0),
        atol=1e-4,
    )


def test_denormalize_by_hand_and_back():
    normalizer = Normalizer(2)
    normalizer.fit(th.tensor([[0.0, 10.0], [2.0, 30.0]]))  # means 1 and 20, deviations 1 and 10
    assert normalizer.normalize(th.tensor([3.0, 15.0])).tolist() == [2.0, -0.5]
    assert normalizer.denormalize(th.tensor([2.0, -0.5])).tolist() == [3.0, 15.0]
    # Any leading dimensions
    values = th.randn(4, 5, 2)
    assert th.allclose(normalizer.denormalize(normalizer.normalize(values)), values, atol=1e-5)


def test_before_a_fit_it_changes_nothing():
    values = th.randn(3, 2)
    assert Normalizer(2).normalize(values).equal(values)


def test_a_dimension_that_never_varies_keeps_a_scale_of_one():
    data = th.stack([th.zeros(1000), th.full((1000,), 1e4), th.linspace(0, 1, 1000)], dim=1)
    data[::2, 1] += 1e-3  # float32 noise on a large constant
    normalizer = Normalizer(3)
    normalizer.fit(data)
    assert normalizer.std[:2].tolist() == [1.0, 1.0]
    assert normalizer.std[2].item() == pytest.approx(np.linspace(0, 1, 1000).std(), rel=1e-4)


def test_one_row_leaves_a_scale_of_one():
    normalizer = Normalizer(2)
    normalizer.fit(th.tensor([[3.0, -4.0]]))
    assert normalizer.mean.tolist() == [3.0, -4.0]
    assert normalizer.std.tolist() == [1.0, 1.0]


def test_statistics_are_saved():
    normalizer, other = Normalizer(2), Normalizer(2)
    normalizer.fit(th.randn(10, 2))
    other.load_state_dict(normalizer.state_dict())
    assert other.mean.equal(normalizer.mean)
    assert other.std.equal(normalizer.std)
