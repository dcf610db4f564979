"""What can go wrong between a process and its SuperLink.

FedqError
 └─ RelayError
     ├─ RelayUnavailable        no server answers there; waiting may help
     ├─ RelayAuthError          the server wants another user or password, or the ACL refuses the step
     ├─ RelayReadOnly           the server is a replica or may not write
     ├─ RelayFull               the server's memory is (nearly) used up
     ├─ RelayMisconfigured      the server evicts keys, is too old, or another such thing that loses data
     ├─ RelayCorrupt            a key holds what no step of ours wrote
     ├─ NodeUnknown             no node of that name is registered
     ├─ NodeTaken               another SuperNode serves that name
     ├─ RunNotFound             no such run, or no longer
     ├─ RunOver                 the run is over: nothing is written for it any more
     │   └─ RunStopped          somebody stopped it
     ├─ RunFailed               the ServerApp failed; carries the reason and the traceback
     ├─ RunTimeout              the run is not over yet
     ├─ Fenced                  another attempt of the ServerApp holds the run now
     ├─ RevisionLost            the server lost acknowledged writes: this attempt resumes from the checkpoint
     ├─ JournalMismatch         a repeated call asks for something else than the first time
     ├─ ObjectMissing           an array that a message names is not (completely) there
     └─ ObjectCorrupt           an array's bytes do not match its digest
"""

from __future__ import annotations

from fedq.apps.errors import FedqError


class RelayError(FedqError):
    """Root of the errors of this package."""


class RelayUnavailable(RelayError):
    """No server answers at the address."""


class RelayAuthError(RelayError):
    """The server refuses the user, the password or a command that the ACL does not allow."""


class RelayReadOnly(RelayError):
    """The server accepts no writes."""


class RelayFull(RelayError):
    """The server's memory is used up, or so nearly that no new message is accepted. Nothing was written."""


class RelayMisconfigured(RelayError):
    """The server's configuration would lose messages."""


class RelayCorrupt(RelayError):
    """A key holds a type or value that no step writes. Nothing was changed."""


class NodeUnknown(RelayError):
    """A message is addressed to a node that is not registered."""


class NodeTaken(RelayError):
    """A second SuperNode wants a name while the first one's lease is live."""


class RunNotFound(RelayError):
    """No run of that id is kept."""


class RunOver(RelayError):
    """The run has ended; the step wrote nothing."""


class RunStopped(RunOver):
    """The run was stopped by a person."""


class RunFailed(RelayError):
    """The run failed.

    Attributes:
        reason: one line, for people.
        traceback: the ServerApp's traceback, or None.
    """

    def __init__(
        self, message: str, *, reason: str = "", traceback: str | None = None, run_id: int | None = None
    ) -> None:
        super().__init__(message, run_id=run_id)
        self.reason = reason or message
        self.traceback = traceback


class RunTimeout(RelayError, TimeoutError):
    """The run did not end within the time that the caller was ready to wait."""


class Fenced(RelayError):
    """A newer attempt of this ServerApp holds the run: whatever this one still wants to write is refused."""


class RevisionLost(RelayError):
    """The run's revision is smaller than one seen before: the server lost a suffix of acknowledged writes."""


class JournalMismatch(RelayError):
    """A resumed ServerApp pushed something else than before its interruption."""


class ObjectMissing(RelayError):
    """An array is not there, or not completely."""


class ObjectCorrupt(RelayError):
    """An array's bytes do not have the digest that names them."""
