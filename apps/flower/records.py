"""Records, messages and errors of Flower from ours and back.

Arrays are not copied on the way from Flower: ours are views of the bytes that Flower's hold. On the way to Flower there
is one copy, since Flower holds an array as one ``bytes`` with NumPy's file header before the numbers.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np

from fedq.apps.array import NUMPY, Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import InvalidReply
from fedq.apps.flower.installed import names
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.recorddict import RecordDict
from fedq.apps.typing import NDArray

LEGACY_TYPES = ("get_parameters", "get_properties", "reconnect")
"""Types of messages of Flower that are no types of ours; they travel as actions of ``query``."""
_LEGACY = "query.flwr_"

_CODES = {
    ErrorCode.TIME_LIMIT: ErrorCode.CLIENT_APP_CRASHED,
    ErrorCode.UNDECODABLE_PAYLOAD: ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.UNKNOWN_ACTION: ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.APP_NOT_TRUSTED: ErrorCode.LOAD_CLIENT_APP_EXCEPTION,
    ErrorCode.MESSAGE_EXPIRED: ErrorCode.MESSAGE_UNAVAILABLE,
    ErrorCode.CANCELLED: ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
    ErrorCode.MAX_DELIVERIES: ErrorCode.CLIENT_APP_CRASHED,
    ErrorCode.INVALID_REPLY: ErrorCode.CLIENT_APP_RAISED_EXCEPTION,
    ErrorCode.INCONSISTENT_REPLY: ErrorCode.UNKNOWN,
}


class Converter:
    """Converts records between the two, and remembers whose bytes are whose.

    What went one way and comes back untouched is the Array that it was, with the digest that it had: it is neither
    hashed again, nor does it travel again. Made for one message or one push, and dropped with it.
    """

    def __init__(self) -> None:
        self._arrays: dict[int, tuple[bytes, Array]] = {}
        self._contents: dict[int, tuple[Any, RecordDict]] = {}

    # -- to Flower -----------------------------------------------------------------------------------------------------

    def to_flower(self, records: RecordDict) -> Any:
        """A RecordDict of Flower."""
        app = names("flwr.app")
        made = app.RecordDict()
        for name, record in records.items():
            if isinstance(record, ArrayRecord):
                arrays = app.ArrayRecord()
                for key, array in record.items():
                    arrays[key] = self._array_to_flower(app, array)
                made[name] = arrays
            elif isinstance(record, MetricRecord):
                made[name] = app.MetricRecord(dict(record))
            else:
                made[name] = app.ConfigRecord(dict(record))
        return made

    def _array_to_flower(self, app: Any, array: Array) -> Any:
        data = npy(array)
        self._arrays[id(data)] = (data, array)
        return app.Array(dtype=array.dtype, shape=tuple(array.shape), stype=array.stype, data=data)

    # -- from Flower ---------------------------------------------------------------------------------------------------

    def from_flower(self, records: Any) -> RecordDict:
        """A RecordDict of ours. The same object given again gives the same RecordDict, as for a broadcast."""
        known = self._contents.get(id(records))
        if known is not None:
            return known[1]
        app = names("flwr.app")
        made = RecordDict()
        for name, record in records.items():
            if isinstance(record, app.ArrayRecord):
                arrays = ArrayRecord()
                for key, array in record.items():
                    arrays[key] = self._array_from_flower(array)
                made[name] = arrays
            elif isinstance(record, app.MetricRecord):
                made[name] = MetricRecord(dict(record))
            else:
                made[name] = ConfigRecord(dict(record))
        self._contents[id(records)] = (records, made)
        return made

    def _array_from_flower(self, array: Any) -> Array:
        data, shape = array.data, tuple(array.shape)
        known = self._arrays.get(id(data))
        if known is not None and (known[1].dtype, known[1].shape, known[1].stype) == (array.dtype, shape, array.stype):
            return known[1]
        made = Array(str(array.dtype), shape, str(array.stype), data)
        self._arrays[id(data)] = (data, made)
        return made


def npy(array: Array) -> bytes:
    """The content of an array as Flower holds it, in NumPy's ``.npy`` format; copied once, or not at all."""
    array._fetch()
    if array._data is not None:
        return array._data if isinstance(array._data, bytes) else bytes(array._data)
    view: NDArray = array._raw()
    if array.stype != NUMPY or view.dtype.kind == "V" or view.dtype.isbuiltin == 2:
        return array.data  # dtypes that NumPy's format knows by their size only
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(view))
    return b"".join([head.getvalue(), view.reshape(-1, order="A").view(np.uint8).data])


def type_to_flower(message_type: str) -> str:
    """The type of a message as Flower has it."""
    return message_type.removeprefix(_LEGACY) if message_type.startswith(_LEGACY) else message_type


def type_from_flower(message_type: str) -> str:
    """The type of a message as ours, where every type is one of three or an action of one."""
    return f"{_LEGACY}{message_type}" if message_type in LEGACY_TYPES else message_type


def error_to_flower(error: Error) -> Any:
    """An error with one of Flower's codes. Codes that Flower does not have are named in the reason."""
    code = int(error.code)
    mapped = int(_CODES.get(code, code))  # type: ignore[call-overload]
    reason = error.reason or ""
    return names("flwr.app").Error(mapped, f"{error.name}: {reason}" if mapped != code else reason)


def error_from_flower(error: Any) -> Error:
    """An error of ours."""
    return Error(int(error.code), None if error.reason is None else str(error.reason))


def make_flower_message(metadata: dict[str, Any], content: Any = None, error: Any = None) -> Any:
    """A message of Flower with this metadata and either content or an error."""
    app = names("flwr.app")
    described = app.Metadata(**metadata)
    if error is not None:
        return app.Message(metadata=described, error=error)
    return app.Message(metadata=described, content=content)


def check_reply(reply: Any, asked: Any, message_id: str) -> Any:
    """What a Flower ClientApp returned, if it answers the message. Raises InvalidReply."""
    if not isinstance(reply, names("flwr.app").Message):
        what = "None" if reply is None else f"an object of type {type(reply).__name__}"
    elif reply.metadata.reply_to_message_id != message_id:
        what = "a message that does not answer the one it was given"
    elif not (reply.has_content() or reply.has_error()):
        what = "a reply with neither content nor error"
    else:
        return reply
    raise InvalidReply(
        f"the ClientApp returned {what} for a message of type {asked.metadata.message_type!r}; it must return "
        "Message(content, reply_to=message)",
        message_id=message_id,
    )
