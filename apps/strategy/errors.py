"""Errors of strategies.

StrategyError
 ├── CheckpointError   a checkpoint cannot be continued
 └── NoUsableReplies   training rounds without any reply that could be used
"""

from __future__ import annotations

from fedq.apps.errors import StrategyError


class CheckpointError(StrategyError):
    """A checkpoint is damaged, or was written by another strategy."""


class NoUsableReplies(StrategyError):
    """No reply of the last `rounds` training rounds could be used. `last_failure` says why the last one could not."""

    def __init__(self, rounds: int, last_failure: str, *, run_id: int | None = None) -> None:
        many = f"{rounds} training rounds in a row" if rounds > 1 else "the training round"
        super().__init__(
            f"no reply of {many} could be used (the last one: {last_failure}); the events of kind 'reply-failed' name "
            "each, mend the ClientApp or raise max_failed_rounds",
            run_id=run_id,
        )
        self.rounds = rounds
        self.last_failure = last_failure
