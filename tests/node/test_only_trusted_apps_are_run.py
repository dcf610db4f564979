"""The operator's policy decides whose code runs."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from fedq.apps.digest import digest_of
from fedq.node.trust import TrustError, TrustPolicy

APP = digest_of(b"an app")
OTHER = digest_of(b"another")


def key_pair() -> tuple[bytes, bytes]:
    """A public key, and its signature of APP."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    return private.public_key().public_bytes_raw(), private.sign(APP.encode())


def test_without_a_policy_anything_is_run_and_that_is_said() -> None:
    policy = TrustPolicy()

    assert policy.refusal(APP, None) is None
    assert "ANY app" in policy.describe()


def test_pinned_digests_are_run_and_no_others() -> None:
    policy = TrustPolicy.of(digests=[f"blake3:{APP.upper()}"])

    assert policy.refusal(APP, None) is None
    assert "not among the 1" in (policy.refusal(OTHER, None) or "")


def test_an_app_signed_with_a_trusted_key_is_run() -> None:
    public, signature = key_pair()
    stranger, _ = key_pair()

    assert TrustPolicy(keys=(stranger, public)).refusal(APP, signature) is None


def test_an_unsigned_app_and_a_strangers_signature_are_refused() -> None:
    public, _ = key_pair()
    _, strangers = key_pair()
    policy = TrustPolicy(keys=(public,))

    assert "no signature" in (policy.refusal(APP, None) or "")
    assert "not signed with a key" in (policy.refusal(APP, strangers) or "")
    assert "not signed with a key" in (policy.refusal(APP, b"short") or "")


def test_a_signature_of_another_app_is_refused() -> None:
    public, signature = key_pair()

    assert TrustPolicy(keys=(public,)).refusal(OTHER, signature) is not None


def test_keys_are_read_as_hex_base64_and_from_files(tmp_path: Path) -> None:
    public, _ = key_pair()
    file = tmp_path / "key.pub"
    file.write_text(public.hex() + "\n")

    policy = TrustPolicy.of(keys=[public, public.hex(), base64.b64encode(public).decode(), str(file)])

    assert set(policy.keys) == {public}


def test_what_is_no_key_or_digest_is_refused() -> None:
    with pytest.raises(TrustError, match="Ed25519"):
        TrustPolicy.of(keys=["/no/such/file"])
    with pytest.raises(TrustError, match="is no digest"):
        TrustPolicy.of(digests=["abc"])
