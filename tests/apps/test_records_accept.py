"""Records take what Flower's take and refuse what Flower's refuse. The tables were probed from Flower 1.42."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from fedq.apps import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict, UnsupportedDtype

ones = np.ones((2, 3), np.float32)
npy = Array(ones).data


@pytest.mark.parametrize(
    "value",
    [1, 1.0, -1, 2**70, float("nan"), np.float64(1), [1], [1.0], [], [1, True], [1.0, np.float64(1)]],
    ids=repr,
)
def test_a_metric_record_takes(value: Any) -> None:
    assert MetricRecord({"a": value})["a"] is value


@pytest.mark.parametrize(
    "value",
    [
        True,
        np.float32(1),
        np.int64(1),
        [True],
        [1, 2.0],
        [1.0, 2],
        [np.float64(1), 1.0],
        "s",
        b"x",
        None,
        (1,),
        {},
        [None],
        [[1]],
        np.ones(2),
    ],
    ids=repr,
)
def test_a_metric_record_refuses(value: Any) -> None:
    record = MetricRecord({"b": 1})
    with pytest.raises(TypeError, match="'a'"):
        record["a"] = value
    with pytest.raises(TypeError):
        MetricRecord({"a": value})
    assert record == {"b": 1}


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, "s", b"b", 2**70, [1], ["a", "b"], [b"a"], [True, False], [1, True], [], np.float64(1), "", b""],
    ids=repr,
)
def test_a_config_record_takes(value: Any) -> None:
    assert ConfigRecord({"a": value})["a"] is value


@pytest.mark.parametrize(
    "value",
    [None, [True, 1], ["a", b"b"], [[1]], (1,), np.float32(1), np.int32(1), bytearray(b"x"), [None], {}, {"b": 1}],
    ids=repr,
)
def test_a_config_record_refuses(value: Any) -> None:
    with pytest.raises(TypeError, match="'a'"):
        ConfigRecord({"a": value})


@pytest.mark.parametrize("kind", [MetricRecord, ConfigRecord, ArrayRecord, RecordDict])
def test_keys_are_str(kind: type[Any]) -> None:
    values = {MetricRecord: 1, ConfigRecord: 1, ArrayRecord: Array(ones), RecordDict: MetricRecord()}
    record = kind()
    with pytest.raises(TypeError):
        record[1] = values[kind]
    with pytest.raises(TypeError):
        kind({1: values[kind]})


def test_a_metric_or_config_record_that_need_not_keep_its_input_empties_it() -> None:
    for kind in (MetricRecord, ConfigRecord):
        kept, taken = {"a": 1, "b": 2}, {"a": 1, "b": 2}
        assert kind(kept, keep_input=True) == kept == {"a": 1, "b": 2}  # type: ignore[arg-type]
        assert kind(taken, keep_input=False) == {"a": 1, "b": 2}  # type: ignore[arg-type]
        assert taken == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ((ones,), {}),
        ((), {"ndarray": ones}),
        (("float32", (2, 3), "numpy.ndarray", npy), {}),
        (("float32", (2, 3), "numpy.ndarray"), {"data": npy}),
        (("float32",), {"shape": (2, 3), "stype": "numpy.ndarray", "data": npy}),
        ((), {"dtype": "float32", "shape": (2, 3), "stype": "numpy.ndarray", "data": npy}),
    ],
)
def test_an_array_is_made_of_an_ndarray_or_of_its_four_fields(
    arguments: tuple[tuple[Any, ...], dict[str, Any]],
) -> None:
    array = Array(*arguments[0], **arguments[1])
    assert (array.dtype, array.shape, array.stype) == ("float32", (2, 3), "numpy.ndarray")
    assert array.data == npy
    assert np.array_equal(array.numpy(), ones)
    assert array == Array(ones)


@pytest.mark.parametrize(
    "arguments",
    [
        ((), {}),
        (([1, 2],), {}),
        ((np.float32(1),), {}),
        ((ones,), {"ndarray": ones}),
        ((ones, ones), {}),
        ((ones,), {"dtype": "float32"}),
        (("float32", [2, 3], "numpy.ndarray", npy), {}),
        (("float32", (2, 3), "numpy.ndarray", memoryview(npy)), {}),
        (("float32", (2, 3), "numpy.ndarray", npy, 1), {}),
        (("float32", (2, 3), "numpy.ndarray", npy), {"data": npy}),
        (("float32", (2, 3), "numpy.ndarray"), {}),
        (("float32", (2.0, 3), "numpy.ndarray", npy), {}),
        ((), {"ndarray": [1]}),
        ((), {"torch_tensor": ones}),
    ],
)
def test_an_array_refuses(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    with pytest.raises(TypeError):
        Array(*arguments[0], **arguments[1])


def test_an_array_keeps_fields_that_it_cannot_read_and_says_so_when_asked_for_numbers() -> None:
    damaged = Array("float32", (2, 3), "numpy.ndarray", b"xx")
    assert damaged.data == b"xx"
    with pytest.raises(ValueError, match="npy"):
        damaged.numpy()
    foreign = Array("float32", (2, 3), "other", b"xx")
    with pytest.raises(TypeError, match="other"):
        foreign.numpy()
    assert foreign == Array("float32", (2, 3), "other", b"xx")
    assert foreign != Array("float32", (2, 3), "other", b"xy")
    assert damaged != foreign


@pytest.mark.parametrize(
    "ndarray",
    [
        np.array([None]),
        np.array(["a"]),
        np.array([b"a"]),
        np.zeros(2, dtype=[("a", "i4")]),
        np.zeros(2, dtype="V3"),
    ],
    ids=lambda array: str(array.dtype),
)
def test_object_string_and_record_dtypes_are_refused_as_a_value_error_that_names_them(ndarray: Any) -> None:
    with pytest.raises(UnsupportedDtype, match="cannot be put into a record") as caught:
        Array(ndarray)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(UnsupportedDtype):
        ArrayRecord([ones, ndarray])


def test_an_npy_of_objects_given_as_bytes_is_never_unpickled() -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="dtype object"):
        Array("object", (1,), "numpy.ndarray", buffer.getvalue()).numpy()


def test_an_array_record_is_made_of_nothing_arrays_or_ndarrays() -> None:
    for empty in (ArrayRecord(), ArrayRecord([]), ArrayRecord({}), ArrayRecord(numpy_ndarrays=[])):
        assert empty == {}
    record = ArrayRecord([ones, ones * 2])
    assert list(record) == ["0", "1"]
    assert record == ArrayRecord(numpy_ndarrays=[ones, ones * 2]) == ArrayRecord.from_numpy_ndarrays([ones, ones * 2])
    named = ArrayRecord({"w": Array(ones)})
    assert named == ArrayRecord(array_dict={"w": Array(ones)}) == ArrayRecord.from_array_dict({"w": Array(ones)})


@pytest.mark.parametrize(
    "arguments",
    [
        (((ones,),), {}),
        ((ones,), {}),
        (({"w": ones},), {}),
        (([ones, 1],), {}),
        (([ones], True), {}),
        (([ones],), {"numpy_ndarrays": [ones]}),
        (([],), {"numpy_ndarrays": [ones]}),
        ((), {"array_dict": [ones]}),
        ((), {"numpy_ndarrays": {"w": Array(ones)}}),
        ((ArrayRecord([ones]),), {}),
    ],
)
def test_an_array_record_refuses(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    with pytest.raises(TypeError):
        ArrayRecord(*arguments[0], **arguments[1])


def test_an_array_record_holds_arrays_only_and_says_how_to_wrap_an_ndarray() -> None:
    record: Any = ArrayRecord()
    with pytest.raises(TypeError, match=r"Array\(value\)"):
        record["w"] = ones


def test_an_array_record_that_need_not_keep_its_input_empties_it() -> None:
    arrays = [ones, ones]
    assert len(ArrayRecord(arrays, keep_input=False)) == 2
    assert arrays == []
    named = {"w": Array(ones)}
    record = ArrayRecord(named, keep_input=False)
    assert named == {}
    (array,) = record.to_numpy_ndarrays(keep_input=False)
    assert np.array_equal(array, ones)
    assert record == {}


def test_records_count_their_bytes() -> None:
    assert MetricRecord({"ab": 1, "l": [1, 2]}).count_bytes() == 27
    assert ConfigRecord({"ab": True, "s": "xyz", "l": ["a", "bc"]}).count_bytes() == 11
    assert ConfigRecord({"l": [], "s": "", "n": [1, 2]}).count_bytes() == 19
    assert ArrayRecord([ones]).count_bytes() == 24 + 1
    assert RecordDict({"a": ArrayRecord([ones]), "m": MetricRecord({"n": 1})}).count_bytes() == 26 + 10


def test_a_record_dict_holds_records_only() -> None:
    for wrong in ({}, 1, None, Array(ones), RecordDict()):
        with pytest.raises(TypeError):
            RecordDict({"a": wrong})  # type: ignore[dict-item]
    with pytest.raises(TypeError):
        RecordDict([])  # type: ignore[arg-type]


def test_the_views_of_a_record_dict_are_live_in_both_directions() -> None:
    metrics = MetricRecord({"a": 1})
    records = RecordDict({"m": metrics, "c": ConfigRecord()})
    view = records.metric_records
    assert view == {"m": metrics}
    view["n"] = MetricRecord()
    assert list(records) == ["m", "c", "n"]
    del view["n"]
    assert list(records) == ["m", "c"]
    records["o"] = MetricRecord()
    assert list(view) == ["m", "o"]
    assert len(view) == 2
    assert list(records.array_records) == []
    assert list(records.config_records) == ["c"]
    with pytest.raises(TypeError):
        view["c"] = ConfigRecord()  # type: ignore[assignment]
    for key in ("c", "absent"):
        with pytest.raises(KeyError):
            view[key]
        with pytest.raises(KeyError):
            del view[key]
    assert "c" in records


def test_replacing_a_record_by_one_of_another_kind_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    records = RecordDict({"a": MetricRecord()})
    with caplog.at_level(logging.WARNING):
        records["a"] = MetricRecord({"b": 1})
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        records["a"] = ConfigRecord()
    assert "'a'" in caplog.text


def test_records_behave_as_dicts_do() -> None:
    record = MetricRecord({"a": 1})
    copied = record.copy()
    copied["b"] = 2
    assert record == {"a": 1}
    assert record == {"a": 1}
    assert record != {"a": 2}
    assert record != 1
    assert record.pop("a") == 1
    with pytest.raises(KeyError):
        record["a"]
    with pytest.raises(TypeError):
        hash(record)
    record.update({"c": 3}, d=4)
    assert list(record.items()) == [("c", 3), ("d", 4)]
    with pytest.raises(TypeError):
        record.update(e="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        record.setdefault("f", True).bit_count()  # type: ignore[union-attr]
