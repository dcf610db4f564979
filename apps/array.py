"""One array as records hold it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from fedq.apps.dtypes import canonical, check_dtype, dtype_from_wire, dtype_name, dtype_to_wire, is_ml
from fedq.apps.errors import UnsupportedDtype, WireError
from fedq.apps.typing import Dtype, NDArray

if TYPE_CHECKING:
    import torch

__all__ = ["COMPRESSED", "NUMPY", "Array", "import_torch"]

NUMPY = "numpy.ndarray"
"""The `stype` of arrays that NumPy can read."""

COMPRESSED = "fedq.compressed"
"""The `stype` of arrays that `fedq.apps.compression` has made smaller; `Array.numpy` reads them too."""

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def import_torch(purpose: str) -> Any:
    """PyTorch, which is no dependency. Raises RuntimeError if it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise RuntimeError(f"PyTorch is required to use {purpose}: install torch") from None


class Array:
    """An array. Immutable: it is a snapshot of what it was made of.

    It can be made of a NumPy array, of a PyTorch tensor (detached and moved to the CPU), or of the four fields::

        Array(np.ones((2, 3)))
        Array(torch.ones(2, 3))
        Array("float32", (2, 3), "numpy.ndarray", data)     # data: bytes in NumPy's .npy format

    Fields
    ------
    dtype
        Name of the dtype, such as `"float32"` or `">f4"`.
    shape
        Its shape.
    stype
        How `data` is to be read: `"numpy.ndarray"` for .npy, else whatever its author agreed upon.
    data
        The bytes; made when asked for if the Array came of a NumPy array. Messages do not need them.

    Raises TypeError for arguments of other types, UnsupportedDtype (a ValueError) for object, string and record dtypes.
    Two Arrays are equal if dtype, shape, memory order and all bits are. Not hashable.
    """

    __slots__ = ("__weakref__", "_data", "_digest", "_dtype", "_load", "_nbytes", "_shape", "_stype", "_view")

    _dtype: str
    _shape: tuple[int, ...]
    _stype: str
    # Where the content is: a read-only array, given bytes (or both), or a function that fetches one of them.
    _view: NDArray | None
    _data: bytes | memoryview | None
    _load: Callable[[], NDArray | memoryview] | None
    _nbytes: int
    # digest of the content as the wire has it, where known.
    _digest: str | None

    @overload
    def __init__(self, dtype: str, shape: tuple[int, ...], stype: str, data: bytes) -> None: ...

    @overload
    def __init__(self, ndarray: NDArray) -> None: ...

    @overload
    def __init__(self, torch_tensor: torch.Tensor) -> None: ...

    def __init__(
        self,
        *args: Any,
        dtype: str | None = None,
        shape: tuple[int, ...] | None = None,
        stype: str | None = None,
        data: bytes | None = None,
        ndarray: NDArray | None = None,
        torch_tensor: torch.Tensor | None = None,
    ) -> None:
        fields = (dtype, shape, stype, data)
        fields_named = any(field is not None for field in fields)
        sources = [*args[:1], *(source for source in (ndarray, torch_tensor) if source is not None)]
        if len(args) <= 1 and not fields_named and len(sources) == 1:
            source = sources[0]
            if isinstance(source, np.ndarray) and torch_tensor is None:
                self._become(source, copy=True)
                return
            if is_tensor(source) and ndarray is None:
                self._become(_tensor_to_numpy(source), copy=True)
                return
        elif ndarray is None and torch_tensor is None and len(args) <= 4:
            values = self._merge(args, fields)
            if values is not None:
                self._dtype, self._shape, self._stype, self._data = values
                self._view = self._load = self._digest = None
                self._nbytes = len(self._data)
                return
        raise TypeError(
            "an Array is made of a NumPy ndarray, of a PyTorch tensor, or of "
            "dtype (str), shape (tuple of int), stype (str) and data (bytes)"
        )

    @staticmethod
    def _merge(args: tuple[Any, ...], named: tuple[Any, ...]) -> tuple[str, tuple[int, ...], str, bytes] | None:
        """The four fields from positional and named arguments; None if they do not fit."""
        rest = named[len(args) :]
        if any(value is not None for value in named[: len(args)]):
            return None
        dtype, shape, stype, data = (*args, *rest)
        if not (isinstance(dtype, str) and isinstance(stype, str) and isinstance(data, bytes)):
            return None
        if not (isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)):
            return None
        return dtype, tuple(int(n) for n in shape), stype, data

    @classmethod
    def from_numpy_ndarray(cls, ndarray: NDArray, *, copy: bool = True) -> Array:
        """An Array of a NumPy array.

        With `copy=False` nothing is copied where the memory can be used as it is; the caller must not change the array
        afterwards, and the array object given becomes read-only so that mistakes show.
        """
        if not isinstance(ndarray, np.ndarray):
            raise TypeError(f"expected a NumPy ndarray, not {type(ndarray).__name__}")
        new = cls.__new__(cls)
        new._become(ndarray, copy=copy)
        return new

    @classmethod
    def from_torch_tensor(cls, tensor: torch.Tensor) -> Array:
        """An Array of a PyTorch tensor, detached and moved to the CPU. bfloat16 and float8 need ml_dtypes."""
        torch = import_torch("Array.from_torch_tensor")
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"expected a PyTorch tensor, not {type(tensor).__name__}")
        return cls.from_numpy_ndarray(_tensor_to_numpy(tensor))

    def _become(self, ndarray: NDArray, *, copy: bool) -> None:
        check_dtype(ndarray)
        given = ndarray.view(np.ndarray) if type(ndarray) is not np.ndarray else ndarray
        contiguous = given.flags.c_contiguous or given.flags.f_contiguous
        if not contiguous:
            kept = given.copy(order="C")
        elif copy and not _is_immutable(given):
            kept = given.copy(order="A")
        else:
            if given.flags.writeable:
                given.flags.writeable = False
            kept = given
        self._hold(canonical(kept))

    def _hold(self, view: NDArray) -> None:
        """Take an array that nobody will change."""
        if view.flags.writeable:
            view.flags.writeable = False
        self._view = view
        self._dtype = dtype_name(view.dtype)
        self._shape = view.shape
        self._stype = NUMPY
        self._nbytes = view.nbytes
        self._data = self._load = self._digest = None

    @classmethod
    def _of_view(cls, view: NDArray, digest: str | None = None) -> Array:
        """Used by the wire format: an Array around memory that nobody will change, such as received bytes."""
        new = cls.__new__(cls)
        new._hold(view)
        new._digest = digest
        return new

    @classmethod
    def _of_parts(
        cls,
        dtype: str,
        shape: tuple[int, ...],
        stype: str,
        data: bytes | memoryview | None,
        load: Callable[[], NDArray | memoryview] | None,
        nbytes: int,
        digest: str | None,
    ) -> Array:
        """Used by the wire format: an Array whose content is not a NumPy array, or not at hand yet."""
        new = cls.__new__(cls)
        new._dtype, new._shape, new._stype = dtype, shape, stype
        new._view, new._data, new._load, new._nbytes, new._digest = None, data, load, nbytes, digest
        return new

    def _fetch(self) -> None:
        if self._load is not None:
            content = self._load()
            if isinstance(content, np.ndarray):
                self._view = content
            else:
                self._data = content
            self._load = None

    @property
    def dtype(self) -> str:
        """Name of the dtype."""
        return self._dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return self._shape

    @property
    def stype(self) -> str:
        """How `data` is to be read."""
        return self._stype

    @property
    def data(self) -> bytes:
        """The content as bytes: in NumPy's .npy format if `stype` is "numpy.ndarray"."""
        self._fetch()
        if self._data is not None:
            return bytes(self._data)
        view = self._raw()
        if is_ml(view.dtype):
            # The format knows these by their size only; `dtype` says what they are.
            view = view.view(f"V{view.dtype.itemsize}")
        buffer = BytesIO()
        np.lib.format.write_array(buffer, view, allow_pickle=False)
        return buffer.getvalue()

    @property
    def nbytes(self) -> int:
        """Size of the content in bytes; of the numbers alone where it was made of an array, of `data` where of that."""
        return self._nbytes

    def numpy(self, *, copy: bool = True) -> NDArray:
        """The array as a NumPy array: a writable one of its own, or with `copy=False` a read-only view without copying.

        A compressed array (see `fedq.apps.compression`) is decompressed each time.

        Raises TypeError if `stype` is another, ValueError if `data` was given and is not in the .npy format.
        """
        # A view of the read-only array, since whoever got that itself could make it writable again.
        return self._raw().copy(order="A") if copy else self._raw().view()

    def _raw(self) -> NDArray:
        """The content as a read-only array that must not be changed."""
        self._fetch()
        if self._view is None and self._stype == COMPRESSED:
            from fedq.apps.compression import decompressed  # which imports this module

            view = canonical(decompressed(self))
            view.flags.writeable = False
            return view  # not kept: the small form is
        if self._view is None:
            if self._stype != NUMPY:
                raise TypeError(
                    f"an Array of stype {self._stype!r} cannot be read as a NumPy array: read its data yourself"
                )
            view = canonical(_read_npy(bytes(self._data or b""), self._dtype))
            if view.flags.writeable:
                view.flags.writeable = False
            self._view = view
        return self._view

    def __eq__(self, other: object) -> bool:
        if other is self:
            return True
        if not isinstance(other, Array):
            return NotImplemented
        if (self._dtype, self._shape, self._stype) != (other._dtype, other._shape, other._stype):
            return False
        if self._stype == NUMPY:
            try:
                mine, theirs = self._raw(), other._raw()
            except ValueError:
                return self.data == other.data
            return (
                mine.dtype == theirs.dtype
                and mine.shape == theirs.shape
                and is_fortran(mine) == is_fortran(theirs)
                and bool(np.array_equal(_bits(mine), _bits(theirs)))
            )
        return self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Array(dtype={self._dtype!r}, shape={self._shape}, stype={self._stype!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        self._fetch()
        if self._data is not None:
            return Array, (self._dtype, self._shape, self._stype, bytes(self._data))
        # Not the array itself: NumPy's pickles lose the dtypes of ml_dtypes, and the byte order of 0-d arrays.
        view = self._raw()
        return _rebuild, (dtype_to_wire(view.dtype), view.shape, is_fortran(view), view.tobytes("A"))

    def __copy__(self) -> Array:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Array:
        return self


def _rebuild(dtype: str, shape: tuple[int, ...], fortran: bool, content: bytes) -> Array:
    order: Literal["C", "F"] = "F" if fortran else "C"
    return Array._of_view(np.ndarray(shape, dtype_from_wire(dtype), buffer=content, order=order))


def is_fortran(array: NDArray) -> bool:
    """Whether the memory is in Fortran order and not in C order as well."""
    return bool(array.flags.f_contiguous and not array.flags.c_contiguous)


def _bits(array: NDArray) -> NDArray:
    return array.reshape(-1, order="A").view(np.uint8)


def _is_immutable(array: NDArray) -> bool:
    """Whether nobody can change the memory of the array: it belongs, down to its root, to bytes."""
    root: Any = array
    while isinstance(root, np.ndarray):
        if root.flags.writeable:
            return False
        root = root.base
    if isinstance(root, memoryview):
        root = root.obj if root.readonly else None
    return isinstance(root, bytes)


def _read_npy(data: bytes, dtype: str) -> NDArray:
    """The array of an .npy file as a view of its bytes. Raises ValueError.

    Not `numpy.load`: that allocates what the header claims before it looks whether it is there.
    """
    file = BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"its version is {version}")
        shape, fortran, found = _NPY_HEADERS[version](file)
        if found.kind == "V" and found.names is None:
            found = _named_dtype(dtype, found)
        dtype_to_wire(found)
        if any(n < 0 for n in shape):
            # NumPy takes a single -1 for "as many as there are".
            raise ValueError(f"its shape is {shape}")
        array: NDArray = np.ndarray(shape, found, buffer=data, offset=file.tell(), order="F" if fortran else "C")
    except UnsupportedDtype:
        raise
    except Exception as error:
        # The header is Python source, and what NumPy's reading of it raises is many things.
        raise ValueError(f"the data of the Array is not in NumPy's .npy format: {error}") from error
    return array


def _named_dtype(name: str, found: Dtype) -> Dtype:
    try:
        dtype = dtype_from_wire(name)
    except WireError as error:
        raise UnsupportedDtype(str(error)) from None
    return dtype if dtype.itemsize == found.itemsize else found


def is_tensor(value: Any) -> bool:
    # A tensor can only exist if torch is imported, so this never imports it.
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


_VIEWED_BITS = {1: "uint8", 2: "int16"}


def _tensor_to_numpy(tensor: Any) -> NDArray:
    tensor = tensor.detach().cpu()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name.startswith("float8"):
        # NumPy has no such types of its own, so the bits go over under the name that ml_dtypes gives them.
        torch = import_torch("Array.from_torch_tensor")
        dtype = _named_dtype(name, np.dtype(f"V{tensor.element_size()}"))
        bits = tensor.contiguous().view(getattr(torch, _VIEWED_BITS[tensor.element_size()]))
        return np.asarray(bits.numpy().view(dtype))
    return np.asarray(tensor.numpy())


def tensor_from_numpy(array: NDArray) -> Any:
    """A PyTorch tensor that shares the memory of the array."""
    torch = import_torch("ArrayRecord.to_torch_state_dict")
    if is_ml(array.dtype):
        name = array.dtype.name
        kind = getattr(torch, name, None)
        if kind is None:
            raise TypeError(f"PyTorch knows no dtype {name!r}")
        bits = array.view(_VIEWED_BITS[array.dtype.itemsize])
        return torch.from_numpy(bits).view(kind)
    return torch.from_numpy(array)
