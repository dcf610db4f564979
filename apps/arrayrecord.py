"""Named arrays."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from fedq.apps.array import Array, import_torch, is_tensor, tensor_from_numpy
from fedq.apps.typeddict import TypedDict
from fedq.apps.typing import NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["ArrayRecord"]


class ArrayRecord(TypedDict[str, Array]):
    """A mapping of names to `Array`, in order of insertion: the parameters of a model, gradients, embeddings.

    It can be made of nothing, a dict of Arrays, a list of NumPy arrays (their names become "0", "1", ...), or a PyTorch
    `state_dict`::

        ArrayRecord()
        ArrayRecord({"weight": Array(weight)})
        ArrayRecord([weight, bias])
        ArrayRecord(model.state_dict())

    Parameters
    ----------
    array_dict, numpy_ndarrays, torch_state_dict
        One of them, by position or by name.
    keep_input
        If False, what was given is emptied on the way, so that its memory can be freed.

    Raises TypeError for anything else, UnsupportedDtype (a ValueError) for arrays whose dtype does not travel.
    """

    __slots__ = ()

    @overload
    def __init__(self) -> None: ...

    @overload
    def __init__(self, array_dict: dict[str, Array], *, keep_input: bool = True) -> None: ...

    @overload
    def __init__(self, numpy_ndarrays: list[NDArray], *, keep_input: bool = True) -> None: ...

    @overload
    def __init__(
        self, torch_state_dict: dict[str, torch.Tensor] | dict[str, Any], *, keep_input: bool = True
    ) -> None: ...

    def __init__(
        self,
        *args: Any,
        numpy_ndarrays: list[NDArray] | None = None,
        torch_state_dict: dict[str, torch.Tensor] | dict[str, Any] | None = None,
        array_dict: dict[str, Array] | None = None,
        keep_input: bool = True,
    ) -> None:
        super().__init__()
        named = {
            kind: value
            for kind, value in (("array", array_dict), ("numpy", numpy_ndarrays), ("torch", torch_state_dict))
            if value is not None
        }
        given = [value for value in args if value is not None] + list(named.values())
        if len(args) > 1 or len(given) > 1:
            self._refuse()
        if not given:
            return
        (source,) = given
        kinds = tuple(named) or ("array", "numpy", "torch")
        if "numpy" in kinds and isinstance(source, list) and all(isinstance(v, np.ndarray) for v in source):
            self._fill_from_ndarrays(source, keep_input)
        elif isinstance(source, dict) and all(isinstance(k, str) for k in source):
            if "array" in kinds and all(isinstance(v, Array) for v in source.values()):
                self._fill_from_arrays(source, keep_input)
            elif "torch" in kinds and source and all(is_tensor(v) for v in source.values()):
                self._fill_from_tensors(source, keep_input)
            elif not ("torch" in kinds and not source):
                self._refuse()
        else:
            self._refuse()

    @staticmethod
    def _refuse() -> None:
        raise TypeError(
            "an ArrayRecord is made of one of: a dict of names to Array, a list of NumPy ndarrays, "
            "a PyTorch state_dict; `keep_input` goes by name only"
        )

    def _check_value(self, key: Any, value: Any) -> None:
        if not isinstance(value, Array):
            hint = ": wrap it, Array(value)" if isinstance(value, np.ndarray) or is_tensor(value) else ""
            raise TypeError(f"an ArrayRecord holds Array, not {type(value).__name__} (key {key!r}){hint}")

    def _fill_from_arrays(self, arrays: dict[str, Array], keep_input: bool) -> None:
        # Arrays are immutable, so they can be shared.
        self._data.update(arrays)
        if not keep_input:
            arrays.clear()

    def _fill_from_ndarrays(self, ndarrays: list[NDArray], keep_input: bool) -> None:
        for index in range(len(ndarrays)):
            self._data[str(index)] = Array.from_numpy_ndarray(ndarrays[index])
            if not keep_input:
                # Let go of each as soon as it is taken over, not of all at the end.
                ndarrays[index] = None  # type: ignore[call-overload]
        if not keep_input:
            ndarrays.clear()

    def _fill_from_tensors(self, state_dict: dict[str, Any], keep_input: bool) -> None:
        for key in list(state_dict):
            tensor = state_dict[key] if keep_input else state_dict.pop(key)
            self._data[key] = Array.from_torch_tensor(tensor)

    @classmethod
    def from_array_dict(cls, array_dict: dict[str, Array], *, keep_input: bool = True) -> ArrayRecord:
        """An ArrayRecord of a dict of Arrays; the Arrays are shared, not copied."""
        return cls(array_dict=array_dict, keep_input=keep_input)

    @classmethod
    def from_numpy_ndarrays(cls, ndarrays: list[NDArray], *, keep_input: bool = True) -> ArrayRecord:
        """An ArrayRecord of a list of NumPy arrays, named "0", "1", ..."""
        return cls(numpy_ndarrays=ndarrays, keep_input=keep_input)

    @classmethod
    def from_torch_state_dict(cls, state_dict: dict[str, torch.Tensor], *, keep_input: bool = True) -> ArrayRecord:
        """An ArrayRecord of a PyTorch `state_dict`. Raises RuntimeError if PyTorch is not installed."""
        import_torch("ArrayRecord.from_torch_state_dict")
        return cls(torch_state_dict=state_dict, keep_input=keep_input)

    def to_numpy_ndarrays(self, *, keep_input: bool = True, copy: bool = True) -> list[NDArray]:
        """The arrays in order, writable and independent of the record; with `copy=False` as read-only views of it.

        With `keep_input=False` the record is emptied on the way.
        """
        if keep_input:
            return [array.numpy(copy=copy) for array in self._data.values()]
        return [self._data.pop(key).numpy(copy=copy) for key in list(self._data)]

    def to_torch_state_dict(self, *, keep_input: bool = True) -> OrderedDict[str, torch.Tensor]:
        """The arrays as a PyTorch `state_dict`, independent of the record.

        Raises RuntimeError if PyTorch is not installed, TypeError for dtypes that it does not know. With
        `keep_input=False` the record is emptied on the way.
        """
        import_torch("ArrayRecord.to_torch_state_dict")
        state_dict: OrderedDict[str, torch.Tensor] = OrderedDict()
        for key in list(self._data):
            array = self._data[key] if keep_input else self._data.pop(key)
            state_dict[key] = tensor_from_numpy(array.numpy())
        return state_dict

    def count_bytes(self) -> int:
        """Size of the arrays and of their names in bytes."""
        return sum(array.nbytes + len(key) for key, array in self._data.items())
