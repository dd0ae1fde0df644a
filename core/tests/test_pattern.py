import random
import re
import time

import pytest
from certctl_core.pattern import Budget, Pattern, PatternTooSlow

AGREED = [
    r"^[a-z0-9-]+(\.[a-z0-9-]+)*\.example\.com$",
    r"^a$|^b$|",
    r"\Aab\z",
    r"(?i)A{2,4}B?",
    r"a{3}",
    r"x{2,}",
    r"(a|ab)(c|bcd)*",
    r"\*\.e\.c",
    r".*\.x",
    r"(?:a*)*b",
    r"((a*)*)*",
    r"(?P<host>[^a]b+?)",
    r"a{0,2}c|[\w.-]+d",
    r"\x61\d?[]a]",
]


@pytest.mark.parametrize("text", AGREED)
def test_a_pattern_fits_what_python_says_it_fits(text):
    ours, theirs, chosen = Pattern(text), re.compile(text.replace(r"\z", r"\Z")), random.Random(text)
    texts = ["".join(chosen.choice("abcdx.*-ABe1]") for _ in range(chosen.randrange(8))) for _ in range(2000)]
    texts += ["a.example.com", "a.b-c.example.com", "a.example.com.evil", "aexample.com", "*.e.c", "", "a\n"]
    assert [t for t in texts if ours.fits(t) != bool(theirs.fullmatch(t))] == []


@pytest.mark.parametrize("text", [r"(a+)+b", r"(a|a)*b", r"(.*a){20}b", r"([a-z]{0,17}){0,17}!"])
def test_no_pattern_and_no_text_take_long(text):
    pattern, start = Pattern(text), time.process_time()
    assert not pattern.fits("a" * 2048)
    assert time.process_time() - start < 2


def test_a_text_longer_than_any_name_fits_nothing():
    assert not Pattern(".*").fits("a" * 2049)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        pytest.param("(a", r"character 3 .*a \( without", id="open"),
        pytest.param("a)", r"character 2 .*a \) without", id="closed"),
        pytest.param("[a", "unfinished or unknown escape or set", id="set"),
        pytest.param("[z-a]", "bad character range", id="range"),
        pytest.param("[[:alpha:]]", "a set within a set", id="posix"),
        pytest.param(r"\q", "unfinished or unknown escape", id="escape"),
        pytest.param(r"(a)\1", "unfinished or unknown escape", id="back-reference"),
        pytest.param("(?=a)b", "cannot be used here", id="look ahead"),
        pytest.param("(?<!a)b", "cannot be used here", id="look behind"),
        pytest.param("(?>a)b", "cannot be used here", id="atomic"),
        pytest.param("a++", "repetition of a repetition", id="possessive"),
        pytest.param("*a", "cannot be used here", id="nothing to repeat"),
        pytest.param("a{3,1}", "limits are reversed", id="reversed"),
        pytest.param("(a{100}){100}", "too large once its repetitions", id="large"),
        pytest.param("a{999999999}", "too large once its repetitions", id="absurd"),
        pytest.param("(" * 30 + ")" * 30, "nested too deep", id="deep"),
        pytest.param("a" * 1001, "at most 1000 characters", id="long"),
        pytest.param("a$b", "follows the end", id="after the end"),
        pytest.param("b^a", "cannot be used here", id="before the start"),
        pytest.param(r"a\b", "cannot be used here", id="word border"),
    ],
)
def test_what_cannot_be_run_in_bounded_time_or_read_is_refused_with_its_place(text, told):
    with pytest.raises(ValueError, match=told):
        Pattern(text)


@pytest.mark.parametrize("text", ["(.?){330}.*", "((a?){30}){11}"])
def test_a_pattern_that_reads_too_much_once_written_out_is_refused(text):
    with pytest.raises(ValueError, match="too large once its repetitions"):
        Pattern(text)


def test_two_host_labels_of_any_length_are_not_too_much():
    found = Pattern(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.[a-z0-9-]{1,63}\.example")
    assert found.fits("a" * 63 + ".web.example")


def test_a_budget_bounds_what_matching_costs():
    budget = Budget(1000)
    assert Pattern("a{3}").fits("aaa", budget)
    assert 980 < budget.steps < 1000
    with pytest.raises(PatternTooSlow):
        Pattern("(.?){290}.*").fits("a" * 100, budget)
