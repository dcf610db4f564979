"""Each example is listed, runs in a test, and learns."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedq.apps.history import History
from fedq.apps.strategy import PrivacyAccountant
from fedq.apps.testing import Federation, FederationRun, Interrupted
from tests.cli.deployment import Deployment, deployment
from tests.support.examples import EXAMPLES, Project, loaded
from tests.support.shelves import importable

TESTS = Path(__file__).parent
NAMES = sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml"))
LISTED = re.findall(r"^\| \[(\w+)\]\(\1/\) \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
NODES = 3


def run(project: Project, **config: Any) -> FederationRun:
    return Federation(NODES).run(project.serverapp, project.clientapp, {**project.config, "min-nodes": NODES, **config})


def interrupted_and_continued(project: Project, **config: Any) -> FederationRun:
    """A run whose ServerApp was ended behind its second checkpoint."""
    made = Federation(NODES).begin(
        project.serverapp, project.clientapp, {**project.config, "min-nodes": NODES, **config}
    )
    with pytest.raises(Interrupted):
        made.execute(stop_after_checkpoint=2)
    return made.execute()


def bits(made: FederationRun) -> list[bytes]:
    return [array.tobytes() for array in made.result.arrays.to_numpy_ndarrays()]


# -- the list ----------------------------------------------------------------------------------------------------------


def test_every_example_is_listed_with_a_line_of_its_own() -> None:
    assert sorted(set(LISTED)) == LISTED
    assert set(NAMES) == set(LISTED)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_what_it_is_and_is_run_by_a_test(name: str) -> None:
    assert (EXAMPLES / name / "README.md").is_file()
    texts = [path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py")]
    assert any(re.search(rf"[\"/]{name}[\"/]", text) for text in texts), f"no test names examples/{name}"


# -- scikit-learn ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scikit_learn() -> Iterator[Project]:
    with loaded("scikit_learn") as project:
        yield project


def test_scikit_learn_learns_on_features_that_are_scaled_over_all_nodes(scikit_learn: Project) -> None:
    made = run(scikit_learn)
    accuracies = [metrics["accuracy"] for metrics in made.result.evaluate_metrics_serverapp.values()]
    assert accuracies[0] < 0.7  # type: ignore[operator]
    assert accuracies[-1] > 0.95  # type: ignore[operator]
    task = scikit_learn.module("cancer.task")
    features = np.concatenate([task.node_data(part, NODES, seed=7)[0] for part in range(NODES)])
    scale = made.server_context.state.config_records["scale"]
    np.testing.assert_allclose(scale["mean"], features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(scale["deviation"], features.std(axis=0), rtol=1e-9)


@pytest.mark.slow
def test_scikit_learn_interrupted_ends_with_the_same_bits(scikit_learn: Project) -> None:
    assert bits(interrupted_and_continued(scikit_learn)) == bits(run(scikit_learn))


# -- on a federation ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A node for each of ``NODES``."""
    with deployment(tmp_path_factory.mktemp("federation")) as running:
        yield running


def trained_on(federation: Deployment, name: str, folder: Path, **config: Any) -> History:
    """What ``fedq run examples/NAME --follow`` and ``fedq pull`` leave in a folder: arrays and history."""
    words = [word for key, value in {**config, "min-nodes": NODES}.items() for word in ("-c", f"{key}={value}")]
    told = json.loads(federation.fedq("run", EXAMPLES / name, "--follow", "--json", *words, timeout=300.0))
    assert told["status"] == "finished"
    federation.fedq("pull", told["run_id"], "-o", folder)
    return History.from_json((folder / "history.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_scikit_learn_runs_on_a_federation_and_computes_the_same_bits(
    scikit_learn: Project, federation: Deployment, tmp_path: Path
) -> None:
    rounds = {"num-rounds": 2, "local-epochs": 1}
    history = trained_on(federation, "scikit_learn", tmp_path, **rounds)
    with np.load(tmp_path / "arrays.npz") as arrays:
        assert [arrays[name].tobytes() for name in arrays.files] == bits(run(scikit_learn, **rounds))
    assert [ended.number for ended in history.trained] == [1, 2]


@pytest.mark.slow
def test_digits_with_differential_privacy_tell_on_a_federation_what_each_round_has_cost(
    federation: Deployment, tmp_path: Path
) -> None:
    config = {"num-rounds": 2, "local-epochs": 1, "noise-multiplier": 4.0}
    history = trained_on(federation, "dp_digits", tmp_path, **config)
    accountant = PrivacyAccountant(1e-5)
    for ended in history.trained:
        accountant.add(4.0)
        assert ended.train["epsilon"] == pytest.approx(accountant.epsilon)
        assert ended.replies == NODES


# -- FedBuff -----------------------------------------------------------------------------------------------------------

STRAGGLING = 6


@pytest.fixture(scope="module")
def stragglers() -> Iterator[Project]:
    with loaded("fedbuff_stragglers") as project:
        yield project


def slowness(project: Project) -> list[float]:
    config = project.config
    given = {"share": config["slow-share"], "most": config["slow-factor"], "seed": config["seed"]}
    return [project.module("stragglers.task").slowness(part, STRAGGLING, **given) for part in range(STRAGGLING)]


def seconds_to(project: Project, accuracy: float, **config: Any) -> float:
    """Virtual seconds until the model is so accurate, where a quick node takes one for a training."""
    federation = Federation(STRAGGLING, delays={f"node-{i}": slow for i, slow in enumerate(slowness(project))})
    times: list[float] = []
    server = project.module("stragglers.server_app")
    evaluated = server.task.accuracy

    def timed(model: Any, examples: Any) -> float:
        found = float(evaluated(model, examples))
        times.extend([federation.clock.now] if found >= accuracy else [])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server.task, "accuracy", timed)
        federation.run(
            project.serverapp, project.clientapp, {**project.config, "min-nodes": STRAGGLING, "pause": 0.0, **config}
        )
    return times[0]


def test_a_third_of_the_nodes_is_slow_by_the_same_factors_in_each_run(stragglers: Project) -> None:
    factors = slowness(stragglers)
    assert factors == slowness(stragglers)
    assert sorted(factors)[:4] == [1.0] * 4
    assert all(5.0 <= factor <= 10.0 for factor in sorted(factors)[4:])


def test_what_does_not_wait_is_as_accurate_in_half_of_the_time_that_waiting_for_stragglers_takes(
    stragglers: Project,
) -> None:
    waiting = seconds_to(stragglers, 0.9, **{"strategy": "fedavg", "num-rounds": 7})
    assert seconds_to(stragglers, 0.9, **{"num-rounds": 20}) < waiting / 2
    assert seconds_to(stragglers, 0.9, **{"strategy": "fedasync", "num-rounds": 80}) < waiting / 2


# -- PyTorch -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pytorch() -> Iterator[Project]:
    importable("torch")
    with loaded("pytorch") as project:
        threads = sys.modules["torch"].get_num_threads()
        sys.modules["torch"].set_num_threads(1)
        yield project
        sys.modules["torch"].set_num_threads(threads)


@pytest.mark.peer
def test_a_network_in_pytorch_learns_the_digits(pytorch: Project) -> None:
    made = run(pytorch)
    assert made.result.evaluate_metrics_serverapp[8]["accuracy"] > 0.95  # type: ignore[operator]
    assert made.result.evaluate_metrics_clientapp[8]["accuracy"] > 0.95  # type: ignore[operator]
    model = pytorch.module("convnet.task").ConvNet()
    model.load_state_dict(made.result.arrays.to_torch_state_dict())
    assert model.layers[1].num_batches_tracked.is_floating_point() is False
    assert model.layers[1].num_batches_tracked > 0


@pytest.mark.peer
def test_a_network_in_pytorch_interrupted_ends_with_the_same_bits(pytorch: Project) -> None:
    short = {"num-rounds": 3, "local-epochs": 1}
    assert bits(interrupted_and_continued(pytorch, **short)) == bits(run(pytorch, **short))


# -- XGBoost -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xgboost() -> Iterator[Project]:
    importable("xgboost")
    with loaded("xgboost") as project:
        yield project


@pytest.mark.peer
def test_boosted_trees_of_all_nodes_make_one_model_that_xgboost_itself_reads(xgboost: Project) -> None:
    import xgboost as library

    made = run(xgboost)
    losses = [metrics["loss"] for metrics in made.result.evaluate_metrics_serverapp.values()]
    assert losses[0] == pytest.approx(np.log(2))
    assert losses[-1] < 0.25  # type: ignore[operator]
    assert made.result.evaluate_metrics_serverapp[10]["accuracy"] > 0.93  # type: ignore[operator]
    (model,) = made.result.arrays.to_numpy_ndarrays()
    booster = library.Booster()
    booster.load_model(bytearray(model.tobytes()))
    assert booster.num_boosted_rounds() == 10 * NODES
    # The margin of the whole is the sum of the margins of its trees, whichever node has grown them.
    examples = xgboost.module("trees.task").test_data(seed=7)
    parts = [booster.predict(examples, output_margin=True, iteration_range=(at, at + 1)) for at in range(10 * NODES)]
    np.testing.assert_allclose(np.sum(parts, axis=0), booster.predict(examples, output_margin=True), atol=1e-5)


@pytest.mark.peer
def test_boosted_trees_interrupted_end_with_the_same_bits(xgboost: Project) -> None:
    assert bits(interrupted_and_continued(xgboost)) == bits(run(xgboost))


@pytest.mark.peer
def test_several_trees_and_several_classes_of_a_reply_are_all_in_the_model(xgboost: Project) -> None:
    import xgboost as library
    from sklearn.datasets import load_iris

    from fedq.apps import ArrayRecord, ClientApp, Message, MetricRecord, RecordDict, ServerApp
    from fedq.apps.strategy import FedXgbBagging

    features, labels = load_iris(return_X_y=True)
    given = {"objective": "multi:softprob", "num_class": 3, "num_parallel_tree": 2, "base_score": 0.5, "nthread": 1}
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Any) -> Message:
        part = int(context.node_config["partition-id"])
        examples = library.DMatrix(features[part::NODES], label=labels[part::NODES])
        (sent,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        booster = library.Booster(given, [examples])
        if sent.size:
            booster.load_model(bytearray(sent.tobytes()))
        before = booster.num_boosted_rounds()
        for number in range(before, before + 2):
            booster.update(examples, number)
        new = np.frombuffer(bytes(booster[before : before + 2].save_raw("json")), dtype=np.uint8)
        content = {"arrays": ArrayRecord([new]), "metrics": MetricRecord({"num-examples": 50})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        FedXgbBagging(fraction_evaluate=0.0).start(grid, ArrayRecord([np.zeros(0, np.uint8)]), num_rounds=2)

    (model,) = Federation(NODES).run(server, client).result.arrays.to_numpy_ndarrays()
    booster = library.Booster()
    booster.load_model(bytearray(model.tobytes()))
    assert booster.num_boosted_rounds() == 2 * 2 * NODES
    assert len(booster.get_dump()) == 2 * 2 * NODES * 3 * 2
    chances = booster.predict(library.DMatrix(features))
    assert chances.shape == (150, 3)
    assert (chances.argmax(axis=1) == labels).mean() > 0.9


@pytest.mark.peer
def test_one_node_after_the_other_goes_on_with_the_model(xgboost: Project) -> None:
    import xgboost as library

    from fedq.apps import ArrayRecord, ClientApp, Message, MetricRecord, RecordDict, ServerApp
    from fedq.apps.strategy import FedXgbCyclic

    task, client, server = xgboost.module("trees.task"), ClientApp(), ServerApp()
    given = task.parameters(0.3, 3, 1)

    @client.train()
    def train(message: Message, context: Any) -> Message:
        examples = task.node_data(int(context.node_config["partition-id"]), NODES, 7)
        (sent,) = message.content.array_records["arrays"].to_numpy_ndarrays()
        booster = library.Booster(given, [examples])
        if sent.size:
            booster.load_model(bytearray(sent.tobytes()))
        booster.update(examples, booster.num_boosted_rounds())
        model = np.frombuffer(bytes(booster.save_raw("json")), dtype=np.uint8)
        content = {"arrays": ArrayRecord([model]), "metrics": MetricRecord({"num-examples": examples.num_row()})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid: Any, context: Any) -> None:
        FedXgbCyclic(fraction_evaluate=0.0).start(grid, ArrayRecord([np.zeros(0, np.uint8)]), num_rounds=4)

    (model,) = Federation(NODES).run(server, client).result.arrays.to_numpy_ndarrays()
    whole = library.Booster()
    whole.load_model(bytearray(model.tobytes()))
    # The same by hand: nodes 0, 1, 2 and 0 again.
    parts = [task.node_data(part, NODES, 7) for part in range(NODES)]
    alone = library.Booster(given, parts)
    for number in range(4):
        alone.update(parts[number % NODES], number)
    assert whole.get_dump() == alone.get_dump()
