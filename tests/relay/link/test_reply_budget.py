"""With a reply budget the server holds no more than the budget and four times the model, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fedq.apps import Context, Grid, Message, ServerApp
from fedq.apps.strategy import FedAvg, Result
from fedq.relay import objects
from fedq.relay.connection import Relay
from fedq.relay.grid import RedisGrid
from tests.relay.link import apps
from tests.relay.link.conftest import Setting
from tests.relay.link.killing import Killed

MODEL = apps.large_model().count_bytes()
NODES = 9
ROOM_FOR_TWO = 4 * MODEL


def bits(result: Result | None) -> Any:
    assert result is not None
    return {name: array.numpy().tobytes() for name, array in result.arrays.items()}, result.train_metrics_clientapp


def trained(grid: RedisGrid, budget: int | None, lost_behind: int | None = None) -> Any:
    app = ServerApp()
    strategy = FedAvg(fraction_evaluate=0.0, reply_budget=budget)
    aggregate = strategy.aggregate_train

    def some(replies: Iterable[Message]) -> Iterator[Message]:
        for number, reply in enumerate(replies, 1):
            yield reply
            if number == lost_behind:
                raise Killed

    strategy.aggregate_train = lambda number, replies: aggregate(number, some(replies))  # type: ignore[method-assign]

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        strategy.start(grid, apps.large_model(), num_rounds=2)

    app(grid, grid.context)
    return bits(grid.result)


def nodes(setting: Setting) -> list[Any]:
    return [setting.node(f"node-{number}", apps.train_unevenly) for number in range(NODES)]


def stored(relay: Relay) -> int:
    """Bytes of arrays on the server, whoever they belong to."""
    found = list(relay.redis.scan_iter(f"{relay.keys.base}*obj:*", count=1000, _type="string"))
    with relay.redis.pipeline(transaction=False) as pipe:
        for name in found:
            pipe.strlen(name)
        return sum(pipe.execute())


@pytest.fixture
def looks(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What was stored whenever arrays had been uploaded for a push, a checkpoint or a reply: no moment has more."""
    found: list[int] = []

    def looking(real: Callable[..., int]) -> Callable[..., int]:
        def upload(*args: Any, **options: Any) -> int:
            sent = real(*args, **options)
            found.append(stored(setting.relay))
            return sent

        return upload

    for name in ("upload_shared", "upload_node"):
        monkeypatch.setattr(objects, name, looking(getattr(objects, name)))
    return found


def test_the_server_holds_no_more_than_the_budget_and_four_models(setting: Setting, looks: list[int]) -> None:
    nodes(setting)
    whole = trained(setting.grid(), None)
    without = max(looks)
    assert without > (NODES - 1) * MODEL
    looks.clear()
    before = stored(setting.relay)
    within = trained(setting.grid(), ROOM_FOR_TWO)
    assert max(looks) - before <= ROOM_FOR_TWO + 4 * MODEL < without
    assert within == whole


@pytest.mark.parametrize("lost_behind", [3, 5])
def test_a_serverapp_that_is_lost_between_two_partial_aggregates_ends_with_the_same_bits(
    setting: Setting, lost_behind: int
) -> None:
    responders = nodes(setting)
    whole = trained(setting.grid(), None)
    for responder in responders:
        responder.seen.clear()

    grid = setting.grid()
    attempts = 0
    while True:
        try:
            within = trained(grid, ROOM_FOR_TWO, lost_behind if attempts < 5 else None)
            break
        except Killed:
            attempts += 1
            grid = setting.interrupt(grid)
    assert attempts >= 3
    assert within == whole
    seen = [message for responder in responders for message in responder.seen]
    assert len(seen) == len(set(seen)) == 2 * NODES, "a message was carried out twice, or not at all"


def test_a_process_that_is_killed_in_mid_round_goes_on_with_its_partial_aggregate(
    served: Setting, tmp_path: Path
) -> None:
    responders = [served.node(f"node-{number}", apps.train_unevenly) for number in range(4)]
    notes = tmp_path / "notes"

    def result(**config: Any) -> Any:
        for responder in responders:
            responder.seen.clear()
        ended = served.link().submit(apps.dying_within_budget, apps.client, config=config).result(timeout=120)
        seen = [message for responder in responders for message in responder.seen]
        assert len(seen) == len(set(seen)) == 8
        arrays: Mapping[str, Any] = ended.arrays
        return {name: array.numpy().tobytes() for name, array in arrays.items()}, ended.train_metrics_clientapp, ended

    whole, metrics, _ = result()
    within, same, ended = result(budget=ROOM_FOR_TWO, file=str(notes), times=2)
    assert ended.attempts == 3
    assert (within, same) == (whole, metrics)
    assert int(notes.read_text().split()[0]) > 0, "it was killed behind a partial aggregate"
