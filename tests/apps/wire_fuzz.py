"""Feeds the decoders with mutated messages, under a limit of memory: ``python -m tests.apps.wire_fuzz COUNT SEED``.

A mutated message is either refused with WireError, or decoded into something that can be read and encoded again.
Prints how many of each there were; any other outcome is a traceback, with the input in hexadecimal.
"""

from __future__ import annotations

import random
import resource
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import ml_dtypes
import msgspec
import numpy as np

from fedq.apps import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
    WireError,
    wire,
)

HEADROOM = 192 * 2**20
EVIL_INTEGERS = [0, 1, -1, 2, 31, 32, 64, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
EVIL_VALUES: list[Any] = [
    None,
    True,
    0.5,
    float("nan"),
    "",
    "x" * 300,
    "<f4",
    ">c16",
    "|O",
    "<U9",
    "|V8",
    "<M8[s]",
    "bfloat16",
    "f" * 64,
    "0" * 64,
    b"",
    b"\x00" * 70,
    [],
    {},
    [[]],
    {"a": 1},
    *EVIL_INTEGERS,
]


def seeds() -> list[tuple[bytes, Callable[[bytes], Any], Callable[[Any], bytes]]]:
    """Messages to mutate, each with its decoder and its encoder."""
    records = RecordDict(
        {
            "arrays": ArrayRecord(
                {
                    "w": Array(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
                    "f": Array(np.asfortranarray(np.ones((3, 2), ">i2"))),
                    "zero": Array(np.array(1.5)),
                    "empty": Array(np.empty((0, 3))),
                    "bf": Array(np.ones(3, ml_dtypes.bfloat16)),
                    "long": Array(np.ones(2, np.clongdouble)),
                    "when": Array(np.array(["2024-01-01"], "M8[D]")),
                    "foreign": Array("x", (1,), "other", b"123"),
                    "npy": Array("float32", (9,), "numpy.ndarray", Array(np.ones(2)).data),
                }
            ),
            "metrics": MetricRecord({"a": 1, "b": 0.5, "c": [1, 2], "d": [0.5], "e": []}),
            "config": ConfigRecord({"a": True, "b": "text", "c": b"bytes", "d": ["x", "y"], "e": [b"z"], "f": -5}),
        }
    )
    message = Message(records, "site-a", "train.warmup", group_id="1")

    def encode(content: RecordDict) -> bytes:
        return wire.encode(content).data

    def external(data: bytes) -> RecordDict:
        wire.referenced(data)
        return wire.decode(data, blobs, verify=True)

    beside = wire.encode(records, inline_limit=20)
    blobs = dict(beside.blobs)
    context = Context(3, "site-a", {"partition-id": 1, "x": 0.5}, records, {"lr": 0.1, "name": "y", "flag": True})
    return [
        (encode(records), wire.decode, encode),
        (beside.data, external, encode),
        (wire.encode_message(message), wire.decode_message, wire.encode_message),
        (
            wire.encode_message(Message(Error(1, "why", "tb"), reply_to=message)),
            wire.decode_message,
            wire.encode_message,
        ),
        (wire.encode_context(context), wire.decode_context, wire.encode_context),
        (wire.encode_error(Error(100, "why", "where")), wire.decode_error, wire.encode_error),
        (wire.encode_user_config({"a": 1, "b": "x"}), wire.decode_user_config, wire.encode_user_config),
    ]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The message with some damage: to its bytes anywhere, to its prefix, or to the values in its header."""
    if rng.random() < 0.5:
        return mutate_header(data, rng)
    out = bytearray(data)
    header = 16 + int.from_bytes(data[8:16], "little")
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        # The header is where it hurts; the rest is numbers.
        end = len(out) if rng.random() < 0.2 else min(len(out), header)
        at = rng.randrange(max(end, 1))
        match rng.randrange(8):
            case 0 if out:
                out[at % len(out)] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at % len(out)] = rng.randrange(256)
            case 2:
                del out[at : at + rng.choice([1, 2, 8, 64])]
            case 3:
                out[at:at] = rng.randbytes(rng.choice([1, 2, 8, 64]))
            case 4:
                # A MessagePack length of four bytes that lies.
                out[at : at + 5] = bytes([rng.choice([0xC6, 0xDB, 0xDD, 0xDF, 0xC9])]) + rng.randbytes(4)
            case 5:
                del out[rng.randrange(len(out) + 1) :]
            case 6:
                out[8:16] = rng.choice(EVIL_INTEGERS).to_bytes(16, "little", signed=True)[:8]
            case _:
                start = rng.randrange(max(end, 1))
                out[at:at] = out[start : start + rng.choice([1, 5, 40])]
    return bytes(out)


def mutate_header(data: bytes, rng: random.Random) -> bytes:
    """The message with a header that is well-formed MessagePack and says something else; its length fits."""
    length = int.from_bytes(data[8:16], "little")
    header = msgspec.msgpack.decode(data[16 : 16 + length])
    for _ in range(rng.choice([1, 1, 2, 3])):
        holder, path = header, list[Any]()
        while isinstance(holder, list) and holder:
            index = rng.randrange(len(holder))
            path.append((holder, index))
            if not isinstance(holder[index], list) or rng.random() < 0.15:
                break
            holder = holder[index]
        if not path:
            break
        target, index = path[-1]
        match rng.randrange(5):
            case 0:
                target.insert(index, target[rng.randrange(len(target))])
            case 1:
                del target[index]
            case 2 if isinstance(target[index], int) and not isinstance(target[index], bool):
                target[index] += rng.choice([-1, 1, 8, -(2**31)])
            case _:
                target[index] = rng.choice(EVIL_VALUES)
    try:
        encoded = msgspec.msgpack.encode(header)
    except OverflowError:
        return data[:-1]
    first = -(16 + length) % 64 + 16 + length
    head = data[:8] + len(encoded).to_bytes(8, "little") + encoded
    return head + bytes(-len(head) % 64) + data[first:]


def exercise(decoded: Any) -> None:
    """Read every array of what was decoded."""
    records = decoded
    if isinstance(decoded, Message):
        records = decoded.content if decoded.has_content() else RecordDict()
    elif isinstance(decoded, Context):
        records = decoded.state
    if isinstance(records, RecordDict):
        for record in records.array_records.values():
            for array in record.values():
                try:
                    array.numpy(copy=False).tobytes()
                except (TypeError, ValueError):
                    # Fields that their author wrote and that are no NumPy array: reading them is for that author.
                    assert array.data is not None


def fuzz(count: int, seed: int) -> Counter[str]:
    """Decode this many mutated messages and say how they ended."""
    rng = random.Random(seed)
    sources = seeds()
    for data, decode, encode in sources:
        assert encode(decode(data)) is not None
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        data, decode, encode = rng.choice(sources)
        mutated = mutate(data, rng)
        try:
            try:
                decoded = decode(mutated)
            except WireError:
                outcomes["refused"] += 1
                continue
            exercise(decoded)
            again = encode(decoded)
            assert encode(decoded) == again
            outcomes["decoded"] += 1
        except BaseException:
            print(f"{decode} of {mutated.hex()}", file=sys.stderr)
            raise
    return outcomes


def limit_memory() -> None:
    """Allow this process little more address space than it has now."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


if __name__ == "__main__":
    limit_memory()
    for outcome, number in sorted(fuzz(int(sys.argv[1]), int(sys.argv[2])).items()):
        print(outcome, number)
