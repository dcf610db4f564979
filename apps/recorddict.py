"""What messages and Contexts carry: named records."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any, Generic, TypeAlias, TypeVar

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.typeddict import TypedDict

__all__ = ["RecordDict", "RecordType", "RecordView"]

log = logging.getLogger("fedq.apps")

RecordType: TypeAlias = ArrayRecord | MetricRecord | ConfigRecord

R = TypeVar("R", bound=ArrayRecord | MetricRecord | ConfigRecord)


class RecordView(MutableMapping[str, R], Generic[R]):
    """The records of one kind in a RecordDict. A live view: changes on either side show on the other."""

    __slots__ = ("_kind", "_records")

    def __init__(self, records: RecordDict, kind: type[R]) -> None:
        self._records = records
        self._kind = kind

    def __getitem__(self, key: str) -> R:
        record = self._records[key]
        if not isinstance(record, self._kind):
            raise KeyError(key)
        return record

    def __setitem__(self, key: str, value: R) -> None:
        if not isinstance(value, self._kind):
            raise TypeError(f"expected {self._kind.__name__}, not {type(value).__name__} (key {key!r})")
        self._records[key] = value

    def __delitem__(self, key: str) -> None:
        self[key]
        del self._records[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key, record in self._records.items() if isinstance(record, self._kind))

    def __len__(self) -> int:
        return sum(isinstance(record, self._kind) for record in self._records.values())

    def __repr__(self) -> str:
        return repr(dict(self))

    def copy(self) -> dict[str, R]:
        """The records of this kind as a dict of its own."""
        return dict(self)


class RecordDict(TypedDict[str, RecordType]):
    """A mapping of names to ArrayRecord, MetricRecord and ConfigRecord, in order of insertion::

        content = RecordDict({"arrays": ArrayRecord([weights]), "config": ConfigRecord({"lr": 0.1})})
        content.array_records["arrays"].to_numpy_ndarrays()

    Raises TypeError for other keys and values.
    """

    __slots__ = ()

    def __init__(self, records: Mapping[str, RecordType] | None = None) -> None:
        super().__init__()
        if records is not None:
            if not isinstance(records, Mapping):
                raise TypeError(f"a RecordDict is made of a dict, not of {type(records).__name__}")
            for key, record in records.items():
                self[key] = record

    def _check_value(self, key: Any, value: Any) -> None:
        if not isinstance(value, ArrayRecord | MetricRecord | ConfigRecord):
            raise TypeError(
                "a RecordDict holds ArrayRecord, MetricRecord and ConfigRecord, "
                f"not {type(value).__name__} (key {key!r})"
            )

    def __setitem__(self, key: str, value: RecordType) -> None:
        before = self._data.get(key)
        super().__setitem__(key, value)
        if before is not None and not isinstance(value, type(before)):
            log.warning("key %r: a %s took the place of a %s", key, type(value).__name__, type(before).__name__)

    @property
    def array_records(self) -> RecordView[ArrayRecord]:
        """The ArrayRecords in it, as a live view."""
        return RecordView(self, ArrayRecord)

    @property
    def metric_records(self) -> RecordView[MetricRecord]:
        """The MetricRecords in it, as a live view."""
        return RecordView(self, MetricRecord)

    @property
    def config_records(self) -> RecordView[ConfigRecord]:
        """The ConfigRecords in it, as a live view."""
        return RecordView(self, ConfigRecord)

    def count_bytes(self) -> int:
        """Size of all records and of their names in bytes."""
        return sum(len(key) + record.count_bytes() for key, record in self._data.items())

    def __repr__(self) -> str:
        views = (f"  {name}={getattr(self, name)!r}" for name in ("array_records", "metric_records", "config_records"))
        return "RecordDict(\n" + ",\n".join(views) + "\n)"
