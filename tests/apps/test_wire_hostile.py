"""Hostile and damaged bytes are refused with WireError, and cost no memory beyond their own size."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict, WireError, wire

ROOT = Path(__file__).parents[2]
RECORDS, ERROR, CONFIG, MESSAGE, CONTEXT = range(1, 6)

good = wire.encode(
    RecordDict(
        {
            "a": ArrayRecord([np.arange(6.0).reshape(2, 3), np.ones(3, np.int8)]),
            "m": MetricRecord({"x": 1}),
            "c": ConfigRecord({"y": "z"}),
        }
    )
).data


def frame(header: Any, blocks: bytes = b"", *, kind: int = RECORDS, version: int = wire.VERSION) -> bytes:
    """A frame around any header, whole and well-formed but for what is to be tested."""
    encoded = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    head = b"fedq" + bytes([version, kind, 0, 0]) + len(encoded).to_bytes(8, "little") + encoded
    return head + (bytes(-len(head) % 64) + blocks if blocks else b"")


def array(dtype: Any = "<f8", shape: Any = (1,), nbytes: Any = 8, stype: Any = None, digest: Any = "") -> list[Any]:
    return [["a", "r", [["x", dtype, list(shape), False, stype, nbytes, digest]]]]


def test_the_helpers_of_this_file_make_good_frames() -> None:
    assert wire.decode(frame(array(), bytes(8))) == {"r": ArrayRecord({"x": Array(np.zeros(1))})}


def test_every_truncation_is_refused() -> None:
    for end in range(len(good)):
        with pytest.raises(WireError):
            wire.decode(good[:end])


def test_anything_after_the_end_is_refused() -> None:
    for more in (b"\0", b"x", bytes(64), good):
        with pytest.raises(WireError, match="too many"):
            wire.decode(good + more)


def test_anything_between_two_arrays_is_refused() -> None:
    data = bytearray(good)
    data[-4] = 1
    with pytest.raises(WireError, match="between"):
        wire.decode(data)


@pytest.mark.parametrize("version", [0, wire.VERSION - 1, wire.VERSION + 1, 255])
def test_another_version_is_refused_with_the_advice_to_use_one_release(version: int) -> None:
    with pytest.raises(WireError, match=f"version {version} .* same release"):
        wire.decode(frame(array(), bytes(8), version=version))


def test_what_is_no_frame_is_refused() -> None:
    for data in (b"", b"f", b"\x80\x04\x95" + bytes(40), b"\x93NUMPY" + bytes(40), b"FEDQ" + good[4:]):
        with pytest.raises(WireError):
            wire.decode(data)


def test_a_frame_of_another_kind_is_refused() -> None:
    decoders: dict[int, Callable[[bytes], Any]] = {
        RECORDS: wire.decode,
        ERROR: wire.decode_error,
        CONFIG: wire.decode_user_config,
        MESSAGE: wire.decode_message,
        CONTEXT: wire.decode_context,
    }
    for kind, decode in decoders.items():
        for other in (*(set(decoders) - {kind}), 0, 77):
            with pytest.raises(WireError, match="expected"):
                decode(frame([], kind=other))
    with pytest.raises(WireError, match="expected"):
        wire.decode(good[:6] + b"\x01" + good[7:])


@pytest.mark.parametrize("length", [0, 1, 2**32, 2**63 - 1, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(length: int) -> None:
    with pytest.raises(WireError):
        wire.decode(good[:8] + length.to_bytes(8, "little") + good[16:])


@pytest.mark.parametrize(
    ("header", "blocks"),
    [
        pytest.param(array(shape=(2,)), bytes(8), id="more elements than bytes"),
        pytest.param(array(shape=(0,)), bytes(8), id="fewer elements than bytes"),
        pytest.param(array(nbytes=16), bytes(16), id="a size that lies"),
        pytest.param(array(nbytes=2**63), bytes(8), id="a huge size"),
        pytest.param(array(shape=(2**40,), nbytes=2**43), bytes(8), id="a huge shape"),
        pytest.param(array(shape=(2**32, 2**32)), bytes(8), id="a shape whose product overflows to zero"),
        pytest.param(array(shape=(2**62, 4), nbytes=0), b"", id="a product that overflows to zero bytes"),
        pytest.param(array(shape=(2**62, 0, 2**62), nbytes=0), b"", id="huge dimensions beside an empty one"),
        pytest.param(array(shape=(-1,)), bytes(8), id="a negative dimension"),
        pytest.param(array(shape=(-1, -1)), bytes(8), id="two negative dimensions"),
        pytest.param(array(nbytes=-8), bytes(8), id="a negative size"),
        pytest.param(array(shape=(1,) * 65), bytes(8), id="too many dimensions"),
        pytest.param(array(shape=(1.0,)), bytes(8), id="a dimension that is no integer"),
        pytest.param(array(dtype="|O"), bytes(8), id="objects"),
        pytest.param(array(dtype="<U2"), bytes(8), id="strings"),
        pytest.param(array(dtype="f8,f8"), bytes(8), id="records"),
        pytest.param(array(dtype="<M8[banana]"), bytes(8), id="an unknown unit"),
        pytest.param(array(dtype="<f8:52"), bytes(8), id="a mantissa where none belongs"),
        pytest.param(array(dtype="bfloat17", nbytes=8), bytes(8), id="an unknown name"),
        pytest.param(array(dtype="float8_nonsense", nbytes=1), bytes(1), id="an unknown name of that kind"),
        pytest.param(array(dtype="<f16:7", nbytes=16), bytes(16), id="long doubles of another machine"),
        pytest.param(array(dtype=""), bytes(8), id="no dtype"),
        pytest.param(array(digest="0"), b"", id="a short digest"),
        pytest.param(array(digest="Z" * 64), b"", id="a digest that is none"),
        pytest.param(array(digest="0" * 64), b"", id="an array that is missing"),
        pytest.param([["z", "r", []]], b"", id="an unknown kind of record"),
        pytest.param([["m", "r", [["x", True]]]], b"", id="a metric that is a bool"),
        pytest.param([["m", "r", [["x", "y"]]]], b"", id="a metric that is text"),
        pytest.param([["m", "r", [["x", [1, 2.0]]]]], b"", id="a metric list of two types"),
        pytest.param([["m", "r", [["x", [[1]]]]]], b"", id="a metric list of lists"),
        pytest.param([["m", "r", [[1, 1]]]], b"", id="a key that is no text"),
        pytest.param([["c", "r", [["x", None]]]], b"", id="a config value that is none"),
        pytest.param([["c", "r", [["x", {}]]]], b"", id="a config value that is a mapping"),
        pytest.param([["c", "r", [["x", [[]]]]]], b"", id="a config list of lists"),
        pytest.param([["c", "r", [["x", msgspec.msgpack.Ext(5, b"")]]]], b"", id="an extension type"),
        pytest.param([["m", "r", []], ["c", "r", []]], b"", id="two records of one name"),
        pytest.param([["m", "r", [["x", 1], ["x", 2]]]], b"", id="two metrics of one name"),
        pytest.param([["c", "r", [["x", 1], ["x", 1]]]], b"", id="two config values of one name"),
        pytest.param([["a", "r", [*array()[0][2], *array()[0][2]]]], bytes(72), id="two arrays of one name"),
        pytest.param([["m", "r", [], 1]], b"", id="a field too many"),
        pytest.param([["m", "r"]], b"", id="a field too few"),
        pytest.param({}, b"", id="a mapping"),
        pytest.param(b"", b"", id="no header"),
        pytest.param(b"\x90\x90", b"", id="two headers"),
        pytest.param(b"\x91\x93\xa1m\xa1\xff\x90", b"", id="text that is no utf-8"),
        pytest.param(b"\x91" * 100_000, b"", id="deep nesting"),
        pytest.param(
            b"\x91\x93\xa1c\xa1r\x91\x92\xa1x" + b"\x91" * 100_000 + b"\x01", b"", id="deep nesting of values"
        ),
        pytest.param(b"\xdd\xff\xff\xff\xff", b"", id="a list of four billion records"),
        pytest.param(b"\x91\x93\xa1m\xdb\xff\xff\xff\xff", b"", id="a name of four billion bytes"),
        pytest.param(b"\x91\x93\xa1c\xa1r\x91\x92\xa1x\xdd\x7f\xff\xff\xff", b"", id="a list of two billion values"),
    ],
)
def test_a_header_is_refused_that_has(header: Any, blocks: bytes) -> None:
    data = frame(header, blocks)
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            wire.decode(data)
        assert tracemalloc.get_traced_memory()[1] < 20 * len(data) + 200_000
    finally:
        tracemalloc.stop()


def test_references_are_checked_without_decoding_the_arrays() -> None:
    digest = "ab" * 32
    assert wire.referenced(frame(array(digest=digest))) == {digest: 8}
    for header in (array(digest="x"), [*array(digest=digest), ["a", "s", array(digest=digest, nbytes=9)[0][2]]]):
        with pytest.raises(WireError):
            wire.referenced(frame(header))
    with pytest.raises(WireError):
        wire.referenced(b"")


METADATA = [1, "m", "a", "b", "", "", 0.0, 1.0, "train"]


@pytest.mark.parametrize(
    "header",
    [
        [METADATA, None, None],
        [METADATA, [1, None, None], []],
        [[*METADATA[:8], "foo"], None, []],
        [[*METADATA[:6], float("nan"), 1.0, "train"], None, []],
        [[*METADATA[:7], float("inf"), "train"], None, []],
        [[*METADATA, 1], None, []],
        [METADATA, ["x", None, None], None],
        [METADATA, None],
    ],
)
def test_a_message_is_refused_that_contradicts_itself(header: Any) -> None:
    assert wire.decode_message(frame([METADATA, None, []], kind=MESSAGE)).content == {}
    with pytest.raises(WireError):
        wire.decode_message(frame(header, kind=MESSAGE))


def test_configs_with_a_name_twice_or_other_values_are_refused() -> None:
    for pairs in ([["a", 1], ["a", 2]], [["a", None]], [["a", [1]]], [["a", b"x"]], [[1, 1]]):
        with pytest.raises(WireError):
            wire.decode_user_config(frame(pairs, kind=CONFIG))
        with pytest.raises(WireError):
            wire.decode_context(frame([1, "n", pairs, [], []], kind=CONTEXT))


def test_nothing_may_follow_a_frame_without_blocks() -> None:
    for data, decode in (
        (wire.encode_error(Error(1)), wire.decode_error),
        (wire.encode_user_config({}), wire.decode_user_config),
        (wire.encode_message(Message(Error(1), reply_to=Message(RecordDict(), "n", "train"))), wire.decode_message),
    ):
        decode(data)
        with pytest.raises(WireError, match="too many"):
            decode(data + b"\0")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        b"(" * 200,
        b"__import__('os')",
        b"{'descr': '<f8'",
    ],
)
def test_an_npy_file_inside_that_lies_is_a_value_error_for_who_reads_it_and_costs_nothing(header: bytes) -> None:
    npy = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n" + bytes(8)
    records = RecordDict({"a": ArrayRecord({"x": Array("float64", (1,), "numpy.ndarray", npy)})})
    back = wire.decode(wire.encode(records).data).array_records["a"]["x"]
    assert back.data == npy
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"npy|dtype"):
            back.numpy()
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def run_fuzz(count: int, seed: int) -> dict[str, int]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.apps.wire_fuzz", str(count), str(seed)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: int(number) for name, number in (line.split() for line in done.stdout.splitlines())}


def test_two_thousand_mutated_messages_under_a_memory_limit_are_refused_or_decoded() -> None:
    outcomes = run_fuzz(2_000, seed=1)
    assert sum(outcomes.values()) == 2_000
    assert outcomes["refused"] > 1_000
    assert outcomes["decoded"] > 40


@pytest.mark.fuzz
def test_a_hundred_thousand_mutated_messages_under_a_memory_limit_are_refused_or_decoded() -> None:
    outcomes = run_fuzz(100_000, seed=2)
    assert sum(outcomes.values()) == 100_000
    assert outcomes["refused"] > 50_000
    assert outcomes["decoded"] > 2_000
