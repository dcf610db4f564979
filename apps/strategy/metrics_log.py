"""MetricsLog: the metrics of all rounds as checkpoints keep them: a late one costs no more than an early one."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np

from fedq.apps.array import Array
from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.strategy.result import Result

SEGMENT = 16 * 1024
"""Bytes from which on what was written so far is sealed: more than travels within a message, so that a sealed segment
is on the server by its digest and is not sent again."""


class MetricsLog:
    """Lines of JSON, one for the metrics of a round and part, in the order in which they came.

    Only what is new is written. Older lines are sealed in segments that never change. The metrics of a round are kept
    as they were when they were first written.
    """

    def __init__(self) -> None:
        self.open = ""
        """The lines that are in no segment yet."""
        self.sealed = ArrayRecord()
        """The segments: arrays of bytes (uint8), each at least `SEGMENT` long."""
        self._written = [0, 0, 0]

    def write(self, result: Result) -> None:
        """Take in what the result has and the log has not."""
        for part, metrics in enumerate(_parts(result)):
            new = len(metrics) - self._written[part]
            for number in reversed(list(islice(reversed(metrics), new))):
                self.open += json.dumps([part, number, dict(metrics[number])], separators=(",", ":")) + "\n"
            self._written[part] = len(metrics)
        if len(self.open) >= SEGMENT:
            segment = np.frombuffer(self.open.encode(), dtype=np.uint8)
            # Anew, since the Context of before may still hold the record.
            self.sealed = ArrayRecord({**self.sealed, str(len(self.sealed)): Array(segment)})
            self.open = ""

    def read(self, opened: str, sealed: ArrayRecord, result: Result) -> None:
        """Take up what was written, and put its metrics into the result. Raises ValueError, TypeError or IndexError."""
        self.open, self.sealed = opened, sealed
        texts = [segment.numpy().tobytes().decode() for segment in sealed.values()]
        parts = _parts(result)
        for line in "".join([*texts, opened]).splitlines():
            part, number, metrics = json.loads(line)
            parts[part][int(number)] = MetricRecord(metrics)
        self._written = [len(part) for part in parts]


def _parts(result: Result) -> tuple[dict[int, MetricRecord], ...]:
    return result.train_metrics_clientapp, result.evaluate_metrics_clientapp, result.evaluate_metrics_serverapp
