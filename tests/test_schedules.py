"""The rollout length over env steps."""

import pytest

from sb3_modelbased.common.schedules import RolloutLengthSchedule


def test_a_number_is_constant():
    schedule = RolloutLengthSchedule(3)
    assert [schedule(t) for t in (0, 1, 10**6)] == [3, 3, 3]


def test_linear_by_hand():
    schedule = RolloutLengthSchedule([1, 5, 100, 500])
    # One model step more per 100 env steps, rounded down; constant outside
    expected = {0: 1, 99: 1, 100: 1, 199: 1, 200: 2, 299: 2, 300: 3, 499: 4, 500: 5, 501: 5, 10**6: 5}
    assert {t: schedule(t) for t in expected} == expected


def test_it_may_shrink():
    schedule = RolloutLengthSchedule((4, 2, 0, 10))
    assert [schedule(t) for t in (0, 4, 6, 10)] == [4, 3, 2, 2]


@pytest.mark.parametrize(
    "specification", [0, -1, [1, 2], [1, 2, 3, 4, 5], [0, 5, 0, 10], [1, 5, 10, 10], [1, 5, -1, 10], [1.5, 5, 0, 10]]
)
def test_what_is_refused(specification):
    with pytest.raises(ValueError, match=r"`rollout_length` must be .* but it is .*Pass for example") as error:
        RolloutLengthSchedule(specification)
    assert repr(specification) in str(error.value)


@pytest.mark.parametrize("specification", [1.5, "3", None])
def test_a_wrong_type_gets_the_same_error(specification):
    with pytest.raises(ValueError, match="`rollout_length` must be"):
        RolloutLengthSchedule(specification)
