"""The job that bare RQ does for comparison. Importing this imports nothing else, so that its workers stay small."""

from __future__ import annotations


def noop() -> None:
    """Do nothing."""
