"""Saving and loading, pickling and deep copies.

The file is a zip archive: ``data.pkl`` has the structure, with tensors as references to ``data/<n>.npy``-like
raw members. Loading admits plain containers, numbers, strings and tensors alone unless
``weights_only=False``: a file cannot run code.
"""

from __future__ import annotations

import collections
import copy
import io
import os
import pickle
from typing import TYPE_CHECKING, Any

import numpy as np
from weft.devices import copy_of, put
from weft.dispatch import recording, wrap
from weft.dtypes import Size, as_device, device
from weft.ir.types import Device, DType, dtype_named
from weft.tensor import Tensor

if TYPE_CHECKING:
    import zipfile

_VERSION = b"weft 1\n"


def rebuild_tensor(
    data: bytes, dtype: str, shape: tuple[int, ...], requires_grad: bool, place: str = "cpu"
) -> Tensor:
    """A tensor of its raw bytes, on the device ``place``: the inverse of pickling."""
    a = np.frombuffer(bytearray(data), dtype=dtype_named(dtype).np).reshape(shape)
    t = wrap(put(a, as_device(place)))
    t._rg = requires_grad
    return t


def rebuild_subclass(cls: type, tensor: Tensor, requires_grad: bool, state: dict[str, Any]) -> Any:
    t = Tensor._make_subclass(cls, tensor, requires_grad)
    t.__dict__.update(state)
    return t


_INTERNAL = {
    "_data",
    "_vc",
    "_view",
    "_edge",
    "_rg",
    "_grad",
    "_acc",
    "_hooks",
    "_post_hooks",
    "_retains",
    "_inference",
}


def _attributes(t: Tensor) -> dict[str, Any]:
    return {k: v for k, v in t.__dict__.items() if k not in _INTERNAL}


def reduce_tensor(t: Tensor) -> Any:
    """How a tensor pickles: bytes, dtype, shape; the class and attributes of subclasses. History is left
    behind.
    """
    a = np.ascontiguousarray(t._array("pickling a tensor"))
    what = (a.tobytes(), t.dtype.name, tuple(t.shape), t.requires_grad and t.is_leaf, str(t.device))
    base = (rebuild_tensor, what)
    if type(t) is Tensor:
        return base
    return rebuild_subclass, (type(t), rebuild_tensor(*base[1]), t.requires_grad, _attributes(t))


def copy_tensor(t: Tensor) -> Tensor:
    """Another leaf on the same storage, with the same attributes."""
    shared = t.detach()
    if type(t) is not Tensor:
        shared = Tensor._make_subclass(type(t), shared, False)
        shared.__dict__.update(_attributes(t))
    shared._rg = t.requires_grad
    return shared


def deepcopy_tensor(t: Tensor, memo: dict[int, Any]) -> Tensor:
    """A copy with storage, gradient and attributes of its own. RuntimeError for tensors with a history."""
    if id(t) in memo:
        return memo[id(t)]
    if not t.is_leaf:
        raise RuntimeError(
            "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at "
            "the moment.  If you were attempting to deepcopy a module, this may be because of a "
            "torch.nn.utils.weight_norm usage, see https://github.com/pytorch/pytorch/pull/103001"
        )
    if recording():
        fresh = t.detach().clone()
    else:
        fresh = wrap(copy_of(t._data))
    out = fresh if type(t) is Tensor else Tensor._make_subclass(type(t), fresh, False)
    out._rg = t._rg
    memo[id(t)] = out
    if t._grad is not None:
        out._grad = deepcopy_tensor(t._grad, memo)
    out.__dict__.update(copy.deepcopy(_attributes(t), memo))
    return out


# -- files --------------------------------------------------------------------------------------------------


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, protocol: int, tensors: list[Tensor]) -> None:
        super().__init__(file, protocol)
        self.tensors = tensors
        self.seen: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return None
        key = id(obj)
        if key not in self.seen:
            self.seen[key] = len(self.tensors)
            self.tensors.append(obj)
        cls = None if type(obj) is Tensor else type(obj)
        return (
            "tensor",
            self.seen[key],
            obj.dtype.name,
            tuple(obj.shape),
            obj.requires_grad and obj.is_leaf,
            cls.__name__ if cls is not None else None,
            str(obj.device),
        )


# What a weights-only file may name.
_SAFE: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("weft.dtypes", "Size"): Size,
    ("weft.ir.types", "dtype_named"): dtype_named,
    ("weft.ir.types", "Device"): Device,
    ("weft.ir.types", "DType"): DType,
    ("weft.serialization", "rebuild_tensor"): rebuild_tensor,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "slice"): slice,
    ("_codecs", "encode"): None,
}


class _Unpickler(pickle.Unpickler):
    def __init__(
        self, file: Any, archive: zipfile.ZipFile, weights_only: bool, map_location: Any = None
    ) -> None:
        super().__init__(file)
        self.archive, self.weights_only, self.map_location = archive, weights_only, map_location
        self.made: dict[int, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if not self.weights_only:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):
            import codecs

            return codecs.encode
        found = _SAFE.get((module, name)) or _extra_safe.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(
                f"Weights only load failed. Unsupported global: GLOBAL {module}.{name} was not an allowed "
                "global by default. Load the file with weights_only=False only if you trust its source: it "
                "can run code."
            )
        return found

    def persistent_load(self, pid: Any) -> Tensor:
        kind, n, dtype, shape, requires_grad, cls, *place = pid
        if kind != "tensor":
            raise pickle.UnpicklingError(f"unknown reference {kind!r}")
        if n not in self.made:
            t = rebuild_tensor(self.archive.read(f"data/{n}"), dtype, shape, False)
            t = _located(t, place[0] if place else "cpu", self.map_location)
            t._rg = requires_grad
            self.made[n] = _as_parameter(t) if cls == "Parameter" else t
        return self.made[n]


def _located(t: Tensor, place: str, map_location: Any) -> Tensor:
    """A loaded tensor on the device that ``map_location`` gives for the one it was saved from."""
    if map_location is None:
        return t if place == "cpu" else t.to(_saved_device(place))
    if isinstance(map_location, dict):
        return t.to(as_device(map_location.get(place, place)))
    if not callable(map_location):
        return t.to(as_device(map_location))
    found: Any = map_location(t, place)
    return t.to(_saved_device(place)) if found is None else found


def _saved_device(place: str) -> Device:
    try:
        return as_device(place)
    except RuntimeError as e:
        raise RuntimeError(
            f"Attempting to deserialize object on device {place}, which is not there. If you are running on "
            "a CPU-only machine, please use weft.load with map_location=weft.device('cpu') to map your "
            f"storages to the CPU. ({e})"
        ) from None


_extra_safe: dict[tuple[str, str], Any] = {}


def add_safe_globals(safe_globals: list[Any]) -> None:
    """Allow classes or functions in weights-only files."""
    for g in safe_globals:
        _extra_safe[g.__module__, g.__qualname__] = g


def _as_parameter(t: Tensor) -> Tensor:
    from weft.nn import Parameter

    return Parameter(t.detach(), requires_grad=t.requires_grad)


def save(obj: Any, f: Any, pickle_protocol: int = 2, **kw: Any) -> None:
    """Write an object with tensors to a path or binary file.

    >>> import io, weft
    >>> b = io.BytesIO(); weft.save({"w": weft.ones(2)}, b); _ = b.seek(0)
    >>> weft.load(b)
    {'w': tensor([1., 1.])}
    """
    import zipfile

    buffer = io.BytesIO()
    tensors: list[Tensor] = []
    _Pickler(buffer, max(pickle_protocol, 2), tensors).dump(obj)
    target = f if hasattr(f, "write") else os.fspath(f)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as z:
        z.writestr("version", _VERSION)
        z.writestr("data.pkl", buffer.getvalue())
        for i, t in enumerate(tensors):
            z.writestr(f"data/{i}", np.ascontiguousarray(t._array("save()")).tobytes())


def load(f: Any, map_location: Any = None, *, weights_only: bool | None = None, **kw: Any) -> Any:
    """Read what :func:`save` wrote. With ``weights_only`` (the default) a file cannot run code.

    ``map_location``: the device to put tensors on, a dict from the name of the device they were saved from,
    or a function of a tensor (on the CPU) and that name; without it they return to where they were.
    RuntimeError for a file that is not one of ours, and for a device that is not there.
    """
    import zipfile

    if isinstance(map_location, (str, int, Device)):
        map_location = device(map_location)
    source = f if hasattr(f, "read") else os.fspath(f)
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as e:
        raise RuntimeError(f"{f}: not a file written by weft.save") from e
    with archive as z:
        if "version" not in z.namelist() or z.read("version") != _VERSION:
            raise RuntimeError(f"{f}: not a file written by weft.save (or of another version)")
        return _Unpickler(io.BytesIO(z.read("data.pkl")), z, weights_only is not False, map_location).load()
