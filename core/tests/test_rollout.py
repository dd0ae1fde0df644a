from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from certctl_core.rollout import Plan, Progress, Standing, Step, next_step, override_at

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOAK = timedelta(minutes=5)
PLAN = Plan((10, 50, 100), SOAK, 0)
LETTERS = {"h": Progress.HELD, "s": Progress.SENT, "v": Progress.SERVED, "f": Progress.FAILED}


def standing(letters, wave=0, **more):
    more.setdefault("mapped", len(letters))
    return Standing(wave=wave, targets=[LETTERS[letter] for letter in letters], **more)


@pytest.mark.parametrize(
    ("percent", "mapped", "allowed"), [(1, 1, 1), (1, 1000, 10), (10, 11, 2), (50, 3, 2), (100, 7, 7), (33, 100, 33)]
)
def test_a_share_is_rounded_up_so_that_no_wave_is_empty(percent, mapped, allowed):
    assert Plan((percent,), SOAK, 0).allowed(0, mapped) == allowed


@pytest.mark.parametrize(
    ("now", "step"),
    [
        pytest.param(standing("hhhhhhhhhh"), Step(0, send=1), id="the first share"),
        pytest.param(standing("shhhhhhhhh"), Step(0), id="waits until it is served"),
        pytest.param(standing("vhhhhhhhhh"), Step(0, passed_at=NOW, look_at=NOW + SOAK), id="soaks"),
        pytest.param(standing("vhhhhhhhhh", passed_at=NOW - SOAK), Step(1, send=4), id="the next wave"),
        pytest.param(standing("vvvvvhhhhh", 1, passed_at=NOW - SOAK), Step(2, send=5), id="the last wave"),
        pytest.param(standing("vvvvvvvvvv", 2), Step(2, over=True), id="all of it is served"),
        pytest.param(standing("fhhhhhhhhh"), Step(0, halt=True), id="one failure is too many"),
        pytest.param(standing("vvvsfhhhhh", 1), Step(1, halt=True), id="a failure halts while others are under way"),
        pytest.param(standing("h" * 3, mapped=10, ready=7), Step(2, send=3), id="what is ready has passed the waves"),
        pytest.param(standing("h", mapped=10, expected=True), Step(0, send=1), id="the first of many orders"),
        pytest.param(standing("vh", mapped=10, expected=True), Step(0, passed_at=NOW, look_at=NOW + SOAK), id="soak"),
        pytest.param(
            standing("v", mapped=10, expected=True),
            Step(0, passed_at=NOW, look_at=NOW + SOAK),
            id="others are expected",
        ),
        pytest.param(standing("v", mapped=10, expected=True, passed_at=NOW - SOAK), Step(1), id="waits for them"),
        pytest.param(standing("v", mapped=10), Step(0, over=True), id="nobody is expected"),
        pytest.param(standing("svhh", 1, mapped=10, expected=True), Step(1, send=2), id="who comes late fits in"),
        pytest.param(standing(""), Step(2, over=True), id="nobody is left"),
        pytest.param(standing("vhhh", override_at=NOW), Step(2, send=3, override=True), id="what is there expires"),
        pytest.param(standing("fhhh", override_at=NOW), Step(0, halt=True), id="expiry does not spread what fails"),
    ],
)
def test_the_next_step_follows_from_where_the_targets_are(now, step):
    assert next_step(PLAN, now, NOW) == step


@pytest.mark.parametrize(("failed", "halts"), [(1, False), (2, False), (3, True)])
def test_tolerated_failures_hold_up_nobody(failed, halts):
    now = standing("f" * failed + "v" * (5 - failed) + "hhhhh", 1, passed_at=NOW - SOAK)
    step = next_step(replace(PLAN, max_failures=2), now, NOW)
    assert step == (Step(1, halt=True) if halts else Step(2, send=5))


@pytest.mark.parametrize("mapped", [1, 2, 3, 10, 250])
@pytest.mark.parametrize("waves", [(100,), (1, 100), (1, 10, 100), (25, 50, 75, 100)])
def test_a_rollout_ends_and_never_outruns_its_share(mapped, waves):
    plan = Plan(waves, SOAK, 0)
    targets, at, now = [Progress.HELD] * mapped, Step(0), NOW
    for _ in range(4 * len(waves) + 4):
        where = Standing(wave=at.wave, targets=targets, mapped=mapped, passed_at=at.passed_at)
        at = next_step(plan, where, now)
        if at.over:
            break
        sent = mapped - targets.count(Progress.HELD)
        assert sent + at.send <= plan.allowed(at.wave, mapped)
        targets = [Progress.SERVED] * (sent + at.send) + [Progress.HELD] * (mapped - sent - at.send)
        now = at.look_at or now
    assert at.over
    assert targets == [Progress.SERVED] * mapped


def test_a_certificate_of_minutes_waits_as_well_but_not_until_its_end():
    assert override_at(NOW, NOW + timedelta(days=90)) == NOW + timedelta(days=88)
    assert override_at(NOW, NOW + timedelta(minutes=60)) == NOW + timedelta(minutes=50)
