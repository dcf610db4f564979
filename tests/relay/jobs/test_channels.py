"""Between a worker and its processes: whole values or nothing."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from fedq.relay.jobs.frames import Channel, Wakeup, pair
from fedq.relay.jobs.processes import poll
from fedq.relay.jobs.ticker import Ticker
from tests.support import wait_until


def test_values_arrive_whole_and_in_order() -> None:
    left, right = pair()
    values = [{"n": 1}, "ä" * 100_000, None, [1.5, True], b"\0\xff"]
    sender = threading.Thread(target=lambda: [left.send(value) for value in values])
    sender.start()
    received: list[object] = []
    while len(received) < len(values):
        poll([right.fileno()], 5)
        received += right.receive()
    sender.join()
    assert received == values
    left.close()
    right.close()


def test_half_a_value_waits_for_its_other_half() -> None:
    raw, end = socket.socketpair()
    channel = Channel(end)
    data = struct.pack("!I", 3) + b"\x92\x01\x02"
    for byte in data[:-1]:
        raw.sendall(bytes([byte]))
        assert channel.receive() == []
    raw.sendall(data[-1:])
    assert channel.receive() == [[1, 2]]
    raw.close()
    assert channel.receive() == []
    assert channel.closed
    channel.close()


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", struct.pack("!I", 3) + b"\xc1\xc1\xc1"])
def test_what_was_not_written_by_us_closes_the_channel(garbage: bytes) -> None:
    raw, end = socket.socketpair()
    channel = Channel(end)
    raw.sendall(garbage)
    assert channel.receive() == []
    assert channel.closed
    channel.close()
    raw.close()


def test_sending_to_a_closed_end_says_so() -> None:
    left, right = pair()
    right.close()
    assert left.send(1) is False
    assert left.receive_one() is None
    left.close()


def test_a_wakeup_ends_a_wait_however_often_it_is_woken() -> None:
    wakeup = Wakeup()
    for _ in range(100_000):
        wakeup.wake()
    assert poll([wakeup.fileno()], 0) == {wakeup.fileno()}
    while wakeup.drain():
        pass
    assert poll([wakeup.fileno()], 0) == set()
    wakeup.close()


def test_a_ticker_goes_on_after_an_error_and_ends_with_a_result() -> None:
    calls: list[int] = []
    woken = threading.Event()

    def action() -> str | None:
        calls.append(1)
        if len(calls) < 3:
            raise ConnectionError("away")
        return "stop"

    ticker = Ticker("test", 0.001, action, woken.set)
    assert woken.wait(5)
    assert ticker.result == "stop"
    assert ticker.end()
    assert len(calls) == 3


def test_a_ticker_can_be_ended_at_any_time() -> None:
    calls: list[int] = []
    ticker = Ticker("test", 3600, lambda: calls.append(1), lambda: None)
    wait_until(lambda: calls, "the first call")
    assert ticker.end(5)
    assert ticker.result is None
