"""What a server holds, in the form that :meth:`tests.relay.model.World.render` gives."""

from __future__ import annotations

from typing import Any

from fedq.relay.connection import Relay
from fedq.relay.keys import GROUP
from tests.relay.model import FOREVER, FULL, SHORT, Rendered

RUN_FIELDS = (
    *("status", "token", "lease", "owner", "attempt", "tries", "checkpoint", "rev", "seq", "event", "notes", "detail"),
    *("ended_by", "result", "result_objs", "cleaned", "resumed_by"),
)
READERS = {
    "string": lambda pipe, key: pipe.get(key),
    "set": lambda pipe, key: pipe.smembers(key),
    "hash": lambda pipe, key: pipe.hgetall(key),
    "zset": lambda pipe, key: pipe.zrange(key, 0, -1),
    "stream": lambda pipe, key: pipe.xrange(key),
}


def observe(relay: Relay) -> Rendered:
    """Every key that is there, and what it holds. Clocks and ids of streams are left out."""
    base = relay.keys.base
    now = relay.now() * 1000
    names = sorted(key.decode() for key in relay.redis.keys("*"))  # type: ignore[union-attr]
    with relay.redis.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.type(name)
            pipe.pttl(name)
        raw = pipe.execute()
        kinds, lives = [kind.decode() for kind in raw[::2]], raw[1::2]
        for name, kind in zip(names, kinds, strict=True):
            READERS[kind](pipe, name)
        values = pipe.execute()
    out: Rendered = {}
    for name, life, value in zip(names, lives, values, strict=True):
        assert name.startswith(base), f"{name} is outside of the home"
        seen = _value(name.removeprefix(base).split(":"), life, value, now)
        if seen is not None and seen != []:
            out[name] = seen
    return out


def acknowledged(relay: Relay, node: str) -> bool:
    """Whether the inbox's group remembers no entry that is gone."""
    inbox = relay.keys.inbox(node)
    there = {entry for entry, _ in relay.redis.xrange(inbox)}  # type: ignore[union-attr]
    pending: Any = relay.redis.xpending_range(inbox, GROUP, "-", "+", 10_000)
    return {item["message_id"] for item in pending} <= there


def _value(path: list[str], life: int, value: Any, now: float) -> object:
    match path:
        case ["wake"]:
            return None
        case [*_, "obj", _, "owners"]:
            return (_texts(value), _live(life))
        case [*_, "obj", _] | [*_, "obj", _, _]:
            return _live(life)
        case ["nodes"] | ["runs", "alive"] | ["run", _, "nodes" | "objs"] | ["node", _, "objs", _]:
            return _texts(value)
        case ["runs"] | ["run", _, "deadlines"]:
            return _texts(value)
        case ["node", _, "order", _]:
            return [item.decode() for item in value]
        case ["node", _, "inbox"]:
            return [f[b"id"].decode() if f[b"kind"] == b"message" else "wake" for _, f in value]
        case ["node", _, "claims"]:
            return {key.decode(): _claim(item.decode(), now) for key, item in value.items()}
        case ["node", _, "ctx", _]:
            return [tuple(f[name].decode() for name in (b"data", b"objs", b"m")) for _, f in value]
        case ["node", _, "replies", _]:
            return [f[b"m"].decode() for _, f in value]
        case ["node", _, "log", _]:
            return [f[b"data"].decode() for _, f in value]
        case ["node", _, "out", _]:
            fields = _fields(value)
            assert fields.pop("ptr")
            assert abs(int(fields.pop("created")) - now) < 60_000
            return {**fields, "body": value[b"body"].hex()}
        case ["node", _, "alive" | "dispatcher"] | ["housekeeper"]:
            assert life > 0, "a heartbeat or lease without an end"
            return value.decode()
        case ["run-counter"] | ["submitted", _]:
            return value.decode()
        case ["run", _]:
            return _run(_fields(value), now)
        case ["run", _, "sent"]:
            return {key.decode(): _sent(item.decode()) for key, item in value.items()}
        case ["run", _, "journal"]:
            # Of a push its digest, without the time when it was called first.
            return {name: said.partition("|")[0] for name, said in _fields(value).items()}
        case ["run", _, "ctx"]:
            names = (b"checkpoint", b"data", b"objs", b"free", b"token")
            return [tuple(f[name].decode() for name in names) for _, f in value]
        case ["run", _, "events"]:
            return [(f[b"kind"].decode(), _said(f[b"data"].decode())) for _, f in value]
    raise AssertionError(f"a key that no step should write: {path}")


def _run(fields: dict[str, str], now: float) -> dict[str, str]:
    if "lease" in fields:
        fields["lease"] = "live" if int(fields["lease"]) > now else "lapsed"
    return {name: fields[name] for name in RUN_FIELDS if name in fields}


def _claim(value: str, now: float) -> tuple[int, str, str]:
    attempt, token, lease, _ = value.split("|")
    return int(attempt), token, "free" if lease == "0" else "live" if int(lease) > now else "lapsed"


def _sent(value: str) -> str:
    node, entry, seq, _, checkpoint, offline = value.split("|")
    return f"{node}|{entry}|{seq}|{checkpoint}|{offline}"


def _said(data: str) -> str:
    """An event's data; of a status, the status."""
    return data.split('"status":')[1].split('"')[1] if '"status":' in data else data


def _live(life: int) -> str:
    return FOREVER if life == -1 else FULL if life > 700_000 else SHORT


def _texts(value: Any) -> set[str]:
    return {item.decode() for item in value}


def _fields(value: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): item.decode(errors="replace") for name, item in value.items()}
