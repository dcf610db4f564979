"""An address in a log or an error can be copied, and tells no password."""

from __future__ import annotations

import pytest

from fedq.relay.connection import without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@host:1/0", "redis://host:1/0"),
        ("rediss://clinic:secret@host:1", "rediss://clinic@host:1"),
        ("rediss://host:1/0?password=secret&ssl_cert_reqs=none", "rediss://host:1/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
    ],
)
def test_it_is_the_address_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown
