"""What an app keeps from one message to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from fedq.apps.errors import CheckpointUnavailable
from fedq.apps.recorddict import RecordDict
from fedq.apps.user_config import UserConfig

__all__ = ["Context", "Saver"]

Saver: TypeAlias = "Callable[[Context, Iterable[str] | None], None]"
"""Writes a checkpoint; the second argument is `folded` of `Context.save`."""


@dataclass
class Context:
    """The Context of a run on a node, or of a run's ServerApp.

    Parameters
    ----------
    run_id
        The run.
    node_id
        The name of the node; empty for the ServerApp.
    node_config
        What the operator of the node says about it, the same for all runs.
    state
        Records that stay where they are. A ClientApp finds here what the previous one of the same run left, unless that
        one ended with an error; a ServerApp what it had when it saved last.
    run_config
        The config that the run was submitted with.
    """

    run_id: int
    node_id: str
    node_config: UserConfig
    state: RecordDict
    run_config: UserConfig
    # Set by the runtime, and by nobody else; it is neither compared nor written anywhere.
    _saver: Saver | None = field(default=None, init=False, repr=False, compare=False)

    def save(self, folded: Iterable[str] | None = None) -> None:
        """Write a checkpoint of a ServerApp's Context: should the ServerApp be started again, it goes on from here.

        Parameters
        ----------
        folded
            Ids of messages whose replies are contained in `state`, one way or the other, so that they need not be kept.
            None: those of all replies that were received so far.

        Raises CheckpointUnavailable in a ClientApp, whose Context is saved together with its reply, and where there is
        no runtime. When it returns, the checkpoint is written.
        """
        if self._saver is None:
            where = f"on node {self.node_id}" if self.node_id else "outside of a run"
            raise CheckpointUnavailable(
                f"context.save() was called {where}: only a ServerApp writes checkpoints; "
                "the Context of a ClientApp is saved together with its reply",
                run_id=self.run_id,
                node_id=self.node_id or None,
            )
        self._saver(self, folded)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_saver": None}
