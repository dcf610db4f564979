"""Who a node is to the other nodes: a key of its own that signs, and a list of those that it believes.

The server carries the public keys of a round from node to node. Where every node signs its keys and knows whose
signature to expect, a server that puts keys of its own in their place is found out.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedq.apps.errors import InconsistentReply
from fedq.apps.secagg import keys
from fedq.apps.secagg.stages import PublicKeys

IDENTITY_FILE = "secagg-identity-file"
"""Key of the node config: a file with the 32 bytes of an Ed25519 private key, with which the node signs its keys."""

PEERS_FILE = "secagg-peers-file"
"""Key of the node config: a TOML file with the Ed25519 public key, 64 hexadecimal digits, of each node by its name."""


def public_identity(path: str | Path) -> str:
    """What a list of peers says of the node whose `IDENTITY_FILE` this is: its public key, 64 hexadecimal digits.

    Raises:
        InconsistentReply: the file cannot be read, or is too short.
    """
    secret = secret_in({IDENTITY_FILE: str(path)}, IDENTITY_FILE)
    assert secret is not None
    return keys.signing_public_key(secret[:32]).hex()


def signed(public: PublicKeys, node_config: Mapping[str, Any], place: str) -> PublicKeys:
    """The keys with the node's signature, if its config names an identity; `place` (run, session, node) is bound."""
    secret = secret_in(node_config, IDENTITY_FILE)
    if secret is None:
        return public
    signature = keys.signature(secret[:32], _statement(public, place))
    return PublicKeys(public.transport, public.mask, signature)


def verify(public: Mapping[str, PublicKeys], node_config: Mapping[str, Any], places: Mapping[str, str]) -> None:
    """Check that each node's keys are its own, if the config names the nodes that are believed.

    Raises:
        InconsistentReply: they are not, a node is not on the list, or the list cannot be read.
    """
    path = node_config.get(PEERS_FILE)
    if path is None:
        return
    believed = _peers(Path(str(path)))
    for node, told in public.items():
        if node not in believed:
            raise InconsistentReply(f"{node} is not among the nodes that {PEERS_FILE!r} of the node config lists")
        if not keys.verifies(believed[node], told.signature, _statement(told, places[node])):
            raise InconsistentReply(
                f"the keys that the server tells of {node} are not signed by it: either they are not its keys, so that "
                f"the server could read what is meant for {node}, or {node} has no {IDENTITY_FILE!r}, or another one"
            )


def secret_in(node_config: Mapping[str, Any], name: str) -> bytes | None:
    """What a file that the node config names holds, at least 32 bytes; None where it names none.

    Raises:
        InconsistentReply: it cannot be read, or is too short.
    """
    path = node_config.get(name)
    if path is None:
        return None
    try:
        secret = Path(str(path)).read_bytes()
    except OSError as exc:
        raise InconsistentReply(f"the file that {name!r} of the node config names cannot be read: {exc}") from exc
    if len(secret) < 32:
        raise InconsistentReply(f"the file that {name!r} of the node config names needs 32 random bytes")
    return secret


def _statement(public: PublicKeys, place: str) -> bytes:
    return b"fedq secagg, keys of " + place.encode() + b"\0" + public.transport + public.mask


def _peers(path: Path) -> dict[str, bytes]:
    try:
        listed = tomllib.loads(path.read_text(encoding="utf-8"))
        found = {node: bytes.fromhex(key) for node, key in listed.items()}
    except (OSError, ValueError, TypeError) as exc:
        raise InconsistentReply(f"the list that {PEERS_FILE!r} of the node config names cannot be read: {exc}") from exc
    if wrong := sorted(node for node, key in found.items() if len(key) != 32):
        raise InconsistentReply(f"the list that {PEERS_FILE!r} names has no key of 32 bytes for {', '.join(wrong)}")
    return found
