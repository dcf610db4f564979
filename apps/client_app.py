"""ClientApp: what a node runs for each message."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from fedq.apps.context import Context
from fedq.apps.error import Error, ErrorCode
from fedq.apps.errors import AppError, InvalidReply, ReplyRefused, UnknownAction
from fedq.apps.lifespan import Lifespan, LifespanFunction, make_lifespan, no_lifespan
from fedq.apps.message import Message
from fedq.apps.message_type import MessageType
from fedq.apps.mod import ClientAppCallable, Mod, make_ffn

DEFAULT_ACTION = "default"
_CATEGORIES = (MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY)


class ClientApp:
    """Routes each message to the function registered for its type and returns that function's reply.

    ::

        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            ...
            return Message(content, reply_to=message)

    A message of type ``"train"`` reaches the function registered by ``@app.train()``, one of type ``"train.warmup"``
    that of ``@app.train("warmup")``; ``evaluate`` and ``query`` likewise. ``context.state`` is kept between the
    messages of one run on one node; when the function raises, it stays as it was before that message.

    Args:
        mods: put around every function registered later; the first is the outermost.
    """

    def __init__(self, mods: Sequence[Mod] | None = None) -> None:
        self._mods: list[Mod] = list(mods or ())
        self._functions: dict[str, ClientAppCallable] = {}
        self._lifespan: Lifespan = no_lifespan

    @property
    def actions(self) -> tuple[str, ...]:
        """The registered message types in full, such as ``("train.default", "train.warmup")``."""
        return tuple(self._functions)

    def __call__(self, message: Message, context: Context) -> Message:
        """Run the function registered for the message's type and return its reply.

        Raises:
            UnknownAction: nothing is registered for the type.
            InvalidReply: the function returned no Message, or one that does not answer this message.
            Exception: whatever the function or a mod raises.
        """
        with self._lifespan(context):
            reply = self._function(message)(message, context)
        check_reply(message, reply)
        return reply

    def train(
        self, action: str = DEFAULT_ACTION, *, mods: Sequence[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register a function for messages of type ``"train"``, or ``"train.<action>"``.

        Args:
            action: a Python identifier.
            mods: put around this function only, inside of the app's mods.

        Returns:
            A decorator that gives the function back unchanged. It raises ValueError when the action is no identifier
            or taken already.
        """
        return self._register(MessageType.TRAIN, action, mods)

    def evaluate(
        self, action: str = DEFAULT_ACTION, *, mods: Sequence[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register a function for messages of type ``"evaluate"``, or ``"evaluate.<action>"``; see `train`."""
        return self._register(MessageType.EVALUATE, action, mods)

    def query(
        self, action: str = DEFAULT_ACTION, *, mods: Sequence[Mod] | None = None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        """Register a function for messages of type ``"query"``, or ``"query.<action>"``; see `train`."""
        return self._register(MessageType.QUERY, action, mods)

    def lifespan(self) -> Callable[[LifespanFunction], LifespanFunction]:
        """Register a generator function that is run around the handling of each message.

        ::

            @app.lifespan()
            def lifespan(context: Context) -> Iterator[None]:
                model = load()  # before
                yield
                model.close()  # after, also when the function raised
        """

        def register(function: LifespanFunction) -> LifespanFunction:
            self._lifespan = make_lifespan(function)
            return function

        return register

    def _register(
        self, category: str, action: str, mods: Sequence[Mod] | None
    ) -> Callable[[ClientAppCallable], ClientAppCallable]:
        def register(function: ClientAppCallable) -> ClientAppCallable:
            if not action.isidentifier():
                raise ValueError(f"cannot register {category} function {action!r}: the action must be an identifier")
            full_name = f"{category}.{action}"
            if full_name in self._functions:
                raise ValueError(f"cannot register {category} function {action!r}: there is one of that name already")
            self._functions[full_name] = make_ffn(function, [*self._mods, *(mods or ())])
            return function

        return register

    def _function(self, message: Message) -> ClientAppCallable:
        message_type = message.metadata.message_type
        category, dot, action = message_type.partition(".")
        function = self._functions.get(f"{category}.{action if dot else DEFAULT_ACTION}")
        if function is None:
            known = ", ".join(_shown(name) for name in self._functions) or "nothing"
            hint = f"@app.{category}({repr(action) if dot else ''})" if category in _CATEGORIES else "a function"
            raise UnknownAction(
                f"the ClientApp has no function for {message_type!r} (it has: {known}); register one with {hint}",
                run_id=message.metadata.run_id,
                node_id=message.metadata.dst_node_id,
                message_id=message.metadata.message_id,
            )
        return function


def answer(app: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
    """Call a ClientApp and turn what goes wrong into an error reply, as a node does.

    Returns the app's reply, or a reply that carries an `Error` with a code, a reason of one line and the traceback.
    `context` may have been changed by an app that failed: whoever calls discards it then.
    """
    try:
        reply = app(message, context)
        check_reply(message, reply)
    except Exception as exc:
        return Message(error_of(exc), reply_to=message)
    return reply


def error_of(exc: BaseException) -> Error:
    """The `Error` by which a node reports an exception of a ClientApp."""
    if isinstance(exc, UnknownAction):
        return Error(ErrorCode.UNKNOWN_ACTION, str(exc))
    if isinstance(exc, InvalidReply):
        return Error(ErrorCode.INVALID_REPLY, str(exc))
    if isinstance(exc, ReplyRefused):
        return Error(ErrorCode.MOD_FAILED_PRECONDITION, str(exc))
    reason = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    trace = "".join(traceback.format_exception(exc))
    return Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason, traceback=trace)


def unsendable(exc: AppError) -> Error:
    """The `Error` by which a node reports a reply, or a Context, which the wire format refuses."""
    return Error(ErrorCode.INVALID_REPLY, f"what the ClientApp replied, or left in its Context, cannot be sent: {exc}")


def _shown(full_name: str) -> str:
    return repr(full_name.removesuffix(f".{DEFAULT_ACTION}"))


def check_reply(message: Message, reply: object) -> None:
    """Whether something is a reply to this message.

    Raises:
        InvalidReply: it is not.
    """
    asked = message.metadata
    if isinstance(reply, Message):
        got = reply.metadata
        if got.reply_to_message_id != asked.message_id or got.run_id != asked.run_id or reply is message:
            what = f"a message that answers {got.reply_to_message_id!r}, not the one it was given"
        elif got.src_node_id != asked.dst_node_id:
            what = f"a reply in the name of node {got.src_node_id!r}"
        elif not (reply.has_content() or reply.has_error()):
            what = "a reply with neither content nor error"
        else:
            return
    else:
        what = "None" if reply is None else f"an object of type {type(reply).__name__}"
    raise InvalidReply(
        f"the ClientApp's function for {asked.message_type!r} returned {what}; "
        "it must return Message(content, reply_to=message)",
        run_id=asked.run_id,
        node_id=asked.dst_node_id,
        message_id=asked.message_id,
    )
