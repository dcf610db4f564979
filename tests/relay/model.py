"""What the steps should do, said once more in plain Python: no server, no keys, no clock.

:class:`World` holds what a server would hold; each method is a step, changes the world as the step should, and returns
the outcome that the step should answer. :meth:`World.render` says what keys that comes to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from fedq.relay.claims import Claim, Commit, Renew
from fedq.relay.contexts import KEPT_VERSIONS
from fedq.relay.keys import Keys
from fedq.relay.messages import Answered, Push, Reason
from fedq.relay.runs import FREED_AT_ONCE, Step

NODES = ("a", "b")
STRANGER = "c"
"""A node that is not registered."""
CHUNKS = 2
SHARED = ""
"""The store of what goes out; the others are named after their node."""
FOREVER, FULL, SHORT = "forever", "full", "short"

Rendered = dict[str, object]


@dataclass
class Array:
    """An uploaded array: which parts are there and for how long, and who owns it."""

    parts: dict[str, str] = field(default_factory=dict)
    owners: set[str] = field(default_factory=set)
    owners_live: str = FOREVER

    @property
    def complete(self) -> bool:
        return {"manifest", *map(str, range(CHUNKS))} <= set(self.parts)


class Store:
    """The arrays below one prefix."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def __getitem__(self, digest: str) -> Array:
        return self.arrays.setdefault(digest, Array())

    def missing(self, digests: Iterable[str]) -> list[str]:
        return [d for d in digests if not self[d].complete]

    def own(self, digest: str, owner: str) -> None:
        if not self[digest].owners:
            self[digest].owners_live = FOREVER
        self[digest].owners.add(owner)

    def persist(self, digest: str) -> None:
        array = self[digest]
        array.parts = dict.fromkeys(array.parts, FOREVER)
        array.owners_live = FOREVER

    def disown(self, digest: str, owner: str) -> bool:
        array = self[digest]
        array.owners.discard(owner)
        if array.owners == {"upload"}:
            array.owners_live = FULL
            for part in array.parts:
                if part == "manifest" or "manifest" in array.parts:
                    array.parts[part] = FULL
            return False
        if array.owners:
            return False
        if array.parts.pop("manifest", None):
            array.parts.clear()
        return True

    def adopt(self, digests: Iterable[str], owner: str, *, expiring: bool) -> list[str]:
        for d in digests:
            fresh = not self[d].owners
            self.own(d, owner)
            if fresh and expiring:
                self[d].owners_live = FULL
            if self[d].complete:
                self[d].parts = {part: FULL if live == SHORT else live for part, live in self[d].parts.items()}
                if self[d].owners_live == SHORT:
                    self[d].owners_live = FULL
        return self.missing(digests)


@dataclass
class Answer:
    token: str
    ok: bool
    body: bytes
    objs: tuple[str, ...]
    own: tuple[str, ...]
    code: int
    attempt: int
    nbytes: int


@dataclass
class Message:
    """A message from its push on; the claim is part of it."""

    id: str
    run: int
    node: str
    entry: str
    seq: int
    checkpoint: int
    call: int
    objs: tuple[str, ...]
    offline: str
    late: bool
    attempt: int | None = None
    token: str = ""
    lapsed: bool = False
    answer: Answer | None = None
    open: bool = True
    sent: bool = True
    due: bool = True

    @property
    def claimed(self) -> bool:
        return self.attempt is not None

    def release(self) -> None:
        self.attempt, self.token, self.lapsed = None, "", False


@dataclass
class Version:
    """A version of a Context."""

    data: bytes
    objs: tuple[str, ...]
    message: str = ""
    checkpoint: int = 0
    free: tuple[str, ...] = ()
    token: str = ""
    entry: str = ""


@dataclass
class Run:
    id: int
    max_deliveries: int = 0
    max_attempts: int = 0
    status: str = "pending"
    token: str | None = None
    lease: str | None = None
    owner: str | None = None
    attempt: int = 0
    tries: int = 0
    checkpoint: int = 0
    revision: int = 0
    seq: int = 0
    event: tuple[int, int] | None = None
    notes: int = 0
    detail: bool = False
    ended_by: str | None = None
    result: tuple[bytes, tuple[str, ...]] | None = None
    journal: dict[str, str] = field(default_factory=dict)
    ctx: list[Version] = field(default_factory=list)
    events: list[tuple[str, str]] = field(default_factory=list)
    nodes: set[str] = field(default_factory=set)
    objs: set[str] = field(default_factory=set)
    counted: bool = True
    cleaned: bool = False
    resumed_by: str | None = None

    @property
    def alive(self) -> bool:
        return self.status in ("pending", "running")


@dataclass
class Node:
    """What lies below a node's prefix, messages apart."""

    alive: bool = True
    inbox: list[str] = field(default_factory=list)
    store: Store = field(default_factory=Store)
    ctx: dict[int, list[Version]] = field(default_factory=dict)
    replies: dict[int, list[str]] = field(default_factory=dict)
    objs: dict[int, set[str]] = field(default_factory=dict)
    logs: dict[int, list[str]] = field(default_factory=dict)

    def wake(self) -> None:
        if self.alive and self.inbox[-1:] != ["wake"]:
            self.inbox.append("wake")


class World:
    """All that the steps can change."""

    def __init__(self) -> None:
        self.nodes = {name: Node() for name in NODES}
        self.shared = Store()
        self.runs: dict[int, Run] = {}
        self.submitted: dict[str, int] = {}
        self.messages: list[Message] = []
        self.leases: dict[str, str] = {}

    # -- looking ------------------------------------------------------------------------------------------------------

    def store(self, place: str) -> Store:
        return self.nodes[place].store if place else self.shared

    def order(self, node: str, run: int) -> list[Message]:
        waiting = [m for m in self.messages if (m.node, m.run) == (node, run) and m.open]
        return sorted(waiting, key=lambda m: m.seq)

    def find(self, identity: str) -> Message | None:
        """The message of this id that is not freed."""
        return next((m for m in self.messages if m.id == identity and m.sent), None)

    # -- submit, claim, end -------------------------------------------------------------------------------------------

    def submit(self, client: str, bundles: Sequence[str], max_deliveries: int, max_attempts: int) -> int | None:
        """The run's id, or None for MISSING."""
        if client in self.submitted:
            for d in bundles:
                if len(self.shared[d].owners) > 1:
                    self.shared[d].owners.discard("upload")
            return self.submitted[client]
        if self.shared.missing(bundles):
            return None
        run = Run(len(self.runs) + 1, max_deliveries, max_attempts)
        self.runs[run.id] = run
        self.submitted[client] = run.id
        run.events.append(("status", "pending"))
        for d in bundles:
            self.shared.own(d, f"{run.id}:app")
            self.shared[d].owners.discard("upload")
            run.objs.add(f"{run.id}:app {d}")
            self.shared.persist(d)
        return run.id

    def claim_run(self, run: Run, token: str, owner: str) -> Step:
        if not run.alive:
            return Step.OVER
        if run.token != token:
            if run.token and run.lease == "live":
                return Step.BUSY
            if run.max_attempts and run.tries >= run.max_attempts:
                return Step.EXHAUSTED
            run.token, run.lease, run.owner, run.detail = token, "live", owner, False
            run.attempt += 1
            run.tries += 1
            if run.status == "pending":
                run.status = "running"
                run.events.append(("status", "running"))
        run.revision += 1
        return Step.OK

    def renew_run(self, run: Run, token: str, *, keep: bool, counts: bool = True) -> Step:
        if not run.alive:
            return Step.OVER
        if run.token != token:
            return Step.FENCED
        if keep:
            run.lease = "live"
        else:
            run.token, run.owner, run.lease = "", "", None
            if not counts and run.tries > 0:
                run.tries -= 1
        return Step.OK

    def finish(self, run: Run, token: str, status: str, body: bytes, objs: tuple[str, ...]) -> Step:
        if not run.alive:
            return Step.OK if token and run.ended_by == token else Step.OVER
        if token and run.token != token:
            return Step.FENCED
        if self.shared.missing(objs):
            return Step.MISSING
        for d in objs:
            self.shared.own(d, f"{run.id}:result")
            run.objs.add(f"{run.id}:result {d}")
            self.shared.persist(d)
        run.status, run.ended_by, run.result, run.lease, run.detail = status, token, (body, objs), None, False
        run.events.append(("status", status))
        return Step.OK

    def resume(self, run: Run, token: str) -> Step:
        if run.alive:
            return Step.OK if run.resumed_by == token else Step.ALIVE
        if run.status != "failed":
            return Step.OVER
        if run.cleaned:
            return Step.CLEANED
        run.status, run.tries, run.resumed_by = "pending", 0, token
        run.token = run.lease = run.owner = run.ended_by = run.result = None
        run.events.append(("status", "pending"))
        return Step.OK

    # -- the ServerApp ------------------------------------------------------------------------------------------------

    def push(
        self,
        run: Run,
        token: str,
        checkpoint: int,
        call: int,
        request: str,
        messages: Sequence[Message],
        objs: tuple[str, ...],
    ) -> Push:
        """``messages`` lack entry and number, which they get."""
        if not run.alive:
            return Push.STOPPED
        if run.token != token:
            return Push.FENCED
        if run.checkpoint != checkpoint:
            return Push.STALE
        name = f"push:{call}"
        if run.journal.get(name, request) != request:
            return Push.MISMATCH
        if any(m.node not in self.nodes for m in messages):
            return Push.UNKNOWN_NODE
        if self.shared.missing(objs):
            return Push.MISSING
        run.revision += 1
        run.journal[name] = request
        for d in objs:
            self.shared.own(d, f"{run.id}:{checkpoint}")
            run.objs.add(f"{run.id}:{checkpoint} {d}")
            self.shared.persist(d)
        for m in messages:
            if self.find(m.id) is None:
                run.seq += 1
                m.seq = run.seq
                self.messages.append(m)
                self.nodes[m.node].inbox.append(m.id)
                run.nodes.add(m.node)
        return Push.OK

    def save(
        self,
        run: Run,
        token: str,
        checkpoint: int,
        data: bytes,
        objs: tuple[str, ...],
        folded: tuple[str, ...],
    ) -> Step:
        if not run.alive:
            return Step.STOPPED
        if run.token != token:
            return Step.FENCED
        if run.checkpoint != checkpoint:
            newest = run.ctx[-1] if run.ctx else None
            repeated = newest is not None and (newest.token, newest.data) == (token, data)
            return Step.OK if run.checkpoint == checkpoint + 1 and repeated else Step.STALE
        if self.shared.missing(objs):
            return Step.MISSING
        run.journal.clear()
        run.checkpoint += 1
        for d in objs:
            self.shared.own(d, f"{run.id}:ctx{run.checkpoint}")
            run.objs.add(f"{run.id}:ctx{run.checkpoint} {d}")
            self.shared.persist(d)
        for old in run.ctx:
            for d in old.objs:
                self.shared.disown(d, f"{run.id}:ctx{old.checkpoint}")
                run.objs.discard(f"{run.id}:ctx{old.checkpoint} {d}")
        run.ctx = [Version(data, objs, checkpoint=run.checkpoint, free=folded, token=token)]
        run.tries = 1
        run.revision += 1
        self.free(run, token, folded[:FREED_AT_ONCE])
        return Step.OK

    def free(self, run: Run, token: str, ids: Iterable[str]) -> int:
        if token and run.token != token:
            return 0
        freed, checkpoints = 0, set()
        for m in [m for m in self.messages if m.id in set(ids) and m.sent and m.run == run.id]:
            if m.answer is None:
                continue
            node = self.nodes[m.node]
            for d in m.answer.own:
                if node.store.disown(d, m.id):
                    node.objs.get(run.id, set()).discard(d)
            node.replies[run.id].remove(m.id)
            m.answer, m.sent, m.due = None, False, False
            checkpoints.add(m.checkpoint)
            freed += 1
        checkpoints -= {m.checkpoint for m in self.messages if m.run == run.id and m.sent}
        for member in list(run.objs):
            owner, d = member.split()
            if owner in {f"{run.id}:{c}" for c in checkpoints}:
                self.shared.disown(d, owner)
                run.objs.discard(member)
        return freed

    def event(self, run: Run, token: str, checkpoint: int, number: int, kind: str, data: str) -> Step:
        if not run.alive:
            return Step.OVER
        if run.token != token:
            return Step.FENCED
        if (checkpoint, number) <= (run.event or (0, 0)):
            return Step.SEEN
        run.event = (checkpoint, number)
        run.events.append((kind, data))
        run.revision += 1
        return Step.OK

    def note(self, run: Run, token: str, data: str, most: int) -> str:
        if not run.alive:
            return "OVER"
        if run.token != token:
            return "FENCED"
        run.notes += 1
        if run.notes <= most:
            run.events.append(("log", data))
        return "OK"

    def journal(self, run: Run, token: str, checkpoint: int, name: str, value: str) -> str:
        if not run.alive:
            return "OVER"
        if run.token != token:
            return "FENCED"
        if run.checkpoint != checkpoint:
            return "STALE"
        run.revision += 1
        return run.journal.setdefault(name, value)

    def adopt(self, run: Run, token: str, owner: str, digests: Sequence[str]) -> list[str] | str:
        """A ServerApp's upload begins."""
        if not run.alive:
            return "OVER"
        if run.token != token:
            return "FENCED"
        run.objs |= {f"{owner} {d}" for d in digests}
        return self.shared.adopt(digests, owner, expiring=False)

    def adopt_bundle(self, digests: Sequence[str]) -> list[str]:
        return self.shared.adopt(digests, "upload", expiring=True)

    def adopt_node(self, run: Run, node: str, message: str, digests: Sequence[str]) -> list[str] | str:
        """A node's upload begins."""
        if not run.alive:
            return "OVER"
        self.nodes[node].objs.setdefault(run.id, set()).update(digests)
        return self.nodes[node].store.adopt(digests, f"up:{run.id}:{message}", expiring=False)

    # -- the nodes ----------------------------------------------------------------------------------------------------

    def claim(self, m: Message, token: str, entry: str) -> Claim:
        run = self.runs[m.run]
        if not run.alive:
            return Claim.STOPPED
        if not m.open or entry != m.entry:
            return Claim.GONE
        attempt = m.attempt or 0
        if m.claimed and m.token == token:
            m.lapsed = False
            return Claim.OK
        if m.claimed and m.token:
            return Claim.LAPSED if m.lapsed else Claim.BUSY
        if m.late:
            return Claim.EXPIRED
        if self.order(m.node, m.run)[0] is not m:
            return Claim.NOT_YET
        if run.max_deliveries and attempt >= run.max_deliveries:
            return Claim.EXHAUSTED
        m.attempt, m.token, m.lapsed = attempt + 1, token, False
        return Claim.OK

    def renew(self, m: Message, token: str, entry: str) -> Renew:
        if not self.runs[m.run].alive:
            return Renew.STOPPED
        if not m.open or entry != m.entry:
            return Renew.COMMITTED if m.answer and m.answer.token == token else Renew.CANCELLED
        if not m.claimed or not m.token:
            return Renew.UNCLAIMED
        if m.token != token:
            return Renew.SUPERSEDED
        m.lapsed = False
        return Renew.OK

    def release(self, m: Message, token: str, *, counts: bool, lapsed: bool) -> bool:
        if not m.open or not m.claimed or not m.token or m.token != token or (lapsed and not m.lapsed):
            return False
        assert m.attempt is not None
        m.attempt = m.attempt if counts else max(0, m.attempt - 1)
        m.token, m.lapsed = "", False
        self.nodes[m.node].wake()
        return True

    def commit(
        self,
        m: Message,
        token: str,
        entry: str,
        *,
        ok: bool,
        body: bytes,
        objs: tuple[str, ...],
        context: tuple[bytes, tuple[str, ...]] | None,
        code: int,
    ) -> tuple[Commit, set[str]]:
        run, node = self.runs[m.run], self.nodes[m.node]
        if m.answer is not None:
            return (Commit.COMMITTED if m.answer.token == token else Commit.SUPERSEDED), set()
        if not run.alive:
            return Commit.STOPPED, set()
        if not m.open or entry != m.entry or not m.claimed or m.token != token:
            return Commit.SUPERSEDED, set()
        own = tuple(d for d in objs if d not in m.objs)
        context_objs = context[1] if context else ()
        if missing := node.store.missing((*own, *context_objs)):
            return Commit.MISSING, set(missing)
        upload = f"up:{run.id}:{m.id}"
        assert m.attempt is not None
        m.answer = Answer(token, ok, body, objs, own, code, m.attempt, len(body))
        node.replies.setdefault(run.id, []).append(m.id)
        for d in own:
            self._keep(node, d, m.id, upload)
        if context is not None:
            versions = node.ctx.setdefault(run.id, [])
            versions.append(Version(context[0], context[1], message=m.id))
            self.version_owned = (node, run, upload, versions)
        self._close(m)
        return Commit.COMMITTED, set()

    def name_version(self, entry: str) -> None:
        """The Context version of the commit just made has this id: its arrays are owned, and old versions go."""
        node, run, upload, versions = self.version_owned
        versions[-1].entry = entry
        for d in versions[-1].objs:
            node.objs.setdefault(run.id, set()).add(d)
            self._keep(node, d, f"ctx:{run.id}:{entry}", upload)
        while len(versions) > KEPT_VERSIONS:
            old = versions.pop(0)
            for d in old.objs:
                if node.store.disown(d, f"ctx:{run.id}:{old.entry}"):
                    node.objs[run.id].discard(d)

    @staticmethod
    def _keep(node: Node, digest: str, owner: str, upload: str) -> None:
        node.store.own(digest, owner)
        node.store[digest].owners.discard(upload)
        node.store.persist(digest)

    def _close(self, m: Message) -> None:
        m.open = False
        m.release()
        node = self.nodes[m.node]
        node.inbox.remove(m.id)
        if node.inbox:
            node.wake()

    def answer(self, m: Message, entry: str, reason: Reason, body: bytes, code: int, token: str) -> Answered:
        run = self.runs[m.run]
        if m.answer is not None:
            return Answered.ALREADY
        if not run.alive:
            return Answered.RUN_OVER
        if token and token != run.token:
            return Answered.FENCED
        if not m.open or entry != m.entry:
            return Answered.GONE
        used_up = run.max_deliveries and (m.attempt or 0) >= run.max_deliveries and not m.token
        wrong = {
            Reason.EXPIRED: not m.late,
            Reason.OFFLINE: self.nodes[m.node].alive,
            Reason.EXHAUSTED: not used_up,
        }
        if wrong.get(reason):
            return Answered.NOT_SO
        m.answer = Answer(f"answer:{reason.value}", False, body, (), (), code, m.attempt or 0, len(body))
        self.nodes[m.node].replies.setdefault(m.run, []).append(m.id)
        self._close(m)
        return Answered.ANSWERED

    def log(self, run: Run, node: str, line: str) -> bool:
        if not run.alive:
            return False
        self.nodes[node].logs.setdefault(run.id, []).append(line)
        return True

    def take_lease(self, key: str, holder: str, dead: str, *, drop: bool) -> tuple[str, ...]:
        now = self.leases.get(key)
        if now and now not in (holder, dead):
            return ("OK",) if drop else ("HELD", now)
        if drop:
            self.leases.pop(key, None)
        else:
            self.leases[key] = holder
        return ("OK",)

    # -- clean-up -----------------------------------------------------------------------------------------------------

    def clean_node(self, run: Run, name: str, most: int) -> str:
        if run.alive:
            return "ALIVE"
        run.cleaned = True
        node = self.nodes[name]
        if waiting := self.order(name, run.id)[:most]:
            for m in waiting:
                node.inbox.remove(m.id)
                m.open = False
                m.release()
            node.wake()
            return "MORE"
        answered = node.replies.get(run.id, [])[:most]
        for m in [m for m in self.messages if m.id in answered and m.answer]:
            assert m.answer is not None
            for d in m.answer.own:
                if node.store.disown(d, m.id):
                    node.objs.get(run.id, set()).discard(d)
            m.answer = None
            node.replies[run.id].remove(m.id)
        if len(answered) == most:
            return "MORE"
        lines = node.logs.get(run.id, [])[:most]
        run.events += [("log", line) for line in lines]
        node.logs[run.id] = node.logs.get(run.id, [])[most:]
        if len(lines) == most:
            return "MORE"
        for version in node.ctx.pop(run.id, []):
            for d in version.objs:
                if node.store.disown(d, f"ctx:{run.id}:{version.entry}"):
                    node.objs[run.id].discard(d)
        for d in node.objs.pop(run.id, set()):
            others = {m.id for m in self.messages if m.answer}
            array = node.store[d]
            foreign = {
                owner
                for owner in array.owners
                if (owner.split(":")[1] != str(run.id) if ":" in owner else owner in others)
            }
            for owner in array.owners - foreign:
                node.store.disown(d, owner)
        return "DONE"

    def clean_run(self, run: Run, most: int, *, everything: bool) -> set[str] | str:
        """The members that may go; the step takes ``most`` of them, in an order of its own."""
        if run.alive:
            return "ALIVE"
        run.cleaned = True
        return {member for member in run.objs if everything or not member.startswith(f"{run.id}:result ")}

    def clean_members(self, run: Run, members: Iterable[str]) -> None:
        for member in members:
            owner, d = member.split()
            self.shared.disown(d, owner)
            run.objs.discard(member)

    def clean_rest(self, run: Run) -> None:
        run.journal.clear()
        run.ctx.clear()
        run.nodes.clear()
        run.token = run.lease = run.event = run.owner = None
        run.counted = False
        for m in self.messages:
            if m.run == run.id:
                m.sent = m.due = False

    # -- what that comes to -------------------------------------------------------------------------------------------

    def render(self, keys: Keys) -> Rendered:
        """Every key that is there, and what it holds; lists where order counts."""
        out: Rendered = {keys.nodes(): set(NODES)}
        out[keys.runs()] = {str(r) for r in self.runs}
        out[keys.alive_runs()] = {str(r.id) for r in self.runs.values() if r.counted}
        out.update({keys.submitted(client): str(r) for client, r in self.submitted.items()})
        out.update(self.leases)
        if self.runs:
            out[keys.run_counter()] = str(len(self.runs))
        self._render_arrays(out, keys.obj(""), self.shared)
        for name, node in self.nodes.items():
            self._render_node(out, keys, name, node)
        for run in self.runs.values():
            self._render_run(out, keys, run)
        return {key: value for key, value in out.items() if value not in ([], {}, set())}

    @staticmethod
    def _render_arrays(out: Rendered, prefix: str, store: Store) -> None:
        for digest, array in store.arrays.items():
            if array.owners:
                out[f"{prefix}{digest}:owners"] = (array.owners, array.owners_live)
            for part, live in array.parts.items():
                out[f"{prefix}{digest}" + ("" if part == "manifest" else f":{part}")] = live

    def _render_node(self, out: Rendered, keys: Keys, name: str, node: Node) -> None:
        out[keys.inbox(name)] = node.inbox
        if node.alive:
            out[keys.node_alive(name)] = "1"
        out[keys.claims(name)] = {
            m.id: (m.attempt, m.token, "free" if not m.token else "lapsed" if m.lapsed else "live")
            for m in self.messages
            if m.node == name and m.claimed
        }
        self._render_arrays(out, keys.node_obj(name, ""), node.store)
        for r in self.runs:
            out[keys.order(name, r)] = [m.id for m in self.order(name, r)]
            out[keys.node_ctx(name, r)] = [(v.data.decode(), " ".join(v.objs), v.message) for v in node.ctx.get(r, [])]
            out[keys.replies(name, r)] = node.replies.get(r, [])
            out[keys.node_objs(name, r)] = node.objs.get(r, set())
            out[keys.log(name, r)] = node.logs.get(r, [])
        for m in self.messages:
            if m.node == name and (a := m.answer):
                out[keys.out(name, m.id)] = {
                    "token": a.token,
                    "run": str(m.run),
                    "seq": str(m.seq),
                    "ok": str(int(a.ok)),
                    "body": a.body.hex(),
                    "objs": " ".join(a.objs),
                    "own": " ".join(a.own),
                    "code": str(a.code),
                    "bytes": str(a.nbytes),
                    "attempt": str(a.attempt),
                }

    def _render_run(self, out: Rendered, keys: Keys, run: Run) -> None:
        fields: dict[str, str | None] = {
            "status": run.status,
            "token": run.token,
            "lease": run.lease,
            "owner": run.owner,
            "attempt": str(run.attempt),
            "tries": str(run.tries),
            "checkpoint": str(run.checkpoint),
            "rev": str(run.revision),
            "seq": str(run.seq),
            "event": "|".join(map(str, run.event)) if run.event else None,
            "notes": str(run.notes) if run.notes else None,
            "detail": "waits" if run.detail else None,
            "ended_by": run.ended_by,
            "cleaned": "1" if run.cleaned else None,
            "resumed_by": run.resumed_by,
            "result": run.result[0].decode() if run.result else None,
            "result_objs": " ".join(run.result[1]) if run.result else None,
        }
        out[keys.run(run.id)] = {name: value for name, value in fields.items() if value is not None}
        sent = [m for m in self.messages if m.run == run.id and m.sent]
        out[keys.sent(run.id)] = {m.id: f"{m.node}|{m.entry}|{m.seq}|{m.checkpoint}|{m.offline}" for m in sent}
        out[keys.deadlines(run.id)] = {m.id for m in sent if m.due}
        out[keys.journal(run.id)] = dict(run.journal)
        out[keys.run_nodes(run.id)] = set(run.nodes)
        out[keys.run_objs(run.id)] = set(run.objs)
        out[keys.run_ctx(run.id)] = [
            (str(v.checkpoint), v.data.decode(), " ".join(v.objs), " ".join(v.free), v.token) for v in run.ctx
        ]
        out[keys.events(run.id)] = list(run.events)
