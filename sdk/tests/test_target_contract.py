"""The contract, kept by a target that does things right, and noticed when it is broken."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

BAD = Path(__file__).with_name("known_bad_targets.py")
PROOF, AFTER = "the_proof_is_asked_for_once_when_all_else_is_done", "a_proof_that_fails_leaves_what_was_served"
KILLED, SHOWN = "wherever_it_is_killed_what_was_proven_is_served_again", "at_no_moment_can_others_read_the_key"
MISFIT, TOLD = "a_key_that_does_not_fit_is_refused", "the_key_is_told_to_nobody"
FAILED, CANCELLED = "a_failure_leaves_what_was_served", "a_cancelled_deployment_leaves_what_was_served"
ROLLED_BACK = "rollback_serves_what_was_served_before_and_twice_is_a_success"
FORBIDDEN, TRIED = "a_directory_that_is_not_allowed_is_refused", "a_dry_run_changes_nothing"
CAUGHT_BY = {
    "Good": set(),
    "GivesUp": {FAILED, CANCELLED, AFTER, MISFIT, KILLED},
    "OneAfterTheOther": {MISFIT, KILLED},
    "NeverProves": {PROOF, AFTER, KILLED},
    "ProvesTooEarly": {PROOF},
    "ProvesTooLate": {AFTER, KILLED},
    "ShowsTheKey": {SHOWN},
    "ShowsTheKeyForAMoment": {SHOWN},
    "OpensTheKeyTooEarly": {SHOWN},
    "WritesAnywhere": {FORBIDDEN},
    "CannotBeStopped": {CANCELLED},
    "TellsTheKey": {TOLD},
    "LogsTheKey": {TOLD},
    "RollsBackOnce": {ROLLED_BACK},
    "RollsBackSilently": {ROLLED_BACK},
    "TriesInEarnest": {TRIED},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Every test that ran, as (target, test without parameters, whether it failed)."""
    root = tmp_path_factory.mktemp("known-bad")
    options = ["--import-mode=importlib", "-o", "asyncio_mode=auto", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", str(BAD), *options, f"--junitxml={root / 'report.xml'}"]
    ran = subprocess.run(
        [*command, f"--basetemp={root / 'temp'}"], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    found = ET.parse(root / "report.xml").iter("testcase")
    return [
        (
            case.get("classname").rpartition(".Test")[2],
            case.get("name").partition("[")[0],
            bool({"failure", "error"} & {child.tag for child in case}),
        )
        for case in found
    ]


@pytest.mark.parametrize("target", CAUGHT_BY)
def test_each_way_of_breaking_the_contract_is_caught_by_the_tests_that_name_it(cases, target):
    assert {name.removeprefix("test_") for cls, name, _ in cases if cls == target} >= CAUGHT_BY[target]
    caught = {name.removeprefix("test_") for cls, name, failed in cases if cls == target and failed}
    assert caught == CAUGHT_BY[target]
