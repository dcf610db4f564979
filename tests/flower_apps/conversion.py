"""Run by a Python with flwr: what is shared and what is copied. Prints nothing if all is well."""

import tracemalloc

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedq.apps.flower.records import Converter
from fedq.apps.wire import decode, encode

LARGE = np.arange(500_000, dtype=np.float64)

theirs = RecordDict({"a": ArrayRecord([LARGE]), "m": MetricRecord({"x": 1.5, "l": [1, 2]}), "c": ConfigRecord()})
theirs["c"]["b"] = b"bytes"
tracemalloc.start()
convert = Converter()
ours = convert.from_flower(theirs)
sent = encode(ours, inline_limit=1024)
assert tracemalloc.get_traced_memory()[1] < LARGE.nbytes // 4, "an array was copied on the way from Flower"
assert convert.from_flower(theirs) is ours
(blob,) = sent.blobs.values()
assert np.shares_memory(np.frombuffer(blob, np.uint8), np.frombuffer(theirs["a"]["0"].data, np.uint8))

received = decode(sent.data, sent.blobs)
tracemalloc.reset_peak()
before = tracemalloc.get_traced_memory()[0]
convert = Converter()
back = convert.to_flower(received)
peak = tracemalloc.get_traced_memory()[1] - before
assert LARGE.nbytes <= peak < 1.25 * LARGE.nbytes, f"{peak / LARGE.nbytes:.2f} copies on the way to Flower"
assert back["a"]["0"].data == theirs["a"]["0"].data
assert (back["m"], back["c"]) == (theirs["m"], theirs["c"])
assert convert.from_flower(back)["a"]["0"] is received["a"]["0"]

for array in (
    Array(np.asfortranarray(np.ones((3, 4), ">f4"))),
    Array(np.array(3, np.int8)),
    Array(np.zeros((0, 2))),
    Array(np.array([True])),
    Array(np.array(["text"])),
    Array("", (), "numpy.ndarray", Array(np.ones(3)).data),
    Array("whatever", (2,), "my.format", b"\x00\x01"),
):
    there = Converter().from_flower(RecordDict({"a": ArrayRecord({"x": array})}))
    again = Converter().to_flower(decode(encode(there).data))["a"]["x"]
    assert (again.dtype, again.shape, again.stype, again.data) == (array.dtype, array.shape, array.stype, array.data)
