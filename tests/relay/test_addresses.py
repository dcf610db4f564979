"""An address in a log or an error can be copied, and tells no password."""

from __future__ import annotations

import pytest

from fedq.apps.errors import FedqError
from fedq.relay.connection import Relay, resolve_url, without_password


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("redis://:secret@host:1/0", "redis://host:1/0"),
        ("rediss://clinic:secret@host:1", "rediss://clinic@host:1"),
        ("rediss://host:1/0?password=secret&ssl_cert_reqs=none", "rediss://host:1/0"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://:secret@/run/redis.sock?db=1", "unix:///run/redis.sock"),
        ("redis://host:99999/0", "redis://host:99999/0"),
        ("localhost", "localhost"),
        ("clinic:secret@host:6379", "host:6379"),
    ],
)
def test_it_is_the_address_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@pytest.mark.parametrize("secret", ["/secret", "#secret", "?secret", "sec/ret", "[secret"])
def test_a_password_that_should_have_been_escaped_is_not_shown_either(secret: str) -> None:
    url = f"redis://:{secret}@host:6379/0"
    with pytest.raises(FedqError) as raised, Relay(url, retries=0) as relay:
        relay.check()
    assert without_password(url) == "redis://…"
    for part in ("sec", "ret"):
        assert part not in str(raised.value)


def test_without_an_address_the_variables_say_where_and_ours_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_url() == "redis://127.0.0.1:6379"
    monkeypatch.setenv("REDIS_URL", "redis://everybodys")
    assert resolve_url() == "redis://everybodys"
    monkeypatch.setenv("FEDQ_REDIS_URL", "redis://ours")
    assert resolve_url() == "redis://ours"
    assert resolve_url("redis://named") == "redis://named"
