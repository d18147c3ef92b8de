"""How a record becomes a line."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cas import log

exactly = settings(derandomize=True, max_examples=200, deadline=None)


@pytest.fixture(autouse=True)
def leave_logging_alone() -> Iterator[None]:
    """`configure` is for a whole process; this one is pytest's."""
    root, ours = logging.getLogger(), logging.getLogger("cas")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)
    logging.captureWarnings(False)


def record(message: str, **facts: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "cas.test", "levelno": 20, "levelname": "INFO", "msg": message, "process": 7}
    )
    made.created, made.msecs = 1_700_000_000.25, 250.0
    vars(made).update(facts)
    return made


def test_a_json_line_holds_the_facts_as_they_are() -> None:
    line = log.JsonFormatter({"worker": 1}).format(record("stored", blob="ab/3", size=3))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "info",
        "event": "stored",
        "logger": "cas.test",
        "pid": 7,
        "worker": 1,
        "blob": "ab/3",
        "size": 3,
    }


def test_a_text_line_reads_as_a_sentence_and_its_facts() -> None:
    line = log.TextFormatter({"worker": 1}).format(record("blob stored", blob="ab/3", why="a b"))
    assert line == '2023-11-14T22:13:20.250Z INFO    blob stored worker=1 blob=ab/3 why="a b"'


def test_a_fact_cannot_take_the_place_of_the_lines_own() -> None:
    line = json.loads(log.JsonFormatter({}).format(record("stored", level="none", time=0)))
    assert (line["level"], line["level_"]) == ("info", "none")
    assert line["time_"] == 0


@exactly
@given(st.text(), st.text())
def test_whatever_is_logged_is_one_line(message: str, fact: str) -> None:
    made = record(message.replace("%", "%%"), fact=fact)
    as_json = log.JsonFormatter({}).format(made)
    as_text = log.TextFormatter({}).format(made)
    assert len(as_json.splitlines()) == 1
    assert len(as_text.splitlines()) == 1
    assert json.loads(as_json)["fact"] == fact
    as_text.encode()  # no lone surrogates: stderr must take it


def test_an_error_brings_its_traceback_on_the_same_line() -> None:
    stream = io.StringIO()
    log.configure("auto", "info", stream=stream)
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("cas.test").exception("lost")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'gone'" in json.loads(line)["traceback"]

    stream = io.StringIO()
    log.configure("text", "info", stream=stream)
    try:
        raise KeyError("gone")
    except KeyError:
        logging.getLogger("cas.test").exception("lost")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'gone'" in line


def test_auto_is_text_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    log.configure("auto", "info", stream=stream)
    logging.getLogger("cas.test").info("hello", extra={"to": "you"})
    assert stream.getvalue().endswith("hello to=you\n")


def test_the_level_decides_what_is_said() -> None:
    stream = io.StringIO()
    log.configure("text", "warning", stream=stream)
    logging.getLogger("cas.test").info("quiet")
    logging.getLogger("cas.test").warning("loud")
    assert "quiet" not in stream.getvalue()
    assert "loud" in stream.getvalue()


def test_debug_is_for_our_own_loggers() -> None:
    stream = io.StringIO()
    log.configure("text", "debug", stream=stream)
    logging.getLogger("cas.test").debug("ours")
    logging.getLogger("library").debug("theirs")
    logging.getLogger("library").info("news")
    assert "ours" in stream.getvalue()
    assert "theirs" not in stream.getvalue()
    assert "news" in stream.getvalue()
