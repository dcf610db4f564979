"""Replies may be looked at more than once, hold nothing, and count as a list does."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator

from fedq.apps import Message, Replies
from fedq.apps.grid import Grid
from fedq.apps.testing import Federation
from tests.apps.test_grid import messages_to, on, sources

DELAYS = {"node-0": 2.0, "node-1": 1.0, "node-2": 3.0}
ORDER = ["node-1", "node-0", "node-2"]


def in_a_run(check: object, delays: dict[str, float] = DELAYS) -> Federation:
    federation = Federation(3, delays=delays)

    def main(grid: Grid) -> None:
        check(grid, grid.stream(messages_to(*federation.nodes)))  # type: ignore[operator]

    on(federation, main)
    return federation


def test_a_second_pass_gives_the_same_replies_again() -> None:
    def check(grid: Grid, replies: Replies) -> None:
        assert sources(replies) == sources(replies) == ORDER

    assert in_a_run(check).runs[1].executions == 3


def test_passes_may_be_nested_and_broken_off() -> None:
    def check(grid: Grid, replies: Replies) -> None:
        seen = []
        for outer in replies:
            for inner in replies:
                seen.append((outer.metadata.src_node_id, inner.metadata.src_node_id))
                break
        assert seen == [(name, "node-1") for name in ORDER]
        assert sources(replies) == ORDER

    in_a_run(check)


def test_the_length_waits_for_the_end_and_truth_does_not() -> None:
    def check(grid: Grid, replies: Replies) -> None:
        assert replies
        assert replies.arrived == ()
        assert len(replies) == 3
        assert sources(replies) == ORDER
        assert replies.unanswered == ()
        assert not grid.stream([])

    in_a_run(check)


def test_the_length_in_the_middle_of_a_pass_loses_nothing() -> None:
    def check(grid: Grid, replies: Replies) -> None:
        seen: list[str] = []
        for reply in replies:
            assert len(replies) == 3
            seen += sources([reply])
        assert seen == ORDER

    in_a_run(check)


def test_a_list_of_them_pulls_each_once() -> None:
    pulled: list[str] = []

    def check(grid: Grid, replies: Replies) -> None:
        class Counting(type(grid)):  # type: ignore[misc]
            def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
                ids = list(message_ids)
                pulled.extend(ids)
                return super().pull_messages(ids)  # type: ignore[no-any-return]

        grid.__class__ = Counting
        assert sources(list(replies)) == ORDER
        assert sorted(pulled) == sorted(replies.message_ids)
        assert sources(sorted(replies, key=lambda reply: reply.metadata.src_node_id)) == sorted(ORDER)

    in_a_run(check)


def test_nothing_is_held() -> None:
    def check(grid: Grid, replies: Replies) -> None:
        alive = []
        for reply in replies:
            alive.append(weakref.ref(reply))
            del reply
            gc.collect()
        assert [ref() for ref in alive] == [None, None, None]
        assert len(replies) == 3

    in_a_run(check)


def test_errors_are_told_from_contents() -> None:
    federation = Federation(2)
    federation.fail("node-1", RuntimeError("no"))

    def main(grid: Grid) -> None:
        replies = grid.stream(messages_to("node-0", "node-1"))
        assert sources(reply for reply in replies if reply.has_error()) == ["node-1"]
        assert replies.errors == {replies.message_ids[1]}
        assert repr(replies) == "<Replies: 2 of 2 so far>"

    on(federation, main)


def test_an_iterator_is_one() -> None:
    def check(grid: Grid, replies: Replies) -> None:
        one = iter(replies)
        assert isinstance(one, Iterator)
        assert iter(one) is one
        assert sources(one) == ORDER
        assert list(one) == []

    in_a_run(check)
