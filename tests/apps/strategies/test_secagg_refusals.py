"""What a node refuses in secure aggregation, so that a server which departs from the protocol does not unmask it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.apps import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from fedq.apps.error import ErrorCode
from fedq.apps.errors import InconsistentReply
from fedq.apps.mod import secaggplus_mod
from fedq.apps.secagg import keys, public_identity, stages
from fedq.apps.strategy import NoUsableReplies
from fedq.apps.testing import ask
from tests.apps.strategies.scripted import scripted_app
from tests.apps.strategies.watched import Watched

SESSION = "strategy 1, round 1"
Lie = Callable[[str, dict[str, Any]], dict[str, Any]]


def lying(watched: Watched, lie: Lie) -> Watched:
    """A run whose server asks in each stage what `lie` makes of what it should ask."""
    honest = watched.strategy._ask
    watched.strategy._ask = lambda stage, payloads: honest(stage, lie(stage, payloads))  # type: ignore[method-assign]
    return watched


def failed(watched: Watched) -> list[str]:
    """Why a run in which no node lets itself be unmasked has failed."""
    with pytest.raises(NoUsableReplies):
        watched.execute()
    assert watched.sums == []
    return watched.refusals


def refused(content: RecordDict, context: Context | None = None) -> str:
    reply = ask(scripted_app([[]], [secaggplus_mod]), content, context=context)
    assert reply.error.code == ErrorCode.MOD_FAILED_PRECONDITION
    return str(reply.error.reason)


def stage(name: str, payload: Any = None) -> RecordDict:
    return RecordDict({stages.RECORD: stages.record(name, "s", payload)})


def node_context() -> Context:
    return Context(run_id=1, node_id="node-0", node_config={}, state=RecordDict(), run_config={})


def public(name: str) -> stages.PublicKeys:
    """Keys that somebody of that name could have."""
    transport, mask = (keys.public_key(f"{name}{kind}".encode().ljust(16)) for kind in "tm")
    return stages.PublicKeys(transport, mask)


# -- the stages --------------------------------------------------------------------------------------------------------


def test_a_node_does_not_train_for_a_server_that_asks_without_masks() -> None:
    content = RecordDict({"arrays": ArrayRecord([np.zeros(2)]), "config": ConfigRecord({"server-round": 1})})
    assert "not sent unmasked" in refused(content)


def test_a_node_does_not_answer_a_stage_out_of_turn() -> None:
    assert "that round is over" in refused(stage(stages.UNMASK, stages.UnmaskRequest([], [])))
    context = node_context()
    assert not ask(scripted_app([[]], [secaggplus_mod]), stage(stages.SETUP), context=context).has_error()
    assert "in turn" in refused(stage(stages.UNMASK, stages.UnmaskRequest([], [])), context)


def test_a_node_does_not_share_so_that_half_of_its_neighbours_could_unmask_it() -> None:
    context = node_context()
    ask(scripted_app([[]], [secaggplus_mod]), stage(stages.SETUP), context=context)
    around = {name: public(name) for name in ("node-1", "node-2", "node-3", "node-4")}
    assert "more than half" in refused(stage(stages.SHARE, stages.ShareRequest(2, around)), context)


# -- both secrets of a node --------------------------------------------------------------------------------------------


def test_a_node_does_not_reveal_both_secrets_of_another() -> None:
    def greedy(stage: str, payloads: dict[str, Any]) -> dict[str, Any]:
        if stage != stages.UNMASK:
            return payloads
        return {node: stages.UnmaskRequest(p.survivors, p.survivors[:1]) for node, p in payloads.items()}

    reasons = failed(lying(Watched(5), greedy))
    assert len(reasons) == 5
    assert all("would unmask it" in reason for reason in reasons)


def test_a_node_that_has_revealed_one_secret_of_another_does_not_reveal_the_other_one_later() -> None:
    watched = Watched(5)
    honest, told = watched.strategy._ask, []

    def twice(stage: str, payloads: dict[str, Any]) -> Any:
        replies = list(honest(stage, payloads))
        if stage == stages.UNMASK:
            again = {
                node: stages.UnmaskRequest([o for o in p.survivors if o != "node-0"], ["node-0"])
                for node, p in payloads.items()
                if node != "node-0"
            }
            told.extend(honest(stage, again))
        return iter(replies)

    watched.strategy._ask = twice  # type: ignore[method-assign]
    watched.execute()
    assert len(told) == 4
    assert all("that round is over" in str(reply.error.reason) for reply in told)


def test_a_server_that_asks_one_half_for_one_secret_and_the_other_half_for_the_other_gets_neither() -> None:
    watched = Watched(5)
    honest = watched.strategy._ask
    seeds: list[Any] = []
    mask_keys: list[Any] = []

    def divided(stage: str, payloads: dict[str, Any]) -> Any:
        if stage == stages.UNMASK:
            for node in ("node-1", "node-2"):
                survivors = [other for other in payloads[node].survivors if other != "node-0"]
                payloads[node] = stages.UnmaskRequest(survivors, ["node-0"])
        for reply in honest(stage, payloads):
            if stage == stages.UNMASK:
                told = stages.payload(reply.content, stage, SESSION, stages.RevealedShares)
                seeds.extend(share for node, share in told.seeds.items() if node == "node-0")
                mask_keys.extend(share for node, share in told.keys.items() if node == "node-0")
            yield reply

    watched.strategy._ask = divided  # type: ignore[method-assign]
    failed(watched)
    needed = watched.strategy.shares_needed(4)
    assert len(seeds) < needed
    assert len(mask_keys) < needed


# -- public keys -------------------------------------------------------------------------------------------------------


class Impostor:
    """A server that tells node-0 keys of its own for those of all others, and reads what is meant for them."""

    def __init__(self, **options: Any) -> None:
        self.secret = keys.fresh_secret()
        self.watched = Watched(4, **options)
        self._honest = self.watched.strategy._ask
        self.watched.strategy._ask = self._ask  # type: ignore[method-assign]
        self.read: dict[str, bytes] = {}
        """The secrets of node-0 that it has read, by their name."""

    def own(self, other: str) -> bytes:
        """The secret behind the keys that it tells as those of a node."""
        return keys.derived(self.secret, other)[: keys.SECRET_BYTES]

    def _ask(self, stage: str, payloads: dict[str, Any]) -> Any:
        if stage == stages.SHARE:
            asked = payloads["node-0"]
            false = {
                other: stages.PublicKeys(
                    keys.public_key(self.own(other)), keys.public_key(self.own(other)), told.signature
                )
                for other, told in asked.neighbours.items()
            }
            payloads = {**payloads, "node-0": stages.ShareRequest(asked.threshold, false)}
        for reply in self._honest(stage, payloads):
            if stage == stages.SHARE and reply.metadata.src_node_id == "node-0" and not reply.has_error():
                shares = stages.payload(reply.content, stage, SESSION, stages.Shares)
                self._open(shares, payloads["node-1"].neighbours["node-0"], payloads["node-0"].threshold)
            yield reply

    def _open(self, shares: stages.Shares, node: stages.PublicKeys, threshold: int) -> None:
        opened = []
        for other, sealed in shares.sealed.items():
            place = f"share, run 1, {SESSION}, node-0 to {other}"
            key = keys.agreed(self.own(other), node.transport, place)
            opened.append(stages.decoded(keys.unseal(key, sealed, place), stages.Share))
        self.read["seed"] = keys.combine([(share.index, share.seed) for share in opened[:threshold]])
        self.read["key"] = keys.combine([(share.index, share.key) for share in opened[:threshold]])
        assert keys.commitment(self.read["seed"]) == shares.commitment


@pytest.fixture
def identities(tmp_path: Path) -> Callable[[int], dict[str, Any]]:
    """Node configs in which each of four nodes signs and knows the others."""
    for number in range(4):
        (tmp_path / f"identity-{number}").write_bytes(bytes([number + 1]) * 32)
    listed = [f'node-{number} = "{public_identity(tmp_path / f"identity-{number}")}"\n' for number in range(4)]
    (tmp_path / "peers.toml").write_text("".join(listed))
    return lambda number: {
        "secagg-identity-file": str(tmp_path / f"identity-{number}"),
        "secagg-peers-file": str(tmp_path / "peers.toml"),
    }


def test_nodes_that_know_each_other_come_to_the_same_sum(identities: Callable[[int], dict[str, Any]]) -> None:
    watched = Watched(4, node_config=identities)
    watched.execute()
    assert np.array_equal(watched.sums[0], watched.expected(range(4)))


def test_a_server_that_lies_about_public_keys_reads_nothing_of_a_node_that_knows_its_peers(
    identities: Callable[[int], dict[str, Any]],
) -> None:
    impostor = Impostor(node_config=identities)
    impostor.watched.execute()
    (reason,) = impostor.watched.refusals
    assert "are not signed by it" in reason
    assert impostor.read == {}
    assert np.array_equal(impostor.watched.sums[0], impostor.watched.expected((1, 2, 3)))


def test_without_a_list_of_peers_such_a_server_reads_both_secrets() -> None:
    """What the lists are for; the test above would see nothing else."""
    impostor = Impostor()
    with pytest.raises(NoUsableReplies):
        impostor.watched.execute()
    assert impostor.read.keys() == {"seed", "key"}


def test_a_signature_is_good_for_one_node_in_one_round_of_one_run(tmp_path: Path) -> None:
    (tmp_path / "identity").write_bytes(bytes(32))
    context = Context(
        run_id=7,
        node_id="node-1",
        node_config={"secagg-identity-file": str(tmp_path / "identity")},
        state=RecordDict(),
        run_config={},
    )
    reply = ask(scripted_app([[]], [secaggplus_mod]), stage(stages.SETUP), context=context)
    told = stages.payload(reply.content, stages.SETUP, "s", stages.PublicKeys)
    (tmp_path / "peers.toml").write_text(
        "".join(f'{node} = "{public_identity(tmp_path / "identity")}"\n' for node in ("node-1", "node-2"))
    )

    def verdict(run_id: int, node: str) -> str:
        config = {"secagg-peers-file": str(tmp_path / "peers.toml")}
        other = Context(run_id=run_id, node_id="node-0", node_config=config, state=RecordDict(), run_config={})
        ask(scripted_app([[]], [secaggplus_mod]), stage(stages.SETUP), context=other)
        request = stages.ShareRequest(2, {node: told, "node-3": public("node-3")})
        return refused(stage(stages.SHARE, request), other)

    assert "keys that the server tells of node-1" not in verdict(7, "node-1")
    assert "node-3 is not among the nodes" in verdict(7, "node-1")
    assert "keys that the server tells of node-1" in verdict(8, "node-1")
    assert "keys that the server tells of node-2" in verdict(7, "node-2")


def test_the_same_keys_under_two_names_are_refused() -> None:
    context = node_context()
    reply = ask(scripted_app([[]], [secaggplus_mod]), stage(stages.SETUP), context=context)
    own = stages.payload(reply.content, stages.SETUP, "s", stages.PublicKeys)
    for around in ({"a": public("a"), "b": public("a")}, {"a": public("a"), "b": own}):
        assert "same key of two nodes" in refused(stage(stages.SHARE, stages.ShareRequest(2, around)), context)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("node-1 = 3\n", "cannot be read"),
        ('node-1 = "00"\n', "no key of 32 bytes for node-1"),
    ],
)
def test_a_list_of_peers_that_does_not_read_is_said(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "peers.toml").write_text(text)
    watched = Watched(3, node_config=lambda _: {"secagg-peers-file": str(tmp_path / "peers.toml")})
    assert all(says in reason for reason in failed(watched))


def test_an_identity_that_is_too_short_is_said(tmp_path: Path) -> None:
    (tmp_path / "identity").write_bytes(b"short")
    with pytest.raises(InconsistentReply, match="needs 32 random bytes"):
        public_identity(tmp_path / "identity")


# -- the app -----------------------------------------------------------------------------------------------------------


def test_the_app_inside_neither_sees_nor_changes_the_secrets_of_its_node() -> None:
    seen: list[list[str]] = []

    def nosy(message: Message, context: Context, call_next: Any) -> Message:
        seen.append(list(context.state))
        context.state[stages.RECORD] = ConfigRecord({"kept": b"chosen by the app"})
        reply: Message = call_next(message, context)
        return reply

    watched = Watched(4, mods=[secaggplus_mod, nosy])
    watched.execute()
    assert seen == [[]] * 4
    assert np.array_equal(watched.sums[0], watched.expected(range(4)))
