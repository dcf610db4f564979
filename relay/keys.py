"""Every key of the relay, in one place.

All keys of one *home* carry its hash tag, ``fedq:{<home>}:``, so that one atomic step touches one slot of a cluster and
a federation can spread over several homes. Whatever a node may write lies under ``node:<its name>:``, so that one ACL
pattern confines it; what it may only read (``run:<r>``, ``obj:<digest>``) never travels in a script's KEYS, because
EVALSHA demands read and write rights on those.

Each function says: type; who writes; who reads; how long it lives.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fedq.apps.errors import FedqError

PREFIX = "fedq"
SERVERAPP_QUEUE = "_serverapps"
"""The RQ queue of ServerApps. Node names cannot contain ``_``, so it never collides with a node's queue."""

GROUP = "supernode"
"""The one consumer group of every inbox."""

_NODE_NAME = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_HOME = re.compile(r"[A-Za-z0-9-]{1,32}\Z")


class InvalidName(FedqError, ValueError):
    """A name that the keyspace cannot hold."""


def check_node_name(name: str) -> str:
    """Return ``name`` if it can name a node: 1 to 64 letters, digits or ``-``. Raise :class:`InvalidName` otherwise."""
    if not isinstance(name, str) or not _NODE_NAME.match(name):
        raise InvalidName(f"{name!r} is no node name: use 1 to 64 letters, digits or '-' (such as clinic-a)")
    return name


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one home."""

    home: str = "0"

    def __post_init__(self) -> None:
        if not _HOME.match(self.home):
            raise InvalidName(f"{self.home!r} is no home: use 1 to 32 letters, digits or '-'")

    @property
    def base(self) -> str:
        """What every key of this home begins with."""
        return f"{PREFIX}:{{{self.home}}}:"

    # -- the federation ----------------------------------------------------------------------------------------------

    def nodes(self) -> str:
        """Set; operator or SuperNode; everyone; until ``fedq nodes rm``. The names of the registered nodes."""
        return f"{self.base}nodes"

    def housekeeper(self) -> str:
        """String with TTL; SuperLink; SuperLink; the lease of the housekeeping role."""
        return f"{self.base}housekeeper"

    def wake(self) -> str:
        """Stream of at most a few entries; SuperLink side; SuperLinks block on it; says that a run changed."""
        return f"{self.base}wake"

    def links(self) -> str:
        """Hash; SuperLink; SuperLink and CLI; SuperLink id -> slots and last beat (milliseconds)."""
        return f"{self.base}links"

    # -- one node: everything that it may write ----------------------------------------------------------------------

    def node(self, n: str) -> str:
        """What every key of node ``n`` begins with: the ACL pattern of the node is this and ``*``."""
        return f"{self.base}node:{n}:"

    def node_info(self, n: str) -> str:
        """Hash; node; everyone; until ``fedq nodes rm``. Labels, versions, slots, isolation."""
        return f"{self.node(n)}info"

    def node_alive(self, n: str) -> str:
        """String with TTL; node; everyone; the heartbeat."""
        return f"{self.node(n)}alive"

    def node_dispatcher(self, n: str) -> str:
        """String with TTL; node; node; the lease of the dispatcher role: ``holder|host|pid``."""
        return f"{self.node(n)}dispatcher"

    def inbox(self, n: str) -> str:
        """Stream with one group; ServerApp side adds, node deletes; node; an entry lives until it is answered."""
        return f"{self.node(n)}inbox"

    def claims(self, n: str) -> str:
        """Hash; node; node; message -> ``attempt|token|lease end in ms|worker``, until the message is answered."""
        return f"{self.node(n)}claims"

    def order(self, n: str, run: int) -> str:
        """Sorted set; both sides; both; unanswered messages of (run, node) by sequence number."""
        return f"{self.node(n)}order:{run}"

    def node_ctx(self, n: str, run: int) -> str:
        """Stream, the last versions; node; node; the Context of (run, node), newest entry wins; until the run ended."""
        return f"{self.node(n)}ctx:{run}"

    def out(self, n: str, message: str) -> str:
        """Hash; node; ServerApp side; the authoritative answer of a message, until it is freed."""
        return f"{self.node(n)}out:{message}"

    def replies(self, n: str, run: int) -> str:
        """Stream; node; ServerApp side blocks on it; pointers to answers, each until its answer is freed."""
        return f"{self.node(n)}replies:{run}"

    def log(self, n: str, run: int) -> str:
        """Stream, capped; node; CLI; what ClientApps logged and printed; until the run is removed."""
        return f"{self.node(n)}log:{run}"

    def node_obj(self, n: str, digest: str) -> str:
        """String, written after the chunks; node; ServerApp side; the manifest ``chunks|bytes`` of an upload."""
        return f"{self.node(n)}obj:{digest}"

    def node_obj_chunk(self, n: str, digest: str, i: int) -> str:
        """String; node; ServerApp side; chunk ``i`` of an uploaded array."""
        return f"{self.node(n)}obj:{digest}:{i}"

    def node_obj_owners(self, n: str, digest: str) -> str:
        """Set; node; node and clean-up; the answers and Context versions that name the array."""
        return f"{self.node(n)}obj:{digest}:owners"

    def node_objs(self, n: str, run: int) -> str:
        """Set; node; clean-up; the digests that the run made this node upload."""
        return f"{self.node(n)}objs:{run}"

    # -- arrays that go out ------------------------------------------------------------------------------------------

    def obj(self, digest: str) -> str:
        """String, written after the chunks; ServerApp side; nodes; the manifest ``chunks|bytes``."""
        return f"{self.base}obj:{digest}"

    def obj_chunk(self, digest: str, i: int) -> str:
        """String; ServerApp side; nodes; chunk ``i`` of an array."""
        return f"{self.base}obj:{digest}:{i}"

    def obj_owners(self, digest: str) -> str:
        """Set; ServerApp side; clean-up; owners are ``<run>:<checkpoint>`` and ``<run>:app|ctx|result``."""
        return f"{self.base}obj:{digest}:owners"

    # -- runs --------------------------------------------------------------------------------------------------------

    def run_counter(self) -> str:
        """String; submit; submit; the last run id given out."""
        return f"{self.base}run-counter"

    def submitted(self, client_token: str) -> str:
        """String with TTL; submit; submit; the run that this client token made: a repeated submit finds it."""
        return f"{self.base}submitted:{client_token}"

    def runs(self) -> str:
        """Sorted set; submit; everyone; run id by the time of submission (ms)."""
        return f"{self.base}runs"

    def alive_runs(self) -> str:
        """Set; submit, clean-up; SuperLinks; runs that are not over, or over and not yet cleaned."""
        return f"{self.base}runs:alive"

    def run(self, r: int) -> str:
        """Hash; SuperLink side; everyone; status, attempt, token, lease, config, bundle, result; 7 days by default."""
        return f"{self.base}run:{r}"

    def sent(self, r: int) -> str:
        """Hash; ServerApp side; SuperLinks; message -> ``node|entry|seq|deadline ms|checkpoint|on_offline``."""
        return f"{self.base}run:{r}:sent"

    def deadlines(self, r: int) -> str:
        """Sorted set; ServerApp side; SuperLinks; messages by expiry (ms)."""
        return f"{self.base}run:{r}:deadlines"

    def journal(self, r: int) -> str:
        """Hash; ServerApp; ServerApp; by call: push digests and results that could differ the second time."""
        return f"{self.base}run:{r}:journal"

    def run_nodes(self, r: int) -> str:
        """Set; ServerApp side; SuperLinks; the nodes that the clean-up has to visit."""
        return f"{self.base}run:{r}:nodes"

    def run_objs(self, r: int) -> str:
        """Set; ServerApp side; SuperLinks; ``<owner> <digest>`` of every shared array that the run adopted."""
        return f"{self.base}run:{r}:objs"

    def run_ctx(self, r: int) -> str:
        """Stream of one entry; ServerApp; SuperLinks; the ServerApp's Context: its newest checkpoint."""
        return f"{self.base}run:{r}:ctx"

    def events(self, r: int) -> str:
        """Stream, capped; SuperLink and ServerApp; everyone; status, rounds, metrics, logs; kept with the run."""
        return f"{self.base}run:{r}:events"
