"""Key agreement, sealing, signatures and secret sharing, each from a library: `cryptography` and `pycryptodome`.

They are imported when they are needed; without them `MissingExtra` names the extra.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

from fedq.apps.errors import InconsistentReply
from fedq.apps.extras import require

SECRET_BYTES = 16
"""Seeds and shares. pycryptodome shares secrets of this size; 128 bits are also what X25519 is worth."""

_NONCE = 12


def fresh_secret() -> bytes:
    """A random secret of `SECRET_BYTES`, from the system."""
    return os.urandom(SECRET_BYTES)


def derived(secret: bytes, purpose: str) -> bytes:
    """32 bytes that follow from a secret and what they are for: HKDF with SHA-256 (RFC 5869)."""
    hkdf, hashes = _crypto("kdf.hkdf"), _crypto("hashes")
    key: bytes = hkdf.HKDF(
        algorithm=hashes.SHA256(), length=32, salt=None, info=b"fedq secagg " + purpose.encode()
    ).derive(secret)
    return key


def public_key(secret: bytes) -> bytes:
    """The X25519 public key (RFC 7748) of the private key that a secret stands for."""
    public: bytes = _private(secret).public_key().public_bytes_raw()
    return public


def agreed(secret: bytes, other_public: bytes, purpose: str) -> bytes:
    """The key of 32 bytes that two nodes derive alike, each from its secret and the other's public key.

    Raises:
        InconsistentReply: the public key is none, or one that gives a known result.
    """
    try:
        other = _crypto("asymmetric.x25519").X25519PublicKey.from_public_bytes(other_public)
        return derived(_private(secret).exchange(other), purpose)
    except ValueError as exc:
        raise InconsistentReply(f"a public key cannot be used: {exc}") from exc


def seal(key: bytes, data: bytes, context: str) -> bytes:
    """Encrypt and authenticate with ChaCha20-Poly1305 (RFC 8439); the random nonce comes first. `context` is bound."""
    nonce = os.urandom(_NONCE)
    sealed: bytes = nonce + _crypto("ciphers.aead").ChaCha20Poly1305(key).encrypt(nonce, data, context.encode())
    return sealed


def unseal(key: bytes, sealed: bytes, context: str) -> bytes:
    """The reverse of `seal`.

    Raises:
        InconsistentReply: the key or the context is another, or the data was changed.
    """
    invalid = require("cryptography.exceptions", "secagg", _PURPOSE).InvalidTag
    try:
        data: bytes = (
            _crypto("ciphers.aead").ChaCha20Poly1305(key).decrypt(sealed[:_NONCE], sealed[_NONCE:], context.encode())
        )
    except (invalid, ValueError) as exc:
        raise InconsistentReply("sealed data does not open: it was changed, or was not meant for this node") from exc
    return data


def signature(secret: bytes, data: bytes) -> bytes:
    """The Ed25519 signature (RFC 8032), 64 bytes, under a private key of 32 bytes."""
    private = _crypto("asymmetric.ed25519").Ed25519PrivateKey.from_private_bytes(secret)
    made: bytes = private.sign(data)
    return made


def signing_public_key(secret: bytes) -> bytes:
    """The Ed25519 public key of a private key; 32 bytes each."""
    private = _crypto("asymmetric.ed25519").Ed25519PrivateKey.from_private_bytes(secret)
    public: bytes = private.public_key().public_bytes_raw()
    return public


def verifies(public: bytes, signed: bytes, data: bytes) -> bool:
    """Whether this is the Ed25519 signature of the data under the private key of that public one."""
    invalid = require("cryptography.exceptions", "secagg", _PURPOSE).InvalidSignature
    try:
        _crypto("asymmetric.ed25519").Ed25519PublicKey.from_public_bytes(public).verify(signed, data)
    except (invalid, ValueError):
        return False
    return True


def split(secret: bytes, threshold: int, number: int) -> list[tuple[int, bytes]]:
    """Shamir's secret sharing: `number` shares, of which any `threshold` give the secret and fewer say nothing."""
    shares: list[tuple[int, bytes]] = _shamir().split(threshold, number, secret)
    return shares


def combine(shares: Sequence[tuple[int, bytes]]) -> bytes:
    """The secret, of exactly as many shares as the threshold says.

    Raises:
        InconsistentReply: two shares are the same, or one has another size.
    """
    try:
        secret: bytes = _shamir().combine(list(shares))
    except ValueError as exc:
        raise InconsistentReply(f"shares do not combine: {exc}") from exc
    return secret


def commitment(seed: bytes) -> bytes:
    """A digest that a seed can be checked by; it says nothing about one of 128 random bits."""
    return hashlib.sha256(b"fedq secagg commitment " + seed).digest()


_PURPOSE = "secure aggregation needs cryptography and pycryptodome"


def _private(secret: bytes) -> Any:
    return _crypto("asymmetric.x25519").X25519PrivateKey.from_private_bytes(derived(secret, "private key"))


def _crypto(module: str) -> Any:
    return require(f"cryptography.hazmat.primitives.{module}", "secagg", _PURPOSE)


def _shamir() -> Any:
    return require("Crypto.Protocol.SecretSharing", "secagg", _PURPOSE).Shamir
