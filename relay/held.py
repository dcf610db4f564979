"""Arrays that this process has in its memory anyway, by digest, so that they need not be fetched."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakValueDictionary

from fedq.apps.array import Array
from fedq.apps.digest import digest_of
from fedq.apps.recorddict import RecordDict
from fedq.apps.wire import content_of


class HeldArrays:
    """Arrays that were sent or received. It keeps none alive: one that nobody else holds is forgotten."""

    def __init__(self) -> None:
        self._arrays: WeakValueDictionary[str, Array] = WeakValueDictionary()

    def remember(self, records: RecordDict) -> None:
        """Take in the arrays of records that were encoded, or decoded from verified bytes. Small ones are left out."""
        for record in records.array_records.values():
            for array in record.values():
                if array._digest is not None:
                    # The one that was there first may well be the model, the other one of many replies.
                    self._arrays.setdefault(array._digest, array)

    def get(self, digests: Iterable[str]) -> dict[str, memoryview]:
        """Bytes of those of ``digests`` that are at hand, verified like those that come from the server.

        An Array made without copying shares its memory with whoever made it, and may have been changed by mistake.
        """
        found: dict[str, memoryview] = {}
        for digest in digests:
            array = self._arrays.get(digest)
            if array is None:
                continue
            content = content_of(array)
            if digest_of(content) == digest:
                found[digest] = content
            else:
                self._arrays.pop(digest, None)
        return found
