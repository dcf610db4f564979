"""Whose code a node runs.

Code reaches a node as an app bundle, named by its BLAKE3 digest. The operator's policy is one of three: bundles signed
with a trusted Ed25519 key, bundles whose digest is pinned, or, said out loud when the service starts, anything.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedq.apps.errors import FedqError

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


class TrustError(FedqError, ValueError):
    """A pinned digest or a key that cannot be read."""


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What a node asks of a bundle before it runs it.

    Attributes:
        keys: raw Ed25519 public keys (32 bytes each); a bundle signed with one of them is trusted.
        digests: lower-case hex BLAKE3 digests of bundles that are trusted whoever made them.

    With neither, anything is run.
    """

    keys: tuple[bytes, ...] = ()
    digests: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *, keys: Iterable[str | bytes] = (), digests: Iterable[str] = ()) -> TrustPolicy:
        """A policy from what an operator writes: keys as hex, base64 or a path of a file with either; hex digests.

        Raises:
            TrustError: a key or a digest is none.
        """
        pinned = set()
        for text in digests:
            digest = text.strip().lower().removeprefix("blake3:")
            if not _DIGEST.match(digest):
                raise TrustError(f"{text!r} is no digest: a bundle is pinned by its 64 hex digits")
            pinned.add(digest)
        return cls(tuple(read_public_key(key) for key in keys), frozenset(pinned))

    @property
    def anything(self) -> bool:
        """Whether every bundle is run."""
        return not self.keys and not self.digests

    def describe(self) -> str:
        """One line for the log of the service."""
        if self.anything:
            return "trusts ANY app that the SuperLink sends (pin digests or name keys with --trust-… to change that)"
        parts = []
        if self.keys:
            parts.append(f"apps signed with one of {len(self.keys)} keys")
        if self.digests:
            parts.append(f"{len(self.digests)} pinned apps")
        return "trusts " + " and ".join(parts)

    def refusal(self, digest: str, signature: bytes | None) -> str | None:
        """Why the bundle ``digest`` may not run here, or None if it may.

        ``signature`` is an Ed25519 signature over the ASCII bytes of the hex digest.
        """
        if self.anything or digest in self.digests:
            return None
        if not self.keys:
            return f"the app {digest[:12]}… is not among the {len(self.digests)} that this node's operator has pinned"
        if not signature:
            return f"the app {digest[:12]}… carries no signature, and this node's operator asks for one"
        if any(_verifies(key, signature, digest.encode("ascii")) for key in self.keys):
            return None
        return f"the app {digest[:12]}… is not signed with a key that this node's operator trusts"


def read_public_key(text: str | bytes) -> bytes:
    """The 32 bytes of an Ed25519 public key given raw, as hex, as base64, or as the path of a file with one of them."""
    if isinstance(text, bytes) and len(text) == 32:
        return text
    word = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    word = word.strip()
    try:
        if word and len(word) < 4096 and Path(word).is_file():
            word = Path(word).read_text().strip()
    except OSError:
        pass
    if len(word) == 64:
        try:
            return bytes.fromhex(word)
        except ValueError:
            pass
    try:
        raw = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != 32:
        raise TrustError(f"{word[:80]!r} is no Ed25519 public key: give 32 bytes as hex or base64, or a file with them")
    return raw


def _verifies(key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise TrustError(
            "this node trusts signing keys, but cannot check signatures: install fedq[sign] (cryptography) on it"
        ) from None
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
