"""``python -m benchmarks.floor_worker URL QUEUE fork|simple``: a worker of bare RQ, nothing else in its process."""

from __future__ import annotations

import sys

import redis
from rq import Queue, SimpleWorker, Worker


def main() -> None:
    """Work until SIGTERM."""
    url, queue, kind = sys.argv[1:]
    connection = redis.Redis.from_url(url)
    worker = {"fork": Worker, "simple": SimpleWorker}[kind]
    worker([Queue(queue, connection=connection)], connection=connection).work(logging_level="ERROR")


if __name__ == "__main__":
    main()
