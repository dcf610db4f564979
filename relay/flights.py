"""Messages of a run that are under way, and replies that are there: what a Grid keeps in mind of each."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from fedq.apps.configrecord import ConfigRecord
from fedq.apps.recorddict import RecordDict

RECORD = "fedq.messages"
"""The record of a checkpoint that holds what is needed to make replies of messages which the checkpoint left open."""


@dataclass(slots=True)
class Flight:
    """A message that was pushed and not yet freed. ``deadline`` is the server's time, in seconds."""

    message_id: str
    node: str
    type: str
    group: str
    push: int
    deadline: float
    on_offline: str
    entry: str = ""


class Flights:
    """All of them. A reply *arrives* once, in an order that is kept, and is *given* to the app once or more."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}
        self._fresh: dict[str, None] = {}  # arrived and not given, in the order of arrival
        self._given: dict[str, None] = {}

    def __contains__(self, message_id: object) -> bool:
        return message_id in self._flights

    def __getitem__(self, message_id: str) -> Flight:
        return self._flights[message_id]

    def __len__(self) -> int:
        return len(self._flights)

    def add(self, flight: Flight) -> None:
        """A message was pushed, perhaps not for the first time."""
        known = self._flights.get(flight.message_id)
        if known is not None:
            known.type, known.group, known.push = flight.type, flight.group, flight.push
        else:
            self._flights[flight.message_id] = flight

    def arrive(self, message_id: str) -> None:
        """Its answer is there."""
        if message_id in self._flights and message_id not in self._given:
            self._fresh.setdefault(message_id, None)

    def arrived(self, message_id: str) -> bool:
        """Whether its answer is there."""
        return message_id in self._fresh or message_id in self._given

    def awaited(self, message_ids: Iterable[str]) -> list[Flight]:
        """Those of them that are under way, their answer not there yet."""
        fresh, given, flights = self._fresh, self._given, self._flights
        return [flights[m] for m in message_ids if m in flights and m not in fresh and m not in given]

    def rewind(self) -> None:
        """What has arrived and was not given has to arrive anew."""
        self._fresh.clear()

    def give(self, message_id: str) -> None:
        """The app has its reply."""
        self._fresh.pop(message_id, None)
        self._given.setdefault(message_id, None)

    def given(self, message_id: str) -> bool:
        """Whether the app has had its reply."""
        return message_id in self._given

    def first_given(self, message_ids: Set[str]) -> str | None:
        """The first of these whose reply the app has had."""
        if message_ids.isdisjoint(self._given):
            return None
        return next(m for m in self._given if m in message_ids)

    def unknown(self, message_ids: Set[str]) -> Set[str]:
        """Those that are none of these messages."""
        return message_ids - self._flights.keys()

    def all_given(self) -> list[str]:
        """The messages whose reply the app has had, in that order."""
        return list(self._given)

    def fresh(self, message_ids: Iterable[str]) -> list[str]:
        """Those that have arrived and were not given yet, in the order of arrival."""
        wanted = set(message_ids)
        return [m for m in self._fresh if m in wanted]

    def drop(self, message_id: str) -> None:
        """It was freed."""
        self._flights.pop(message_id, None)
        self._fresh.pop(message_id, None)
        self._given.pop(message_id, None)

    def open(self, without: Iterable[str]) -> list[Flight]:
        """All but these."""
        left_out = set(without)
        return [flight for m, flight in self._flights.items() if m not in left_out]


def keep_flights(state: RecordDict, flights: Flights, *, without: Iterable[str]) -> RecordDict:
    """``state`` as it is to be stored: with a record of the messages that stay open behind the checkpoint, if any."""
    still_open = flights.open(without)
    if not still_open:
        return state
    kept = RecordDict(dict(state.items()))
    places = {message_id: place for place, message_id in enumerate(flights.all_given(), start=1)}
    kept[RECORD] = ConfigRecord(
        {
            "ids": [flight.message_id for flight in still_open],
            "types": [flight.type for flight in still_open],
            "groups": [flight.group for flight in still_open],
            "given": [places.get(flight.message_id, 0) for flight in still_open],
        }
    )
    return kept


def forget_flights(state: RecordDict, flights: Flights) -> None:
    """Take that record out of a ``state`` that was read, and the messages into ``flights``, which knows their nodes."""
    if RECORD not in state:
        return
    record = state.config_records[RECORD]
    del state[RECORD]
    columns = [list(record[name]) for name in ("ids", "types", "groups", "given")]  # type: ignore[arg-type]
    given: list[tuple[int, str]] = []
    for m, message_type, group, place in zip(*columns, strict=True):
        if m in flights:
            flights[m].type, flights[m].group = str(message_type), str(group)
            if place:
                given.append((int(str(place)), str(m)))
    for _, m in sorted(given):
        flights.give(m)
