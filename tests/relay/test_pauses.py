"""A server that is away is asked again with growing pauses, and soon after it is back."""

from __future__ import annotations

from fedq.relay.pauses import Pauses


def test_pauses_grow_to_half_a_second_and_no_further() -> None:
    pauses = Pauses()
    taken = [pauses.next() for _ in range(40)]
    assert 0.025 <= taken[0] <= 0.1
    assert all(0.25 <= pause <= 0.5 for pause in taken[6:])


def test_they_differ_so_that_not_everyone_comes_back_at_once() -> None:
    many = [Pauses() for _ in range(20)]
    for _ in range(10):
        taken = {pauses.next() for pauses in many}
    assert len(taken) > 10


def test_they_begin_again_once_the_server_was_there() -> None:
    pauses = Pauses()
    assert not pauses.begun
    for _ in range(10):
        pauses.next()
    assert pauses.begun
    pauses.reset()
    assert not pauses.begun
    assert pauses.next() <= 0.1
