from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.renewal import alert_at, expiring_at, pick_ari, renew_due_at, spread_of

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


IDS = [f"mc-0199{number:012x}" for number in range(10_000)]  # one behind the other, as ours are


def test_ten_thousand_certificates_of_one_minute_are_due_in_three_days_without_a_hot_hour():
    issued = {name: START + MINUTE * number / len(IDS) for number, name in enumerate(IDS)}
    hours = Counter(
        (renew_due_at(at, at + 90 * DAY, window_days=30, spread=spread_of(name)) - START) // HOUR
        for name, at in issued.items()
    )
    mean = len(IDS) / 72
    assert min(hours) == 57 * 24
    assert max(hours) <= 60 * 24
    assert len(hours) >= 72
    assert max(hours.values()) < 1.5 * mean


@pytest.mark.parametrize("life", [398 * DAY, 90 * DAY, 9 * DAY, DAY, 2 * HOUR, 10 * MINUTE], ids=str)
@pytest.mark.parametrize("window_days", [1, 30, 365])
def test_a_spread_renewal_is_never_later_and_at_most_a_tenth_of_what_is_left_earlier(life, window_days):
    rule = renew_due_at(START, START + life, window_days=window_days)
    left = START + life - rule
    for name in IDS[:100]:
        due = renew_due_at(START, START + life, window_days=window_days, spread=spread_of(name))
        assert rule - left / 10 <= due <= rule
        assert due == renew_due_at(START, START + life, window_days=window_days, spread=spread_of(name))


def test_lives_of_minutes_are_not_spread():
    due = renew_due_at(START, START + 10 * MINUTE, window_days=30, spread=0.999)
    assert due == START + 5 * MINUTE
