"""The steps, called in any order that a network, a scheduler or a crash can bring about, against the model.

A crash between two steps is the absence of the second; a lost answer is a repeated call; a zombie is a call with a
token that has been superseded. After every call the whole server is compared with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fedq.apps.error import Error, ErrorCode
from fedq.apps.wire import encode_error
from fedq.relay import claims, cleanup, contexts, events, messages, nodes, runs
from fedq.relay.claims import Claim, Commit
from fedq.relay.connection import Relay
from fedq.relay.errors import RunNotFound
from fedq.relay.keys import GROUP
from fedq.relay.messages import Answered, Push, Reason
from fedq.relay.runs import Step
from fedq.relay.texts import text
from tests.relay.model import CHUNKS, FULL, NODES, SHARED, SHORT, STRANGER, Message, Run, Store, World
from tests.relay.observed import acknowledged, observe

APP_TOKENS = st.sampled_from(["now", "now", "now", "now", "s0", "s1"])
"""Of a ServerApp's attempt: mostly the one that holds the run."""
TOKENS = st.sampled_from(["now", "now", "now", "w0", "w1", "w2"])
"""Of a worker: mostly the one that holds the claim."""
DIGESTS = st.sampled_from([(), (), ("x",), ("y",), ("x", "y"), ("z",)])
SOME = st.sampled_from([("x",), ("y",), ("x", "y"), ("z",)])
PICK = st.integers(0, 7)
TWICE = st.sampled_from([1, 1, 2])
PLACES = st.sampled_from([SHARED, *NODES])
UNFINISHED_MS = 900_000
LASTING = 3_600.0
"""Seconds of every lease and heartbeat: they lapse when a rule says so, not when the machine stands still."""
BATCH = 2
"""Messages that one call of a clean-up takes: crashes fall between them."""


@dataclass(frozen=True)
class Kind:
    """A kind of call: how often it is made, when it can be made, and with what."""

    name: str
    weight: int
    when: Callable[[Any], bool]
    arguments: st.SearchStrategy[dict[str, Any]]


F = TypeVar("F", bound=Callable[..., None])
KINDS: list[Kind] = []


def step(
    weight: int, *, when: Callable[[Any], bool] = lambda self: True, **arguments: st.SearchStrategy[Any]
) -> Callable[[F], F]:
    """A method that the machine calls. Not a rule by itself: Hypothesis would leave out half of the rules in each
    example, and without a push, a claim and a commit next to nothing happens."""

    def register(method: F) -> F:
        KINDS.append(Kind(method.__name__, weight, when, st.fixed_dictionaries(arguments)))
        return method

    return register


class Protocol(RuleBasedStateMachine):
    """Up to four runs, two nodes, ServerApps and workers that may all be zombies."""

    def relay(self) -> Relay:
        raise NotImplementedError

    @initialize(tries=st.sampled_from([0, 2]))
    def begin(self, tries: int) -> None:
        self.server = self.relay()
        self.redis.flushdb()
        self.world = World()
        self.calls: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
        self.count = 0
        for name in NODES:
            nodes.add(self.server, name)
            nodes.beat(self.server, name, ttl=LASTING)
            self.redis.xgroup_create(self.server.keys.inbox(name), GROUP, id="0", mkstream=True)
        for number in range(2):
            run = self._submit(f"first-{number}", (), 2 - tries if number else tries, tries if number else 0)
            assert run is not None
            self._claim_run(run, "s0")
        for digest in "xy":
            self.upload(0, "now", (digest,), ["0", "1", "manifest"], "")
        self.push(0, "now", ("a", "b"), ("x",), False, "wait", 1, 0)
        self.push(0, "now", ("a",), (), False, "wait", 1, 0)

    @property
    def redis(self) -> Any:
        return self.server.redis

    def fresh(self) -> str:
        """A value that has not been used."""
        self.count += 1
        return f"v{self.count}"

    def run_of(self, pick: int) -> Run:
        """Mostly the first: what happens there gets deep; the others see that it is left alone."""
        ids = sorted(self.world.runs)
        return self.world.runs[ids[0 if pick < 5 else pick % len(ids)]]

    def message_of(self, pick: int) -> Message:
        """The later picks are messages whose turn it is, and whose run lives."""
        first: dict[tuple[str, int], Message] = {}
        for m in self.world.messages:
            if m.open and self.world.runs[m.run].alive:
                first.setdefault((m.node, m.run), m)
        among = list(first.values()) if pick > 2 and first else self.world.messages
        return among[pick % len(among)]

    def app_token(self, run: Run, token: str) -> str:
        return (run.token or "s0") if token == "now" else token

    def token(self, m: Message, token: str) -> str:
        return (m.token or (m.answer.token if m.answer else "w0")) if token == "now" else token

    @rule(data=st.data())
    def anything(self, data: st.DataObject) -> None:
        possible = [kind for kind in KINDS if kind.when(self)]
        among = [at for at, kind in enumerate(possible) for _ in range(kind.weight)]
        kind = possible[data.draw(st.sampled_from(among), label="kind")]
        getattr(self, kind.name)(**data.draw(kind.arguments, label=kind.name))

    # -- runs ---------------------------------------------------------------------------------------------------------

    def _submit(self, client: str, bundles: tuple[str, ...], deliveries: int, attempts: int) -> Run | None:
        spec = runs.RunSpec(
            client_token=client,
            server_bundle=bundles[0] if bundles else "",
            client_bundle=bundles[-1] if bundles else "",
            max_deliveries=deliveries,
            max_attempts=attempts,
        )
        expected = self.world.submit(client, bundles, deliveries, attempts)
        try:
            number = runs.submit(self.server, spec)
        except RunNotFound:
            assert expected is None
            return None
        assert number == expected
        return self.world.runs[number]

    @step(1, when=lambda self: len(self.world.runs) < 4, bundles=DIGESTS, times=TWICE)
    def submit(self, bundles: tuple[str, ...], times: int) -> None:
        client = self.fresh()
        for _ in range(times):
            self._submit(client, bundles, 2, 2)

    @step(2, number=PICK, bundles=DIGESTS)
    def submit_again(self, number: int, bundles: tuple[str, ...]) -> None:
        clients = sorted(self.world.submitted)
        self._submit(clients[number % len(clients)], bundles, 2, 2)

    def _claim_run(self, run: Run, token: str) -> None:
        claimed = runs.claim_run(self.server, run.id, token, lease=LASTING, owner=f"owner of {token}")
        assert claimed.outcome is self.world.claim_run(run, token, f"owner of {token}")
        if claimed.outcome is Step.OK:
            assert (claimed.attempt, claimed.checkpoint) == (run.attempt, run.checkpoint)
            assert claimed.revision == run.revision
            newest = run.ctx[-1] if run.ctx else None
            assert (claimed.context.data if claimed.context else None) == (newest.data if newest else None)

    @step(3, run=PICK, token=APP_TOKENS, times=TWICE)
    def claim_run(self, run: int, token: str, times: int) -> None:
        which = self.run_of(run)
        for _ in range(times):
            self._claim_run(which, self.app_token(which, token))

    @step(1, token=st.sampled_from(["s0", "s1"]))
    def claim_a_run_that_is_not_there(self, token: str) -> None:
        assert runs.claim_run(self.server, 99, token).outcome is Step.GONE

    @step(3, run=PICK, token=APP_TOKENS, keep=st.booleans(), counts=st.booleans())
    def renew_run(self, run: int, token: str, keep: bool, counts: bool) -> None:
        which = self.run_of(run)
        name = self.app_token(which, token)
        outcome = (
            runs.renew_run(self.server, which.id, name, lease=LASTING)
            if keep
            else runs.release_run(self.server, which.id, name, counts=counts)
        )
        assert outcome is self.world.renew_run(which, name, keep=keep, counts=counts)

    @step(2, run=PICK)
    def the_lease_of_a_run_lapses(self, run: int) -> None:
        which = self.run_of(run)
        if which.lease is not None:
            which.lease = "lapsed"
            self.redis.hset(self.server.keys.run(which.id), "lease", 1)

    @step(1, run=PICK)
    def say_what_a_run_waits_for(self, run: int) -> None:
        which = self.run_of(run)
        outcome = runs.set_detail(self.server, which.id, "waits")
        assert outcome is (Step.OK if which.alive else Step.OVER)
        which.detail = which.detail or which.alive

    @step(
        2,
        run=PICK, token=st.sampled_from(["now", "now", "s0", "s1", ""]), objs=DIGESTS, times=TWICE, sure=PICK,
        well=st.booleans(),
    )  # fmt: skip
    def finish(self, run: int, token: str, objs: tuple[str, ...], times: int, sure: int, well: bool) -> None:
        if sure > 2:
            return  # Runs live long enough for something to happen.
        which = self.run_of(run)
        name = self.app_token(which, token) if token else ""
        status = ("finished" if well else "failed") if name else "stopped"
        for _ in range(times):
            outcome = runs.finish(self.server, which.id, name, status, result=(b"result", objs))
            assert outcome is self.world.finish(which, name, status, b"result", objs)

    @step(2, run=PICK, token=st.sampled_from(["r0", "r1"]), times=TWICE)
    def resume(self, run: int, token: str, times: int) -> None:
        which = self.run_of(run)
        for _ in range(times):
            assert runs.resume_run(self.server, which.id, token) is self.world.resume(which, token)

    # -- the ServerApp ------------------------------------------------------------------------------------------------

    def _push(self, run: Run, token: str, call: int, to: tuple[Any, ...], body: bytes, checkpoint: int) -> Push:
        targets, objs, late, offline = to
        made = [
            Message(
                messages.message_id(run.id, checkpoint, call, i, node),
                *(run.id, node, "", 0, checkpoint, call, objs, offline, late),
            )
            for i, node in enumerate(targets)
        ]
        out = [messages.Outgoing(m.id, m.node, 0, "train", "1", 0.0 if late else 60.0, offline) for m in made]
        contents = [messages.Content(body, objs)]
        expected = self.world.push(run, token, checkpoint, call, messages.request_digest(contents, out), made, objs)
        pushed = messages.push(self.server, run.id, token, checkpoint, call, contents, out)
        assert pushed.outcome is expected
        if expected is Push.OK:
            assert pushed.revision == run.revision
            for m in made:
                for entry, fields in self.redis.xrange(self.server.keys.inbox(m.node)):
                    if fields.get(b"id") == m.id.encode() and m in self.world.messages:
                        m.entry = text(entry)
        if expected is Push.MISSING:
            assert set(pushed.detail) == set(self.world.shared.missing(objs))
        if expected is Push.UNKNOWN_NODE:
            assert pushed.detail == (STRANGER,)
        return expected

    @step(
        8,
        run=PICK,
        token=APP_TOKENS,
        to=st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "a"), ("a",), (STRANGER, "a")]),
        objs=DIGESTS,
        late=st.sampled_from([False, False, False, True]),
        offline=st.sampled_from(["wait", "fail"]),
        times=TWICE,
        old=st.sampled_from([0, 0, 0, 1]),
    )
    def push(
        self,
        run: int,
        token: str,
        to: tuple[str, ...],
        objs: tuple[str, ...],
        late: bool,
        offline: str,
        times: int,
        old: int,
    ) -> None:
        which = self.run_of(run)
        done = self.calls.setdefault((which.id, which.checkpoint - old), [])
        asked = (to, objs, late, offline)
        call = len(done) + (100 if old else 0)
        for _ in range(times):
            outcome = self._push(which, self.app_token(which, token), call, asked, b"hello", which.checkpoint - old)
        if outcome is Push.OK:
            done.append(asked)

    @step(3, run=PICK, number=PICK, other=st.booleans(), token=APP_TOKENS)
    def push_again(self, run: int, number: int, other: bool, token: str) -> None:
        which = self.run_of(run)
        done = self.calls.get((which.id, which.checkpoint))
        if done:
            call = number % len(done)
            # What was freed is not asked for again: a checkpoint, or the end of replaying, lies between.
            if all(
                m.sent
                for m in self.world.messages
                if (m.run, m.checkpoint, m.call) == (which.id, which.checkpoint, call)
            ):
                body = b"other" if other else b"hello"
                self._push(which, self.app_token(which, token), call, done[call], body, which.checkpoint)

    @step(4, run=PICK, token=APP_TOKENS, objs=DIGESTS, times=TWICE, old=st.sampled_from([0, 0, 1]), free=st.booleans())
    def checkpoint(self, run: int, token: str, objs: tuple[str, ...], times: int, old: int, free: bool) -> None:
        which = self.run_of(run)
        at, name = which.checkpoint - old, self.app_token(which, token)
        folded = tuple(m.id for m in self.world.messages if m.run == which.id and m.answer)
        data = b"state" if old else self.fresh().encode()
        for _ in range(times):
            expected = self.world.save(which, name, at, data, objs, folded)
            saved = runs.save_checkpoint(self.server, which.id, name, at, (data, objs), folded)
            assert saved.outcome is expected
            if expected is Step.OK:
                assert (saved.checkpoint, saved.revision) == (which.checkpoint, which.revision)
            if expected is Step.MISSING:
                assert set(saved.missing) == set(self.world.shared.missing(objs))
        if free:
            self._free(which, name, list(folded))

    def _free(self, run: Run, token: str, ids: list[str]) -> None:
        assert runs.free(self.server, run.id, token, ids, batch=1000) == self.world.free(run, token, ids)

    @step(3, run=PICK, token=APP_TOKENS, times=TWICE)
    def free(self, run: int, token: str, times: int) -> None:
        which = self.run_of(run)
        for _ in range(times):
            ids = [m.id for m in self.world.messages if m.run == which.id]
            self._free(which, self.app_token(which, token), ids[: 1 if times == 1 else None])

    @step(2, run=PICK, token=APP_TOKENS, at=st.integers(0, 1), number=st.integers(1, 3))
    def event(self, run: int, token: str, at: int, number: int) -> None:
        which = self.run_of(run)
        name, data = self.app_token(which, token), self.fresh()
        emitted = events.emit(self.server, which.id, name, at, number, "round", data)
        assert emitted.outcome is self.world.event(which, name, at, number, "round", f'"{data}"')
        if emitted.outcome in (Step.OK, Step.SEEN):
            assert emitted.revision == which.revision

    @step(2, run=PICK, token=APP_TOKENS)
    def note(self, run: int, token: str) -> None:
        which = self.run_of(run)
        name, data = self.app_token(which, token), self.fresh()
        reply = self.server.call(
            "note", [self.server.keys.run(which.id), self.server.keys.events(which.id)], [name, 1000, 2, "log", data]
        )
        assert text(reply[0]) == self.world.note(which, name, data, 2)

    @step(2, run=PICK, token=APP_TOKENS, old=st.sampled_from([0, 0, 1]), times=TWICE)
    def journal(self, run: int, token: str, old: int, times: int) -> None:
        which = self.run_of(run)
        name = self.app_token(which, token)
        for _ in range(times):
            value, at = self.fresh(), which.checkpoint - old
            reply = self.server.call(
                "journal",
                [self.server.keys.run(which.id), self.server.keys.journal(which.id)],
                [name, at, "receive:0", value],
            )
            said = text(reply[2]) if reply[0] == b"OK" else text(reply[0])
            assert said == self.world.journal(which, name, at, "receive:0", value)
            assert reply[0] != b"OK" or int(reply[1]) == which.revision

    # -- arrays -------------------------------------------------------------------------------------------------------

    def _adopt(self, index: str, run: int, token: str, prefix: str, owner: str, paired: bool, digests: Any) -> Any:
        alive = int(owner != "upload")
        reply = self.server.call(
            "adopt",
            [index],
            [self.server.keys.run(run), token, prefix, owner, int(paired), UNFINISHED_MS, alive, *digests],
        )
        return [text(item) for item in reply[1:]] if reply[0] == b"OK" else text(reply[0])

    def _send(self, store: Store, prefix: str, digests: Any, parts: list[str]) -> None:
        for digest in digests:
            for part in parts:
                key = f"{prefix}{digest}" + ("" if part == "manifest" else f":{part}")
                self.redis.set(key, f"{CHUNKS}|8" if part == "manifest" else "data", px=UNFINISHED_MS, nx=True)
                if store[digest].parts.get(part) == SHORT:
                    self.redis.pexpire(key, UNFINISHED_MS)
                    store[digest].parts[part] = FULL
                store[digest].parts.setdefault(part, FULL)

    PARTS = st.sampled_from([["0", "1", "manifest"]] * 4 + [["0"], ["0", "1"]])

    @step(4, run=PICK, token=APP_TOKENS, digests=SOME, parts=PARTS, kind=st.sampled_from(["", "ctx", "result"]))
    def upload(self, run: int, token: str, digests: tuple[str, ...], parts: list[str], kind: str) -> None:
        which, keys = self.run_of(run), self.server.keys
        name = self.app_token(which, token)
        owner = {"": f"{which.checkpoint}", "ctx": f"ctx{which.checkpoint + 1}", "result": "result"}[kind]
        owner = f"{which.id}:{owner}"
        missing = self._adopt(keys.run_objs(which.id), which.id, name, keys.obj(""), owner, True, digests)
        assert missing == self.world.adopt(which, name, owner, digests)
        if isinstance(missing, list):
            self._send(self.world.shared, keys.obj(""), missing, parts)

    @step(3, digests=SOME, parts=PARTS)
    def upload_a_bundle(self, digests: tuple[str, ...], parts: list[str]) -> None:
        keys = self.server.keys
        missing = self._adopt(keys.wake(), 0, "", keys.obj(""), "upload", True, digests)
        assert missing == self.world.adopt_bundle(digests)
        self._send(self.world.shared, keys.obj(""), missing, parts)

    @step(4, when=lambda self: self.world.messages, number=PICK, digests=SOME, parts=PARTS)
    def upload_of_a_node(self, number: int, digests: tuple[str, ...], parts: list[str]) -> None:
        m = self.message_of(number)
        prefix, index = self.server.keys.node_obj(m.node, ""), self.server.keys.node_objs(m.node, m.run)
        missing = self._adopt(index, m.run, "", prefix, f"up:{m.run}:{m.id}", False, digests)
        assert missing == self.world.adopt_node(self.world.runs[m.run], m.node, m.id, digests)
        if isinstance(missing, list):
            self._send(self.world.store(m.node), prefix, missing, parts)

    @step(2, place=PLACES)
    def time_goes_by(self, place: str) -> None:
        """What is unfinished has little time left."""
        store, prefix = self.world.store(place), self._prefix(place)
        for digest, array in store.arrays.items():
            for part, live in array.parts.items():
                if live == FULL:
                    array.parts[part] = SHORT
                    self.redis.pexpire(f"{prefix}{digest}" + ("" if part == "manifest" else f":{part}"), 300_000)
            if array.owners and array.owners_live == FULL:
                array.owners_live = SHORT
                self.redis.pexpire(f"{prefix}{digest}:owners", 300_000)

    @step(3, place=PLACES, digest=st.sampled_from("xyz"), part=st.sampled_from(["manifest", "0", "1", "owners"]))
    def a_part_expires(self, place: str, digest: str, part: str) -> None:
        array = self.world.store(place)[digest]
        key = f"{self._prefix(place)}{digest}" + ("" if part == "manifest" else f":{part}")
        if part == "owners":
            if array.owners and array.owners_live == SHORT:
                array.owners.clear()
                self.redis.delete(key)
        elif array.parts.get(part) == SHORT:
            del array.parts[part]
            self.redis.delete(key)

    def _prefix(self, place: str) -> str:
        return self.server.keys.node_obj(place, "") if place else self.server.keys.obj("")

    # -- the nodes ----------------------------------------------------------------------------------------------------

    @step(2, node=st.sampled_from(NODES), alive=st.booleans())
    def heartbeat(self, node: str, alive: bool) -> None:
        if alive:
            nodes.beat(self.server, node, ttl=LASTING)
        else:
            nodes.leave(self.server, node)
        self.world.nodes[node].alive = alive

    @step(2, node=st.sampled_from(NODES))
    def dispatch(self, node: str) -> None:
        """The inbox is drained; wake-ups are deleted."""
        inbox, box = self.server.keys.inbox(node), self.world.nodes[node].inbox
        self.redis.xreadgroup(GROUP, "dispatcher", {inbox: ">"}, count=1000)
        for entry, fields in self.redis.xrange(inbox):
            if fields[b"kind"] == b"wake":
                self.redis.xack(inbox, GROUP, entry)
                self.redis.xdel(inbox, entry)
        box[:] = [item for item in box if item != "wake"]

    @step(
        2,
        holder=st.sampled_from("pqr"),
        dead=st.sampled_from(["", "p", "q"]),
        drop=st.booleans(),
        key=st.sampled_from(["dispatcher", "housekeeper"]),
        online=st.booleans(),
    )
    def a_role_is_taken_or_dropped(self, holder: str, dead: str, drop: bool, key: str, online: bool) -> None:
        keys = self.server.keys
        name = keys.node_dispatcher("a") if key == "dispatcher" else keys.housekeeper()
        names = [name, keys.node_alive("a")] if online and key == "dispatcher" else [name]
        reply = self.server.call(
            "beat", names, [holder, 0 if drop else int(LASTING * 1000), 0, dead, int(LASTING * 1000)]
        )
        expected = self.world.take_lease(name, holder, dead, drop=drop)
        if len(names) > 1 and expected == ("OK",) and not drop:
            self.world.nodes["a"].alive = True
        assert tuple(text(item) for item in reply[: len(expected)]) == expected

    def entry(self, m: Message, wrong: bool) -> str:
        """The message's entry, or that of another."""
        if not wrong:
            return m.entry
        return next((o.entry for o in self.world.messages if o.node == m.node and o is not m and o.open), "1-1")

    WRONG = st.sampled_from([False] * 7 + [True])

    @step(6, when=lambda self: self.world.messages, number=PICK, token=TOKENS, times=TWICE, wrong=WRONG)
    def claim(self, number: int, token: str, times: int, wrong: bool) -> None:
        m = self.message_of(number)
        name, entry = self.token(m, token), self.entry(m, wrong)
        for _ in range(times):
            claimed = claims.claim(self.server, m.node, m.run, entry, m.id, name, lease=LASTING)
            assert claimed.outcome is self.world.claim(m, name, entry)
            if claimed.outcome is Claim.OK:
                assert claimed.attempt == m.attempt
                newest = self.world.nodes[m.node].ctx.get(m.run, [])[-1:]
                assert ([claimed.context.data] if claimed.context else []) == [v.data for v in newest]
            if claimed.outcome is Claim.EXHAUSTED:
                assert claimed.attempt == m.attempt

    @step(3, when=lambda self: self.world.messages, number=PICK, token=TOKENS, wrong=WRONG)
    def renew(self, number: int, token: str, wrong: bool) -> None:
        m = self.message_of(number)
        name, entry = self.token(m, token), self.entry(m, wrong)
        outcome = claims.renew(self.server, m.node, m.run, entry, m.id, name, lease=LASTING)
        assert outcome is self.world.renew(m, name, entry)

    @step(2, when=lambda self: self.world.messages, number=PICK)
    def a_lease_lapses(self, number: int) -> None:
        m = self.message_of(number)
        if m.open and m.token:
            m.lapsed = True
            self.redis.hset(self.server.keys.claims(m.node), m.id, f"{m.attempt}|{m.token}|1|")

    @step(3, when=lambda self: self.world.messages, number=PICK, token=TOKENS, counts=st.booleans(), times=TWICE)
    def release(self, number: int, token: str, counts: bool, times: int) -> None:
        m = self.message_of(number)
        name = self.token(m, token)
        for _ in range(times):
            freed = claims.release(self.server, m.node, m.id, name, counts=counts)
            assert freed == self.world.release(m, name, counts=counts, lapsed=False)

    @step(2, when=lambda self: self.world.messages, number=PICK, token=TOKENS)
    def lapse(self, number: int, token: str) -> None:
        m = self.message_of(number)
        name = self.token(m, token)
        freed = claims.lapse(self.server, m.node, m.id, name)
        assert freed == self.world.release(m, name, counts=True, lapsed=True)

    @step(
        10,
        when=lambda self: self.world.messages,

        number=PICK, token=TOKENS, times=TWICE, ok=st.booleans(), objs=DIGESTS, kept=DIGESTS, wrong=WRONG,
        first=st.sampled_from([True, True, False]),
    )  # fmt: skip
    def commit(
        self,
        number: int,
        token: str,
        times: int,
        ok: bool,
        objs: tuple[str, ...],
        kept: tuple[str, ...],
        wrong: bool,
        first: bool,
    ) -> None:
        m = self.message_of(number)
        if first:
            if m.open and not m.token:
                self.claim(number, "w0", 1, False)
            for digest in {*objs, *kept} - set(m.objs):
                self.upload_of_a_node(number, (digest,), ["0", "1", "manifest"])
        name, entry = self.token(m, token), self.entry(m, wrong)
        context = (self.fresh().encode(), kept) if ok else None
        for _ in range(times):
            was = m.answer
            committed = claims.commit(
                *(self.server, m.node, m.run, entry, m.id, name),
                ok=ok,
                body=name.encode(),
                objects=objs,
                context=context,
                code=0 if ok else 7,
            )
            expected, missing = self.world.commit(
                m, name, entry, ok=ok, body=name.encode(), objs=objs, context=context, code=0 if ok else 7
            )
            assert committed.outcome is expected
            assert set(committed.missing) == missing
            if expected is Commit.COMMITTED and was is None and context is not None:
                version = contexts.node_context(self.server, m.node, m.run)
                assert version is not None
                self.world.name_version(version.entry)

    @step(
        4,
        when=lambda self: self.world.messages,
        number=PICK,
        reason=st.sampled_from(list(Reason)),
        token=st.sampled_from(["", "", "now", "s0", "s1"]),
        times=TWICE,
        wrong=WRONG,
    )
    def answer(self, number: int, reason: Reason, token: str, times: int, wrong: bool) -> None:
        m = self.message_of(number)
        name = self.app_token(self.world.runs[m.run], token) if token else ""
        entry, error = self.entry(m, wrong), Error(ErrorCode.CANCELLED, reason.value)
        for _ in range(times):
            outcome = messages.answer(self.server, m.run, m.node, entry, m.id, reason, error, token=name)
            assert outcome is self.world.answer(m, entry, reason, encode_error(error), error.code, name)
            assert outcome is not Answered.ANSWERED or not m.open

    @step(2, run=PICK, node=st.sampled_from(NODES))
    def log(self, run: int, node: str) -> None:
        which, line = self.run_of(run), self.fresh()
        if not which.alive or node in which.nodes:
            written = events.append_log(self.server, node, which.id, [{"text": line}])
            assert written == self.world.log(which, node, f'{{"text": "{line}"}}')

    # -- clean-up -----------------------------------------------------------------------------------------------------

    @step(4, run=PICK, steps=st.integers(1, 12), everything=st.booleans())
    def clean_up(self, run: int, steps: int, everything: bool) -> None:
        """From the beginning, and interrupted after some steps."""
        which = self.run_of(run)
        for node in sorted(which.nodes):
            outcome = ""
            while outcome != "DONE":
                if not steps:
                    return
                steps -= 1
                outcome = self._clean_node(which, node)
                if outcome == "ALIVE":
                    break
        if steps:
            self._clean_run(which, everything)

    def _clean_node(self, run: Run, node: str) -> str:
        k = self.server.keys
        names = [k.run(run.id), k.inbox(node), k.claims(node), k.order(node, run.id), k.replies(node, run.id)]
        names += [k.node_ctx(node, run.id), k.node_objs(node, run.id), k.log(node, run.id), k.events(run.id)]
        args = [run.id, k.node(node), GROUP, k.node_alive(node), BATCH, 1000]
        outcome = text(self.server.call("clean_node", names, args)[0])
        assert outcome == self.world.clean_node(run, node, BATCH)
        return outcome

    def _clean_run(self, run: Run, everything: bool) -> None:
        k = self.server.keys
        names = [k.run(run.id), k.run_objs(run.id), k.sent(run.id), k.deadlines(run.id), k.journal(run.id)]
        names += [k.run_nodes(run.id), k.run_ctx(run.id), k.alive_runs()]
        outcome = text(self.server.call("clean_run", names, [run.id, k.obj(""), BATCH, int(everything)])[0])
        may_go = self.world.clean_run(run, BATCH, everything=everything)
        if isinstance(may_go, str):
            assert outcome == may_go
            return
        left = {text(item) for item in self.redis.smembers(k.run_objs(run.id))}
        gone = run.objs - left
        assert gone <= may_go
        assert len(gone) == min(len(may_go), BATCH)
        assert outcome == ("MORE" if len(may_go) > BATCH else "DONE")
        self.world.clean_members(run, gone)
        if outcome == "DONE":
            self.world.clean_rest(run)

    # -- what holds at any time ---------------------------------------------------------------------------------------

    @invariant()
    def the_server_holds_what_the_model_does(self) -> None:
        seen, expected = observe(self.server), self.world.render(self.server.keys)
        assert seen == expected, difference(seen, expected)
        assert all(acknowledged(self.server, node) for node in NODES)

    def teardown(self) -> None:
        """Once every run is over and cleaned up, nothing of them is left but what is kept with them."""
        if not hasattr(self, "server"):
            return
        try:
            for run in self.world.runs.values():
                if run.alive:
                    runs.finish(self.server, run.id, "", "stopped")
                    self.world.finish(run, "", "stopped", b"", ())
            for run in self.world.runs.values():
                assert cleanup.clean_run(self.server, run.id, everything=True)
            of_nodes = self.redis.keys(self.server.keys.node("*"))
            left = [text(key) for key in of_nodes if text(key).rsplit(":", 1)[-1] not in ("alive", "inbox")]
            left += [text(key) for key in self.redis.keys(self.server.keys.obj("*"))]
            # Without a manifest nobody knows the parts of an upload; they go when their time is up.
            lasting = [key for key in left if self.redis.ttl(key) == -1]
            assert lasting == []
        finally:
            self.redis.flushdb()
            self.server.close()


def difference(seen: dict[str, object], expected: dict[str, object]) -> str:
    """Where the server differs, for people."""
    lines = [
        f"{key}: is {seen.get(key)!r}, should be {expected.get(key)!r}"
        for key in sorted({*seen, *expected})
        if seen.get(key) != expected.get(key)
    ]
    return "\n".join(lines)
