from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.renewal import alert_at, expiring_at, pick_ari, renew_due_at

START = datetime(2026, 1, 1, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("life", "window_days", "left"),
    [
        pytest.param(398 * DAY, 30, 30 * DAY, id="the window"),
        pytest.param(90 * DAY, 30, 30 * DAY, id="the window is a third"),
        pytest.param(90 * DAY, 60, 30 * DAY, id="a third at most"),
        pytest.param(47 * DAY, 30, 47 * DAY / 3, id="a short certificate"),
        pytest.param(90 * DAY, 10, 10 * DAY, id="a small window"),
        pytest.param(10 * DAY, 30, 10 * DAY / 3, id="ten days"),
        pytest.param(10 * DAY - SECOND, 30, (10 * DAY - SECOND) / 2, id="under ten days"),
        pytest.param(160 * HOUR, 30, 80 * HOUR, id="a week"),
        pytest.param(10 * MINUTE, 30, 5 * MINUTE, id="minutes"),
        pytest.param(9 * DAY, 1, DAY, id="a small window of a short life"),
    ],
)
def test_a_share_of_the_life_is_left_for_the_renewal(life, window_days, left):
    assert renew_due_at(START, START + life, window_days=window_days) == START + life - left


@pytest.mark.parametrize(
    ("ari", "due"),
    [
        pytest.param(START + 5 * DAY, START + 5 * DAY, id="earlier"),
        pytest.param(START + 80 * DAY, START + 80 * DAY, id="later"),
        pytest.param(START - DAY, START - DAY, id="long past"),
        pytest.param(START + 90 * DAY, START + 60 * DAY, id="too late to be of use"),
    ],
)
def test_the_moment_picked_from_the_cas_window_goes_first(ari, due):
    assert renew_due_at(START, START + 90 * DAY, window_days=30, ari=ari) == due


@pytest.mark.parametrize(
    ("life", "left"),
    [(398 * DAY, 30 * DAY), (90 * DAY, 30 * DAY), (6 * DAY, 2 * DAY), (9 * MINUTE, 3 * MINUTE)],
    ids=["year", "quarter", "days", "minutes"],
)
def test_expiring_is_a_third_of_the_life_and_30_days_at_most(life, left):
    assert expiring_at(START, START + life) == START + life - left


@pytest.mark.parametrize(
    ("life", "threshold", "left"),
    [
        pytest.param(90 * DAY, 30, 30 * DAY, id="as it says"),
        pytest.param(398 * DAY, 30, 30 * DAY, id="no earlier for a long life"),
        pytest.param(45 * DAY, 30, 15 * DAY, id="in proportion"),
        pytest.param(9 * DAY, 7, 9 * DAY * 7 / 90, id="days"),
        pytest.param(90 * MINUTE, 14, 14 * MINUTE, id="minutes"),
        pytest.param(90 * DAY, 0, 0 * DAY, id="the end itself"),
    ],
)
def test_an_alert_comes_its_days_before_the_end_or_in_proportion(life, threshold, left):
    assert alert_at(START, START + life, threshold) == START + life - left


@pytest.mark.parametrize(
    ("now", "fraction", "picked"),
    [
        pytest.param(START, 0.0, START + DAY, id="start"),
        pytest.param(START, 0.5, START + 2 * DAY, id="middle"),
        pytest.param(START, 1.0, START + 3 * DAY, id="end"),
        pytest.param(START + 2 * DAY, 0.25, START + 1.5 * DAY, id="inside and past, so due"),
        pytest.param(START + 3 * DAY, 0.0, START + 3 * DAY, id="window past"),
        pytest.param(START + 9 * DAY, 0.7, START + 9 * DAY, id="window long past"),
    ],
)
def test_a_moment_is_picked_inside_the_window_or_is_now_when_it_is_past(now, fraction, picked):
    assert pick_ari(START + DAY, START + 3 * DAY, now, fraction) == picked


@pytest.mark.parametrize("end", [START, START - SECOND], ids=["empty", "reversed"])
def test_a_window_that_does_not_end_after_it_starts_is_no_window(end):
    with pytest.raises(ValueError, match="does not end after it starts"):
        pick_ari(START, end, START, 0.5)
