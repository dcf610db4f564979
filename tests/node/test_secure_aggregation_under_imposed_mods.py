"""What a data owner imposes and secure aggregation: they work together in one order, and in the other say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fedq.apps import ClientApp, Context, Message
from fedq.apps.clipping import clip_update
from fedq.apps.mod import CompressionMod, secaggplus_mod
from fedq.apps.mod.compose import ClientAppCallable
from fedq.apps.secagg import stages
from fedq.apps.strategy import NoUsableReplies
from fedq.node.imposed import Imposed
from tests.apps.strategies.scripted import plain, record
from tests.apps.strategies.watched import Watched

MASKS = "fedq.apps.mod:secaggplus_mod"
CLIPS = "fedq.apps.mod:ClippingMod(0.5)"
NODES = 4


def watched(imposed: Sequence[str], mods: Sequence[Any] = (secaggplus_mod,), **options: Any) -> Watched:
    """A run on nodes that impose these mods; `mods` are those of the app."""
    owners = Imposed(imposed)

    def around(app: ClientApp) -> ClientAppCallable:
        def answer(message: Message, context: Context) -> Message:
            return owners.answer(app, message, context)

        return answer

    return Watched(NODES, mods=mods, around=around, **options)


def refusals(run: Watched) -> list[str]:
    """What the nodes of a run said in which none of them took part."""
    with pytest.raises(NoUsableReplies):
        run.execute()
    assert run.masked == []
    assert len(run.refusals) == NODES
    return run.refusals


def exact(run: Watched) -> bool:
    """Whether the run gives the sum of all updates, to the last bit."""
    run.execute()
    return np.array_equal(run.sums[0], run.expected(range(NODES)))


# -- clipping and noise ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mod", [CLIPS, "fedq.apps.mod:LocalDpMod(1.0, 2.0, 0.5, 1e-05)"])
def test_what_cannot_see_through_masks_lets_none_out_and_says_what_to_do(mod: str) -> None:
    for reason in refusals(watched([mod])):
        assert "masks its update" in reason
        assert "--mod fedq.apps.mod:secaggplus_mod in front of it" in reason


def test_an_owner_who_imposes_the_masks_too_has_every_update_clipped_before_it_is_masked() -> None:
    run = watched([MASKS, CLIPS], mods=[])
    run.execute()
    sent = record(run.initial)
    clipped = [clip_update(sent, record(reply.arrays), 0.5)[0] for reply in run.rounds[0]]
    quantized = [
        run.strategy.quantization.quantized(sent, arrays, reply.examples)
        for arrays, reply in zip(clipped, run.rounds[0], strict=True)
    ]
    assert np.array_equal(run.sums[0], sum(quantized))
    assert not np.array_equal(run.sums[0], run.expected(range(NODES)))


def test_an_owners_noise_is_in_the_sum() -> None:
    quiet, noisy = (
        watched([MASKS, f"fedq.apps.mod:LocalDpMod(1e6, {sensitivity}, 0.5, 1e-05, seed=3)"], mods=[])
        for sensitivity in (0.0, 1.0)
    )
    assert exact(quiet)
    noisy.execute()
    off = plain(noisy.run.result.arrays)["weight"] - plain(quiet.run.result.arrays)["weight"]
    assert (off != 0.0).all()


def test_two_that_mask_are_one_too_many_and_that_is_said() -> None:
    assert all("only one secaggplus_mod" in reason for reason in refusals(watched([MASKS])))


# -- limits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mod",
    [
        "fedq.apps.mod:SizeLimitMod(100000)",
        "fedq.apps.mod:AllowKeysMod('fedq.secagg/*', 'fedq.secagg.masked/*')",
        "fedq.apps.mod:DenyKeysMod('raw*')",
        "fedq.apps.mod:train_arrays_only_mod",
        "fedq.apps.mod:withhold_error_text_mod",
        "fedq.apps.mod:message_size_mod",
        "fedq.apps.mod:CompressionMod(precision='float16', top_k=0.1, zstd_level=3)",
    ],
)
def test_what_does_not_look_into_arrays_lets_masked_ones_pass_as_they_are(mod: str) -> None:
    assert exact(watched([mod]))


def test_a_size_limit_holds_for_masked_vectors_and_says_how_large_they_are() -> None:
    run = watched(["fedq.apps.mod:SizeLimitMod(250, 100000)"])
    with pytest.raises(NoUsableReplies):
        run.execute()
    assert run.masked == []
    assert any("bytes, and 250 are allowed" in reason for reason in run.refusals)


def test_a_list_of_what_may_leave_that_does_not_name_masked_vectors_keeps_them_in() -> None:
    run = watched(["fedq.apps.mod:AllowKeysMod('arrays/*', 'metrics/*', 'fedq.secagg/*')"])
    with pytest.raises(NoUsableReplies):
        run.execute()
    assert run.masked == []
    assert any(stages.MASKED in reason for reason in run.refusals)


# -- compression -------------------------------------------------------------------------------------------------------


def test_an_update_of_the_largest_elements_is_masked_like_any_other() -> None:
    sparse, whole = (Watched(NODES, mods=[secaggplus_mod, *more]) for more in ([CompressionMod(top_k=1.0)], []))
    for run in (sparse, whole):
        run.execute()
    for name, array in plain(sparse.run.result.arrays).items():
        np.testing.assert_allclose(array, plain(whole.run.result.arrays)[name], rtol=1e-5, atol=1e-5)
