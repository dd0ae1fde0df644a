from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from certctl_core.windows import NEAR_EXPIRY, Start, Window, start_at, stretch
from hypothesis import given, settings
from hypothesis import strategies as st

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
BERLIN = "Europe/Berlin"  # 2026-03-29 02:00 becomes 03:00, 2026-10-25 03:00 becomes 02:00
#: Zones whose clocks change by an hour, by half of one, at midnight, and by a whole day, each with such a day.
CHANGES = [
    (BERLIN, date(2026, 3, 29)),
    (BERLIN, date(2026, 10, 25)),
    ("America/New_York", date(2026, 11, 1)),
    ("Australia/Lord_Howe", date(2026, 4, 5)),
    ("Australia/Lord_Howe", date(2026, 10, 4)),
    ("America/Sao_Paulo", date(2018, 11, 4)),
    ("Africa/Cairo", date(2026, 10, 29)),
    ("Pacific/Apia", date(2011, 12, 30)),
    ("Asia/Kolkata", date(2026, 6, 1)),
]
EVERY_DAY = frozenset(range(7))


def window(days, start, end, zone="UTC"):
    return Window(frozenset(days), time.fromisoformat(start), time.fromisoformat(end), ZoneInfo(zone))


def at(text, zone="UTC", fold=0):
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).astimezone(UTC)


def first_showing(wall, zone):
    """Look minute by minute when the clock on the wall first shows a time or a later one."""
    moment = datetime.combine(wall.date(), time(), UTC) - 2 * DAY
    while moment.astimezone(zone).replace(tzinfo=None) < wall:
        moment += MINUTE
    return moment


def slowly(window, around):
    """Every stretch of a window near a day."""
    for ahead in range(-2, 10):
        day = around + ahead * DAY
        if day.weekday() in window.days:
            last = day if window.end > window.start else day + DAY
            begin = first_showing(datetime.combine(day, window.start), window.zone)
            end = first_showing(datetime.combine(last, window.end), window.zone)
            if begin < end:
                yield begin, end


TIMES = st.builds(time, st.integers(0, 23), st.sampled_from([0, 15, 30, 59]))


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(CHANGES), st.sets(st.integers(0, 6), min_size=1), TIMES, TIMES, st.integers(-36 * 60, 36 * 60))
def test_a_window_is_what_somebody_sees_who_looks_at_the_wall_every_minute(change, days, start, end, minutes):
    zone, day = ZoneInfo(change[0]), change[1]
    one = Window(frozenset(days), start, end, zone)
    moment = datetime.combine(day, time(), UTC) + minutes * MINUTE
    seen = list(slowly(one, day))
    is_open = [each for each in seen if each[0] <= moment < each[1]]
    expected = max(is_open, key=lambda each: each[1]) if is_open else min(each for each in seen if each[0] > moment)
    assert stretch([one], moment) == expected


@given(st.lists(st.tuples(st.sets(st.integers(0, 6), min_size=1), TIMES, TIMES, st.sampled_from(CHANGES)), min_size=1))
def test_what_one_of_several_windows_allows_is_allowed(given_):
    every = [Window(frozenset(days), start, end, ZoneInfo(zone)) for days, start, end, (zone, _) in given_]
    moment = datetime(2026, 10, 24, 22, 30, tzinfo=UTC)
    begin, end = stretch(every, moment)
    assert moment < end
    assert begin < end
    assert (begin, end) in [stretch([each], moment) for each in every]
    assert (begin <= moment) == any(stretch([each], moment)[0] <= moment for each in every)


@pytest.mark.parametrize(
    ("given_", "moment", "begin", "end"),
    [
        pytest.param(("22:00", "04:00"), "2026-01-09T23:00", "2026-01-09T22:00", "2026-01-10T04:00", id="evening"),
        pytest.param(
            ("22:00", "04:00"), "2026-01-10T03:59", "2026-01-09T22:00", "2026-01-10T04:00", id="past midnight"
        ),
        pytest.param(("22:00", "04:00"), "2026-01-10T04:00", "2026-01-16T22:00", "2026-01-17T04:00", id="just over"),
        pytest.param(("00:00", "00:00"), "2026-01-09T12:00", "2026-01-09T00:00", "2026-01-10T00:00", id="whole day"),
        pytest.param(("12:00", "13:00"), "2026-01-03T12:00", "2026-01-09T12:00", "2026-01-09T13:00", id="days away"),
    ],
)
def test_a_window_on_fridays(given_, moment, begin, end):
    assert stretch([window({4}, *given_)], at(moment)) == (at(begin), at(end))


@pytest.mark.parametrize(
    ("given_", "day", "hours"),
    [
        pytest.param(("22:00", "04:00"), "2026-03-28", 5, id="the night that loses an hour"),
        pytest.param(("22:00", "04:00"), "2026-10-24", 7, id="the night that has one twice"),
        pytest.param(("02:30", "04:00"), "2026-03-29", 1, id="begins in the skip"),
        pytest.param(("01:00", "02:30"), "2026-03-29", 1, id="ends in the skip"),
        pytest.param(("01:00", "02:30"), "2026-10-25", 1.5, id="ends at a time that comes twice"),
        pytest.param(("02:30", "04:00"), "2026-10-25", 2.5, id="begins at a time that comes twice"),
    ],
)
def test_nights_on_which_the_clock_changes(given_, day, hours):
    one = window(EVERY_DAY, *given_, BERLIN)
    begin, end = stretch([one], at(f"{day}T{given_[0]}", BERLIN) - MINUTE * 90)
    assert (end - begin, begin.astimezone(ZoneInfo(BERLIN)).date()) == (hours * HOUR, date.fromisoformat(day))


def test_what_the_clock_skips_whole_is_no_window_that_day():
    one = window({6}, "02:15", "02:45", BERLIN)
    assert stretch([one], at("2026-03-29T00:00"))[0] == at("2026-04-05T02:15", BERLIN)


FRIDAYS = [window({4}, "22:00", "04:00")]
MONDAY = at("2026-01-05T12:00")


@pytest.mark.parametrize(
    ("windows", "left", "start"),
    [
        ((), timedelta(), Start()),
        (FRIDAYS, None, Start(at("2026-01-09T22:00"), at("2026-01-10T04:00"))),
        (FRIDAYS, 90 * DAY, Start(at("2026-01-09T22:00"), at("2026-01-10T04:00"))),
        (FRIDAYS, 3 * DAY, Start(MONDAY + DAY, MONDAY + DAY)),
        (FRIDAYS, NEAR_EXPIRY, Start(overrides=True)),
        (FRIDAYS, -DAY, Start(overrides=True)),
    ],
    ids=["no windows", "no expiry", "far", "near before the window", "near", "expired"],
)
def test_what_is_about_to_expire_does_not_wait(windows, left, start):
    expires_at = None if left is None else MONDAY + left
    assert start_at(windows, MONDAY, expires_at=expires_at) == start


def test_asked_again_at_the_moment_it_was_told_it_overrides():
    expires_at = MONDAY + 3 * DAY
    moment = start_at(FRIDAYS, MONDAY, expires_at=expires_at).closes_at
    assert start_at(FRIDAYS, moment, expires_at=expires_at) == Start(overrides=True)
