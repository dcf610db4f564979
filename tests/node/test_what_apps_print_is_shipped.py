"""Prints and log records become lines of the run's log, within limits, and without waiting for the server."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from fedq.relay import logs
from fedq.relay.logs import JsonFormatter, LogShipper, captured


class Server:
    """Takes batches; can be held back, refuse, or fail."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.over = False
        self.failing = False

    def __call__(self, lines: Sequence[Mapping[str, Any]]) -> bool:
        self.gate.wait(10)
        if self.failing:
            raise ConnectionError("away")
        if not self.over:
            self.lines += lines
        return not self.over

    @property
    def texts(self) -> list[str]:
        return [line["text"] for line in self.lines]


def test_prints_and_records_arrive_in_order_with_their_origin() -> None:
    server = Server()
    shipper = LogShipper(server, {"node": "clinic-a"}, clock=lambda: 12.3456)

    with captured(lambda line, level, origin: shipper.add(line, level=level, origin=origin)):
        print("loading", end="")
        print(" data")
        logging.getLogger("my.app").warning("two\nlines")
        print("oops", file=sys.stderr)
        print("no newline", end="")
    shipper.close()

    assert [(line["level"], line["origin"], line["text"]) for line in server.lines] == [
        ("INFO", "stdout", "loading data"),
        ("WARNING", "my.app", "two"),
        ("WARNING", "my.app", "lines"),
        ("INFO", "stderr", "oops"),
        ("INFO", "stdout", "no newline"),
    ]
    assert server.lines[0] == {
        "node": "clinic-a", "time": 12.346, "level": "INFO", "origin": "stdout", "text": "loading data",
    }  # fmt: skip


def test_afterwards_everything_is_as_before() -> None:
    out, err, root = sys.stdout, sys.stderr, logging.getLogger()
    handlers, level = list(root.handlers), root.level

    with captured(lambda *_: None):
        assert sys.stdout is not out

    assert (sys.stdout, sys.stderr, root.handlers, root.level) == (out, err, handlers, level)


def test_debug_records_stay_out_and_info_comes_in() -> None:
    seen: list[str] = []
    with captured(lambda line, level, origin: seen.append(line)):
        logging.getLogger("my.app").debug("too much")
        logging.getLogger("my.app").info("enough")

    assert seen == ["enough"]


def test_the_services_own_records_stay_on_the_node() -> None:
    seen: list[str] = []
    kept: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            kept.append(record.getMessage())

    root = logging.getLogger()
    keep = Keep()
    root.addHandler(keep)
    try:
        with captured(lambda line, level, origin: seen.append(line)):
            logging.getLogger("fedq.node.execution").warning("ours")
    finally:
        root.removeHandler(keep)

    assert seen == []
    assert kept == ["ours"]


def test_a_progress_bar_leaves_its_last_state() -> None:
    seen: list[str] = []
    with captured(lambda line, level, origin: seen.append(line)):
        for percent in range(0, 101, 10):
            print(f"\r{percent} %", end="")
        print()

    assert seen == ["100 %"]


def test_a_very_long_line_is_cut_and_says_so() -> None:
    server = Server()
    shipper = LogShipper(server)
    shipper.add("x" * (logs.MAX_LINE + 7))
    shipper.close()

    assert server.texts == ["x" * logs.MAX_LINE + "… (7 characters left out)"]


def test_output_without_end_does_not_wait_and_what_is_left_out_is_counted() -> None:
    server = Server()
    server.gate.clear()
    shipper = LogShipper(server, interval=0.01)
    count = logs.MAX_WAITING + logs.BATCH + 500
    for i in range(count):
        shipper.add(str(i))
    assert shipper.dropped >= 400

    server.gate.set()
    shipper.close()

    told = [text for text in server.texts if "left out" in text]
    assert sum(int(text.strip("(").split()[0]) for text in told) == shipper.dropped
    assert len(server.texts) - len(told) + shipper.dropped == count


def test_a_server_that_is_away_costs_lines_but_no_error() -> None:
    server = Server()
    server.failing = True
    shipper = LogShipper(server, patience=5.0)
    shipper.add("lost")
    shipper.close()

    assert shipper.dropped == 1


def test_closing_waits_no_longer_than_its_patience() -> None:
    server = Server()
    server.gate.clear()
    shipper = LogShipper(server, patience=0.05)
    shipper.add("held up")

    shipper.close()

    assert server.lines == []
    server.gate.set()


def test_what_was_added_before_a_flush_is_sent_when_it_returns() -> None:
    server = Server()
    shipper = LogShipper(server, interval=60.0)
    shipper.flush()  # nothing was added: there is nothing to wait for
    with captured(lambda line, level, origin: shipper.add(line, level=level, origin=origin)) as finish:
        for number in range(250):
            print(number)
            if number % 50 == 0:
                shipper.flush()
                assert server.texts[-1] == str(number)
        print("no line break", end="")
        finish()
        shipper.flush()
        assert server.texts == [*map(str, range(250)), "no line break"]
    shipper.close()


def test_a_flush_waits_no_longer_than_its_patience() -> None:
    server = Server()
    server.gate.clear()
    shipper = LogShipper(server, patience=0.05)
    shipper.add("held up")
    shipper.flush()
    assert server.lines == []
    server.gate.set()
    shipper.close()
    assert server.texts == ["held up"]


def test_once_the_run_is_over_nothing_more_is_sent() -> None:
    server = Server()
    server.over = True
    shipper = LogShipper(server)
    shipper.add("late")
    shipper.close()
    shipper.add("later")

    assert server.lines == []
    assert shipper.dropped == 1


def test_text_that_is_no_unicode_is_no_error() -> None:
    server = Server()
    shipper = LogShipper(server)
    shipper.add("broken \udcff")
    shipper.close()

    assert server.texts == ["broken ?"]


@pytest.mark.parametrize("with_error", [False, True])
def test_services_log_json_lines(with_error: bool) -> None:
    import json

    error = ValueError("why")
    info = (ValueError, error, None) if with_error else None
    record = logging.LogRecord("fedq.node", logging.WARNING, __file__, 1, "lost %s", ("it",), info)

    line = json.loads(JsonFormatter().format(record))

    assert line["level"] == "WARNING"
    assert line["text"] == "lost it"
    assert ("traceback" in line) == with_error
