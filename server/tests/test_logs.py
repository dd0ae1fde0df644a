import json
import logging

import pytest
from certctl_server import logs
from certctl_server.settings import Log

HOSTILE = 'a\r\n{"event": "forged"}\x1b[2J\u202eb\0'


@pytest.fixture
def told(capsys):
    """Configure logging as a server does; afterwards it is as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def lines(form, tell):
        logs.configure(Log(format=form))
        tell(logging.getLogger("certctl_server.test"))
        return capsys.readouterr().err.splitlines()

    yield lines
    for handler in root.handlers[:]:
        root.removeHandler(handler)
    for handler in before[0]:
        root.addHandler(handler)
    root.setLevel(before[1])


def fails(log):
    secret = "canary"  # a variable of a frame of the traceback
    try:
        {}[HOSTILE + secret[:0]]
    except KeyError as exc:
        log.error("internal error", exc_info=exc)


@pytest.mark.parametrize("form", ["json", "text"])
def test_every_line_that_is_told_during_a_request_names_it(told, form):
    def tell(log):
        log.info("before")
        with logs.during("id-1"):
            log.info("plain")
            log.info("own", extra={"request": "id-2"})
        log.info("after")

    lines = told(form, tell)
    assert [[id for id in ("id-1", "id-2") if id in line] for line in lines] == [[], ["id-1"], ["id-2"], []]


@pytest.mark.parametrize("form", ["json", "text"])
def test_what_strangers_wrote_neither_begins_a_line_nor_commands_a_terminal(told, form):
    def tell(log):
        log.info("%s", HOSTILE, extra={"path": HOSTILE, "list": [HOSTILE]})
        fails(log)

    lines = told(form, tell)
    assert "".join(lines).replace("\t", "").isprintable()
    if form == "json":
        assert [json.loads(line)["level"] for line in lines] == ["info", "error"]
    else:
        assert [line for line in lines if not line.startswith(("[", "    "))] == []


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_traceback_shows_no_variables(told, form):
    text = "\n".join(told(form, fails))
    assert "KeyError" in text
    assert 'secret = "canary"' not in text.replace("\\", "")
    assert "'canary'" not in text
