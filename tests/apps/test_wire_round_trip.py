"""What is decoded equals what was encoded; the same content gives the same bytes."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedq.apps import (
    Array,
    ArrayRecord,
    ConfigError,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    UnencodableValue,
    UserConfig,
    wire,
)
from fedq.apps.digest import digest_of
from tests.apps.support_records import contexts, errors, messages, ndarrays, record_dicts, same_bits, user_configs


def types_of(record: Any) -> Any:
    """Keys in order, with the types of their values, since 1 == 1.0 == True."""
    return [
        (key, type(value), [type(element) for element in value] if isinstance(value, list) else None)
        for key, value in record.items()
    ]


def assert_same(one: RecordDict, other: RecordDict) -> None:
    assert one == other
    assert types_of(one) == types_of(other)
    for key, record in one.items():
        assert types_of(record) == types_of(other[key])


@given(record_dicts)
def test_records_come_back_equal_in_values_types_and_order(records: RecordDict) -> None:
    encoded = wire.encode(records)
    assert encoded.blobs == {}
    assert_same(wire.decode(encoded.data), records)


@given(record_dicts)
def test_the_same_content_gives_the_same_bytes(records: RecordDict) -> None:
    data = wire.encode(records).data
    assert wire.encode(records).data == data
    assert wire.encode(wire.decode(data)).data == data


@given(ndarrays(), st.sampled_from([None, 0, 16, 1000]))
def test_arrays_come_back_with_every_bit_and_their_order(ndarray: Any, limit: int | None) -> None:
    encoded = wire.encode(RecordDict({"a": ArrayRecord([ndarray])}), inline_limit=limit)
    (back,) = wire.decode(encoded.data, encoded.blobs, verify=True).array_records["a"].to_numpy_ndarrays()
    assert same_bits(back, ndarray)


@given(record_dicts, st.integers(0, 64), st.booleans(), st.booleans())
def test_arrays_over_the_limit_stand_beside_the_data_under_their_digest(
    records: RecordDict, limit: int, lazy: bool, verify: bool
) -> None:
    encoded = wire.encode(records, inline_limit=limit)
    large = [a for record in records.array_records.values() for a in record.values() if a.nbytes > limit]
    assert len(encoded.blobs) <= len(large)
    assert bool(encoded.blobs) == bool(large)
    for digest, blob in encoded.blobs.items():
        assert digest_of(blob) == digest
    assert wire.referenced(encoded.data) == {digest: len(blob) for digest, blob in encoded.blobs.items()}
    back = wire.decode(encoded.data, encoded.blobs, lazy=lazy, verify=verify)
    assert_same(back, records)
    assert wire.encode(back, inline_limit=limit) == encoded
    assert wire.encode(back).data == wire.encode(records).data


def test_the_limit_is_the_largest_size_that_stands_inline() -> None:
    records = RecordDict({"a": ArrayRecord([np.zeros(8, np.uint8), np.zeros(9, np.uint8)])})
    encoded = wire.encode(records, inline_limit=8)
    assert [len(blob) for blob in encoded.blobs.values()] == [9]
    assert wire.referenced(wire.encode(records).data) == {}


def test_equal_arrays_are_one_blob() -> None:
    records = RecordDict({"a": ArrayRecord([np.ones(100), np.ones(100)])})
    encoded = wire.encode(records, inline_limit=0)
    assert len(encoded.blobs) == 1
    assert wire.decode(encoded.data, encoded.blobs) == records


@pytest.mark.parametrize(
    "array",
    [
        Array("float32", (2, 3), "numpy.ndarray", b"damaged"),
        Array("float64", (7,), "numpy.ndarray", Array(np.ones(3)).data),
        Array("anything", (-1, 2), "my.own", b"xx"),
        Array("", (), "", b""),
    ],
    ids=["damaged", "contradictory", "foreign", "empty"],
)
@pytest.mark.parametrize("limit", [None, 0])
def test_an_array_of_fields_that_are_no_numpy_array_comes_back_as_it_is(array: Array, limit: int | None) -> None:
    records = RecordDict({"a": ArrayRecord({"x": array})})
    encoded = wire.encode(records, inline_limit=limit)
    (back,) = wire.decode(encoded.data, encoded.blobs).array_records["a"].values()
    assert (back.dtype, back.shape, back.stype, back.data) == (array.dtype, array.shape, array.stype, array.data)
    assert back == array


def test_an_array_given_as_npy_bytes_travels_as_raw_bytes() -> None:
    ndarray = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    array = Array(ndarray)
    of_bytes = Array(array.dtype, array.shape, array.stype, array.data)
    one, other = (wire.encode(RecordDict({"a": ArrayRecord({"x": x})})).data for x in (array, of_bytes))
    assert one == other


def test_subclasses_of_plain_types_travel_as_the_plain_type() -> None:
    class Colour(str, enum.Enum):  # noqa: UP042 - the kind whose str() is not its value
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    records = RecordDict(
        {
            "m": MetricRecord({"a": np.float64(0.5), "b": [np.float64(1)], "c": Level.HIGH, "d": [1, True]}),
            "c": ConfigRecord({"a": Colour.RED, "b": [Colour.RED], "c": np.str_("x"), "d": np.bytes_(b"y")}),
        }
    )
    back = wire.decode(wire.encode(records).data)
    assert back == {
        "m": {"a": 0.5, "b": [1.0], "c": 3, "d": [1, 1]},
        "c": {"a": "red", "b": ["red"], "c": "x", "d": b"y"},
    }
    kinds = {type(value) for record in back.values() for value in record.values()}
    assert kinds == {float, int, list, str, bytes}


@pytest.mark.parametrize(
    "record", [MetricRecord({"a": 2**64}), ConfigRecord({"a": [-(2**63) - 1]}), ConfigRecord({"a": "\ud800"})]
)
def test_what_cannot_be_written_is_refused_before_anything_is_sent(record: Any) -> None:
    with pytest.raises(UnencodableValue, match="'r'/'a' cannot be sent"):
        wire.encode(RecordDict({"other": MetricRecord({"b": 1}), "r": record}))


def test_a_name_that_is_no_text_is_refused_too() -> None:
    with pytest.raises(UnencodableValue, match="'r' cannot be sent"):
        wire.encode(RecordDict({"r": MetricRecord({"\ud800": 1})}))


def test_special_floats_keep_their_bits() -> None:
    values = [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324]
    back = wire.decode(wire.encode(RecordDict({"m": MetricRecord({"l": values})})).data)
    assert np.array(back.metric_records["m"]["l"]).tobytes() == np.array(values).tobytes()


@given(messages)
def test_messages_come_back(message: Message) -> None:
    back = wire.decode_message(wire.encode_message(message))
    assert back.metadata == message.metadata
    if message.has_error():
        assert back.error == message.error
        assert not back.has_content()
    else:
        assert_same(back.content, message.content)
        assert not back.has_error()


@given(contexts)
def test_contexts_come_back(context: Context) -> None:
    back = wire.decode_context(wire.encode_context(context))
    assert back == context
    assert types_of(back.node_config) == types_of(context.node_config)
    assert types_of(back.run_config) == types_of(context.run_config)
    assert_same(back.state, context.state)


@given(errors)
def test_errors_come_back(error: Error) -> None:
    assert wire.decode_error(wire.encode_error(error)) == error


@given(user_configs)
def test_configs_come_back(config: UserConfig) -> None:
    back = wire.decode_user_config(wire.encode_user_config(config))
    assert back == config
    assert types_of(back) == types_of(config)


def test_a_config_with_other_values_is_not_written() -> None:
    with pytest.raises(ConfigError, match="layers"):
        wire.encode_user_config({"layers": [1, 2]})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="node config has site"):
        wire.encode_context(Context(1, "n", {"site": None}, RecordDict(), {}))  # type: ignore[dict-item]


def test_a_frame_looks_the_way_it_is_documented() -> None:
    data = wire.encode(
        RecordDict({"a": ArrayRecord({"x": Array(np.array([1, 2], "<i2")), "y": Array(np.ones(1, "|u1"))})})
    ).data
    assert data[:8] == b"fedq" + bytes([wire.VERSION, 1, 0, 0])
    header = 16 + int.from_bytes(data[8:16], "little")
    first = header + -header % 64
    assert data[header:first] == bytes(first - header)
    assert data[first : first + 4] == b"\x01\x00\x02\x00"
    assert data[first + 4 :] == bytes(60) + b"\x01"
