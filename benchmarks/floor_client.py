"""``python -m benchmarks.floor_client URL``: a client of bare redis-py, told over a pipe what to read and to write."""

from __future__ import annotations

import json
import os
import sys

import redis

CHUNK = 4 * 1024 * 1024
"""Bytes per value."""


def keys(name: str, nbytes: int) -> list[str]:
    """The keys of a payload of so many bytes."""
    return [f"{name}:{number}" for number in range(-(-nbytes // CHUNK))]


def write(client: redis.Redis, name: str, payload: memoryview) -> None:
    """SET the chunks of a payload, in one pipeline."""
    with client.pipeline(transaction=False) as pipe:
        for number, key in enumerate(keys(name, len(payload))):
            pipe.set(key, payload[number * CHUNK : (number + 1) * CHUNK])
        pipe.execute()


def read(client: redis.Redis, name: str, nbytes: int) -> list[bytes]:
    """GET the chunks of a payload, in one pipeline."""
    with client.pipeline(transaction=False) as pipe:
        for key in keys(name, nbytes):
            pipe.get(key)
        parts: list[bytes] = pipe.execute()
    if sum(len(part or b"") for part in parts) != nbytes:
        raise RuntimeError(f"{name} is not as long as it was written")
    return parts


def main() -> None:
    """For each line on stdin: make a payload of ``bytes``, or read one and write the own one. Then say so."""
    client = redis.Redis.from_url(sys.argv[1])
    client.ping()
    payload = memoryview(b"")
    for line in sys.stdin:
        request = json.loads(line)
        if "bytes" in request:
            payload = memoryview(os.urandom(request["bytes"]))
        else:
            read(client, request["read"], len(payload))
            write(client, request["write"], payload)
        print(json.dumps({"done": True}), flush=True)


if __name__ == "__main__":
    main()
