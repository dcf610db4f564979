"""The data owner's word: mods that a node puts around every ClientApp, outside of whatever the app brings.

They are imported, and made, before any code of an app is loaded, in each process that runs apps. An app has no name for
them in its ClientApp and no way to leave them out; what it does to the message, or to its own reply afterwards, they do
not see. An app that *means* to get around them shares their process all the same, and can: see docs/operators.md.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from fedq.apps.arrayrecord import ArrayRecord
from fedq.apps.client_app import check_reply, error_of
from fedq.apps.configrecord import ConfigRecord
from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import FedqError, InvalidReply, ReplyRefused
from fedq.apps.message import Message, make_message
from fedq.apps.metricrecord import MetricRecord
from fedq.apps.mod import ClientAppCallable, Mod
from fedq.apps.recorddict import RecordDict
from fedq.node.modname import ModName

logger = logging.getLogger(__name__)


class ModsDiffer(FedqError):
    """An additional worker would impose other mods than the node's SuperNode. It must not serve."""


class Imposed:
    """The mods of a node, ready for use.

    Args:
        names: as in the settings; the first is the outermost.

    Raises:
        SettingsError: one of them cannot be had. Whoever serves must not go on without it.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.mods: tuple[tuple[str, Mod], ...] = tuple((name, ModName.parse(name).load()) for name in names)

    def __bool__(self) -> bool:
        return bool(self.mods)

    def answer(self, app: ClientAppCallable, message: Message, context: Context) -> Message:
        """Call an app inside of the mods, and return what they let out. Raises nothing that an app or a mod raises.

        The app gets a copy of the message, and the mods a copy of its reply. What the app raises reaches the mods as an
        error reply. What a mod raises becomes an error reply too: `ReplyRefused` with its text, anything else without,
        since it may quote what the mod was to keep back; that text stands in the node's own log.
        """
        call: ClientAppCallable = _contained(app)
        for name, mod in reversed(self.mods):
            call = _imposed(name, mod, call)
        return call(message, context)


def check_same(node: str, ours: Sequence[str], theirs: Sequence[str] | None) -> None:
    """Whether a worker imposes what the node's SuperNode does. None: that is not known yet.

    Raises:
        ModsDiffer: it does not.
    """
    if theirs is None or list(ours) == list(theirs):
        return
    options = " ".join(f"--mod '{name}'" for name in theirs) or "no --mod"
    raise ModsDiffer(
        f"the SuperNode of {node} imposes {_listed(theirs)}, this worker {_listed(ours)}: a worker does not take mods "
        f"from the server, it has to be started with the same, in the same order ({options})",
        node_id=node,
    )


def _listed(names: Sequence[str]) -> str:
    return "the mods " + ", ".join(names) if names else "no mods"


def _contained(app: ClientAppCallable) -> ClientAppCallable:
    """The app, which works on copies and raises nothing."""

    def call(message: Message, context: Context) -> Message:
        try:
            reply = app(make_message(message.metadata, _copy(message.content)), context)
            check_reply(message, reply)
            if not reply.has_error():
                return make_message(reply.metadata, _copy(reply.content))
            error = reply.error
        except KeyboardInterrupt:
            raise
        except SystemExit as exc:
            error = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"the ClientApp called sys.exit({exc.code!r})")
        except BaseException as exc:
            error = error_of(exc)
        logger.warning("run %d, message %s: %r", context.run_id, message.metadata.message_id[:8], error)
        if error.traceback:
            logger.warning("%s", error.traceback.rstrip())
        return Message(error, reply_to=message)

    return call


def _imposed(name: str, mod: Mod, inner: ClientAppCallable) -> ClientAppCallable:
    def call(message: Message, context: Context) -> Message:
        node = context.node_id
        try:
            reply = mod(message, context, inner)
            check_reply(message, reply)
        except ReplyRefused as exc:
            reason = f"node {node} does not let this reply out: {exc} ({name}, imposed by its operator)"
        except InvalidReply as exc:
            reason = f"the mod {name}, which node {node} imposes, returned no reply to this message; nothing was sent"
            logger.error("the imposed mod %s is at fault: %s", name, exc)
        except (Exception, SystemExit) as exc:
            reason = (
                f"the mod {name}, which node {node} imposes, failed with {type(exc).__name__}; nothing was sent, and "
                "what it said stands in the node's log"
            )
            logger.exception("the imposed mod %s has failed", name)
        else:
            return reply
        logger.warning("run %d, message %s: %s", context.run_id, message.metadata.message_id[:8], reason)
        return Message(Error(ErrorCode.MOD_FAILED_PRECONDITION, reason), reply_to=message)

    return call


def _copy(content: RecordDict) -> RecordDict:
    """Other records with the same values; arrays, which cannot be changed, are shared."""
    copied = RecordDict()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            copied[name] = ArrayRecord(dict(record))
        elif isinstance(record, MetricRecord):
            copied[name] = MetricRecord(dict(record))
        else:
            copied[name] = ConfigRecord(dict(record))
    return copied


__all__ = ["Imposed", "ModsDiffer", "check_same"]
