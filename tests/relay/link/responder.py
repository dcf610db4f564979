"""A node made of the steps alone: what a SuperNode does, without RQ and without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fedq.apps import ClientApp, Context, Error, Message, RecordDict
from fedq.apps.client_app import error_of
from fedq.apps.message import make_message
from fedq.apps.metadata import Metadata
from fedq.apps.wire import decode, decode_user_config, encode, encode_error, referenced
from fedq.relay import bundles, claims, events, messages, nodes, objects
from fedq.relay.claims import Claim, Claimed
from fedq.relay.connection import Relay
from fedq.relay.errors import RelayError
from fedq.relay.messages import Instruction

Answer = Callable[[Message, Context], RecordDict | Error | Message]


class Responder:
    """A node named ``name`` whose messages are answered in a thread, by ``answer`` or by the app of their run.

    ``hold()`` keeps it from answering until ``release()``; it stays online.
    """

    def __init__(
        self,
        url: str,
        name: str,
        answer: Answer | None = None,
        *,
        folder: Path | None = None,
        labels: dict[str, str] | None = None,
    ) -> None:
        self.name = name
        self.answer = answer
        self.labels = labels or {}
        self.seen: list[str] = []
        self._folder = folder or Path("/nonexistent")
        self._relay = Relay.connect(url, client_name=f"test-{name}")
        self._free = threading.Event()
        self._free.set()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # -- what a test does with it --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        nodes.register(self._relay, self.name, nodes.NodeInfo(labels=self.labels))
        nodes.beat(self._relay, self.name, ttl=60)
        with self._relay.errors():
            self._relay.redis.xgroup_create(self._relay.keys.inbox(self.name), messages.GROUP, "0", mkstream=True)
        self._thread = threading.Thread(target=self._serve, name=self.name)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._free.set()
        assert self._thread is not None
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._relay.close()

    def hold(self) -> None:
        self._free.clear()

    def release(self) -> None:
        self._free.set()

    def go_offline(self) -> None:
        nodes.leave(self._relay, self.name)

    # -- what it does --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        keys = self._relay.keys
        done: set[str] = set()
        while not self._ended.is_set():
            try:
                with self._relay.errors():
                    raw: Any = self._relay.redis.xrange(keys.inbox(self.name))
                for entry, fields in raw:
                    instruction = messages.parse_entry(entry, fields)
                    if instruction.kind != "message" or instruction.entry in done or not self._free.is_set():
                        continue
                    if self._carry_out(instruction):
                        done.add(instruction.entry)
            except RelayError:
                pass
            self._ended.wait(0.005)

    def _carry_out(self, instruction: Instruction) -> bool:
        """Whether to leave it alone from now on. What is answered leaves the inbox, unless the server forgets that."""
        i, token = instruction, claims.new_token()
        claimed = claims.claim(self._relay, self.name, i.run, i.entry, i.message_id, token, worker="test")
        if claimed.outcome is not Claim.OK:
            return claimed.outcome is not Claim.NOT_YET
        self.seen.append(i.message_id)
        content = decode(i.body, objects.fetch_shared(self._relay, referenced(i.body)))
        metadata = Metadata(
            i.run, i.message_id, "", self.name, "", i.group, i.created, max(0.001, i.deadline - i.created), i.type
        )
        message = make_message(metadata, content)
        context = self._context(claimed)
        try:
            answer = self._app(claimed)(message, context)
        except Exception as error:
            answer = error_of(error)
        if isinstance(answer, Message):
            answer = answer.error if answer.has_error() else answer.content
        if isinstance(answer, Error):
            body = encode_error(answer)
            claims.commit(
                self._relay, self.name, i.run, i.entry, i.message_id, token, ok=False, body=body, code=answer.code
            )
            return False
        reply, state = (encode(part, inline_limit=objects.INLINE_LIMIT) for part in (answer, context.state))
        own = {digest: blob for digest, blob in reply.blobs.items() if digest not in i.objects}
        objects.upload_node(self._relay, self.name, i.run, i.message_id, {**own, **state.blobs})
        claims.commit(
            *(self._relay, self.name, i.run, i.entry, i.message_id, token),
            ok=True,
            body=reply.data,
            objects=tuple(reply.blobs),
            context=(state.data, tuple(state.blobs)),
            nbytes=len(reply.data) + sum(blob.nbytes for blob in reply.blobs.values()),
        )
        return False

    def _context(self, claimed: Claimed) -> Context:
        assert claimed.app is not None
        state = RecordDict()
        if claimed.context is not None:
            wanted = referenced(claimed.context.data)
            state = decode(claimed.context.data, objects.fetch_node(self._relay, self.name, wanted))
        config = decode_user_config(claimed.app.config) if claimed.app.config else {}
        return Context(claimed.app.run, self.name, {}, state, config)

    def _app(self, claimed: Claimed) -> Answer | ClientApp:
        if self.answer is not None:
            return self.answer
        app = claimed.app
        assert app is not None
        data = objects.fetch_shared(self._relay, [app.bundle])[app.bundle]
        return bundles.load_client_app(app.kind, data, app.bundle, self._folder)


def log_lines(relay: Relay, node: str, run: int, *lines: str) -> None:
    """What a SuperNode ships of what a ClientApp prints."""
    events.append_log(relay, node, run, [{"node": node, "time": 1.0 + n, "text": t} for n, t in enumerate(lines)])
