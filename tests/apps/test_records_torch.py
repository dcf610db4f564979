"""PyTorch's tensors become arrays and come back. It is no dependency, and comes from a shelf."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, RecordDict, wire
from tests.support.shelves import importable

pytestmark = pytest.mark.peer


@pytest.fixture(scope="module")
def torch() -> Any:
    importable("torch")
    return importlib.import_module("torch")


def test_a_state_dict_comes_back_and_can_be_loaded(torch: Any) -> None:
    model, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    record = ArrayRecord(model.state_dict())
    assert record == ArrayRecord.from_torch_state_dict(model.state_dict())
    assert list(record) == ["weight", "bias"]
    other.load_state_dict(record.to_torch_state_dict())
    assert torch.equal(other.weight, model.weight)


def test_a_record_is_a_snapshot_of_the_tensors_and_what_it_gives_is_independent(torch: Any) -> None:
    tensor = torch.ones(3)
    record = ArrayRecord({"t": tensor})
    tensor += 1
    given = record.to_torch_state_dict()["t"]
    given += 5
    assert record["t"].numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float64", "bool", "uint8", "int64", "complex64"]
)
def test_dtypes_survive_the_wire(torch: Any, name: str) -> None:
    tensor = torch.tensor([[0, 1, 2], [3, 1, 0]]).to(getattr(torch, name))
    data = wire.encode(RecordDict({"a": ArrayRecord({"t": tensor})})).data
    back = wire.decode(data).array_records["a"].to_torch_state_dict()["t"]
    assert back.dtype == tensor.dtype
    assert torch.equal(back.to(torch.complex64), tensor.to(torch.complex64))


def test_tensors_are_detached(torch: Any) -> None:
    array = Array(torch.ones(2, requires_grad=True))
    assert np.array_equal(array.numpy(), np.ones(2, np.float32))
    assert array == Array(torch_tensor=torch.ones(2))


def test_a_state_dict_that_need_not_be_kept_is_emptied_and_so_is_the_record(torch: Any) -> None:
    state = {"w": torch.ones(2)}
    record = ArrayRecord(state, keep_input=False)
    assert state == {}
    assert list(record.to_torch_state_dict(keep_input=False)) == ["w"]
    assert record == {}


def test_a_dict_of_tensors_and_other_things_is_refused(torch: Any) -> None:
    with pytest.raises(TypeError):
        ArrayRecord({"w": torch.ones(2), "x": 1})
