"""The Tensor: a payload (numpy array, or graph Value in capture), a version counter, autograd state.

Methods that compute are not here: :mod:`weft.methods` attaches the functions of :mod:`weft.ops`, family by
family.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from weft.dtypes import _BY_NP, Size, dtype_of_array
from weft.ir.graph import Value
from weft.ir.types import CPU, Device, DType, TensorType

if TYPE_CHECKING:
    from weft.autograd.tape import Node
    from weft.views import View

_new = object.__new__
_ndarray = np.ndarray


class Tensor:
    """A multi-dimensional array with gradients.

    ``Tensor(2, 3)`` is an uninitialised float tensor of that shape and ``Tensor([...])`` a float tensor of
    the data; :func:`weft.tensor` is the way to make one from data with its own dtype.

    Internals, for the parts that share them: ``_data`` the payload; ``_vc`` the version counter, one list
    that a base and its views share; ``_view`` what this tensor is a view of; ``_edge`` the autograd edge of a
    non-leaf,
    ``(node, index of the result)``; ``_rg`` whether it requires grad.
    """

    _data: Any
    _vc: list[int]
    _view: View | None = None
    _edge: tuple[Node, int] | None = None
    _rg: bool = False
    _grad: Tensor | None = None
    _acc: Any = None  # the AccumulateGrad node of a leaf (weak reference)
    _hooks: dict[int, Any] | None = None
    _post_hooks: dict[int, Any] | None = None
    _retains: bool = False
    _inference: bool = False
    name: str | None = None

    # numpy defers to the reflected operators of Tensor
    __array_priority__ = 1000

    def __new__(cls, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        from weft.creation import legacy_constructor

        t = legacy_constructor(*args, device=device)
        return t if cls is Tensor else cls._make_subclass(cls, t, False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @staticmethod
    def _make_subclass(cls: Any, data: Tensor, require_grad: bool = False) -> Any:
        """A tensor of class ``cls`` on the storage of ``data``, a leaf."""
        t = _new(cls)
        t._data, t._vc = data._data, data._vc
        if data._view is not None:
            t._view = data._view.detached()
        t.requires_grad_(require_grad)
        return t

    # -- what it is -----------------------------------------------------------------------------------------
    @property
    def _ir_type(self) -> TensorType:
        d = self._data
        return TensorType(d.shape, dtype_of_array(d), CPU) if type(d) is _ndarray else d.type

    @property
    def _node(self) -> Node | None:
        return self.grad_fn

    @property
    def shape(self) -> Size:
        d = self._data
        return Size(d.type.shape if type(d) is Value else d.shape)

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the extent of one dimension."""
        if dim is None:
            return self.shape
        d = self._data
        if type(d) is _ndarray and type(dim) is int and -d.ndim <= dim < d.ndim:
            return d.shape[dim]
        n = self.ndim
        if not -max(n, 1) <= dim < max(n, 1) or n == 0:
            raise IndexError(_dim_range(dim, n))
        return self.shape[dim]

    @property
    def dtype(self) -> DType:
        d = self._data
        if type(d) is _ndarray:
            found = _BY_NP.get(d.dtype)
            if found is not None:
                return found
        return d.type.dtype if type(d) is Value else dtype_of_array(d)

    @property
    def device(self) -> Device:
        d = self._data
        return CPU if type(d) is _ndarray else d.type.device

    @property
    def ndim(self) -> int:
        d = self._data
        return len(d.type.shape) if type(d) is Value else d.ndim

    def dim(self) -> int:
        return self.ndim

    ndimension = dim

    def numel(self) -> int:
        d = self._data
        return d.type.size if type(d) is Value else d.size

    nelement = numel

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def element_size(self) -> int:
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.numel() * self.dtype.itemsize

    def stride(self, dim: int | None = None) -> Any:
        """Strides in elements."""
        d = self._layout()
        if dim is None and type(d) is _ndarray and d.size and 1 not in d.shape:
            size = d.itemsize
            return tuple([s // size for s in d.strides])
        if d.flags.c_contiguous:  # numpy leaves arbitrary strides on dimensions of extent 1
            strides = contiguous_strides(d.shape)
        else:
            strides = tuple(s // d.itemsize for s in d.strides)
        return strides if dim is None else strides[dim]

    def storage_offset(self) -> int:
        d = self._data
        if type(d) is Value or self._view is None or type(self._view.base._data) is Value:
            return 0
        return (address(d) - address(self._view.base._data)) // d.itemsize

    def data_ptr(self) -> int:
        """The address of the first element. A request for the value in capture."""
        return address(self._data if type(self._data) is not Value else self._array("data_ptr()"))

    def is_contiguous(self, memory_format: Any = None) -> bool:
        return self._layout().flags.c_contiguous

    def _layout(self) -> np.ndarray:
        """An array with the strides of this tensor; in capture one without memory behind it."""
        d = self._data
        if type(d) is not Value:
            return d
        from weft.views import phantom

        return phantom(self)

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        return self.dtype.is_complex

    def is_signed(self) -> bool:
        return self.dtype.is_signed

    is_sparse = is_quantized = is_meta = is_mps = False

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_cpu(self) -> bool:
        return self.device is CPU

    def is_inference(self) -> bool:
        return self._inference

    def is_pinned(self, device: Any = None) -> bool:
        """Whether the memory is pinned: copies from it to a GPU need not wait."""
        from weft.devices import is_pinned

        return is_pinned(self._data)

    def get_device(self) -> int:
        """The index of the GPU; -1 on the CPU."""
        index = self.device.index
        return -1 if index is None else index

    @property
    def layout(self) -> str:
        return "weft.strided"

    def _is_view(self) -> bool:
        return self._view is not None and self._view.differentiable

    @property
    def _base(self) -> Tensor | None:
        v = self._view
        return v.base if v is not None and v.differentiable else None

    @property
    def _version(self) -> int:
        return self._vc[0]

    # -- autograd state -------------------------------------------------------------------------------------
    @property
    def requires_grad(self) -> bool:
        return self._rg or (self._view is not None and self._view.base_requires_grad(self))

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for gradients of this leaf. RuntimeError for integers, and for turning off a non-leaf."""
        if requires_grad and not self.dtype.is_inexact:
            raise RuntimeError("only Tensors of floating point and complex dtype can require gradients")
        if not self.is_leaf:
            if not requires_grad:
                raise RuntimeError(
                    "you can only change requires_grad flags of leaf variables. If you want to use a "
                    "computed variable in a subgraph that doesn't require differentiation use var_no_grad = "
                    "var.detach()."
                )
            return self
        if requires_grad and not self._rg and self._is_view():
            self._view = self._view.detached()  # type: ignore[union-attr]  # a leaf has no history but its own
        self._rg = bool(requires_grad)
        return self

    @property
    def is_leaf(self) -> bool:
        return self.grad_fn is None

    @property
    def grad_fn(self) -> Node | None:
        if self._view is not None:
            self._view.refresh_edge(self)
        e = self._edge
        return None if e is None else e[0]

    @property
    def output_nr(self) -> int:
        return 0 if self._edge is None else self._edge[1]

    @property
    def grad(self) -> Tensor | None:
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"assigned grad expected to be a Tensor or None but got grad of type {type(value)}"
                )
            if value is self:
                raise RuntimeError("can't assign Variable as its own grad")
            if value.shape != self.shape:
                raise RuntimeError(
                    f"assigned grad has data of a different size: expected {list(self.shape)}, got "
                    f"{list(value.shape)}"
                )
            if value.dtype is not self.dtype:
                raise RuntimeError(
                    f"assigned grad has data of a different type: expected {self.dtype}, got {value.dtype}"
                )
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self._grad = None

    @property
    def data(self) -> Tensor:
        """This tensor's storage as a tensor that autograd does not follow."""
        from weft.views import alias

        return alias(self, share_version=False)

    @data.setter
    def data(self, value: Tensor) -> None:
        from weft.views import set_data

        set_data(self, value)

    # -- values ---------------------------------------------------------------------------------------------
    def _array(self, why: str) -> np.ndarray:
        """The value as an ndarray, which shares the tensor's memory on the CPU and is a copy of what is on a
        GPU; in capture this asks the recorder for it."""
        from weft.dispatch import concrete

        d = concrete(self, why)
        return d if type(d) is _ndarray else d.copy_to_host()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return id(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        from weft.serialization import reduce_tensor

        return reduce_tensor(self)

    def __copy__(self) -> Tensor:
        from weft.serialization import copy_tensor

        return copy_tensor(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        from weft.serialization import deepcopy_tensor

        return deepcopy_tensor(self, memo)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        from weft.printing import tensor_str

        return tensor_str(self)

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        if self.ndim == 0:
            return format(self.item(), spec)  # type: ignore[attr-defined]
        if spec:
            raise TypeError("unsupported format string passed to Tensor.__format__")
        return str(self)

    if TYPE_CHECKING:  # the methods of weft.methods

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, o: Any) -> Tensor: ...
        def __radd__(self, o: Any) -> Tensor: ...
        def __sub__(self, o: Any) -> Tensor: ...
        def __rsub__(self, o: Any) -> Tensor: ...
        def __mul__(self, o: Any) -> Tensor: ...
        def __rmul__(self, o: Any) -> Tensor: ...
        def __truediv__(self, o: Any) -> Tensor: ...
        def __rtruediv__(self, o: Any) -> Tensor: ...
        def __floordiv__(self, o: Any) -> Tensor: ...
        def __mod__(self, o: Any) -> Tensor: ...
        def __pow__(self, o: Any) -> Tensor: ...
        def __matmul__(self, o: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __and__(self, o: Any) -> Tensor: ...
        def __or__(self, o: Any) -> Tensor: ...
        def __xor__(self, o: Any) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __lt__(self, o: Any) -> Tensor: ...
        def __le__(self, o: Any) -> Tensor: ...
        def __gt__(self, o: Any) -> Tensor: ...
        def __ge__(self, o: Any) -> Tensor: ...
        def __eq__(self, o: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, o: Any) -> Tensor: ...  # type: ignore[override]
        def __getitem__(self, key: Any) -> Tensor: ...
        def __setitem__(self, key: Any, value: Any) -> None: ...
        def __len__(self) -> int: ...
        def __iter__(self) -> Any: ...
        def __bool__(self) -> bool: ...
        def __int__(self) -> int: ...
        def __float__(self) -> float: ...
        def __index__(self) -> int: ...


def address(a: Any) -> int:
    """The address of the first element of an array, on the CPU or a GPU."""
    return a.__array_interface__["data"][0] if type(a) is _ndarray else a.address


def contiguous_strides(shape: Any) -> tuple[int, ...]:
    """Row-major strides in elements."""
    out: list[int] = []
    n = 1
    for d in reversed(shape):
        out.append(n)
        n *= max(d, 1)
    return tuple(reversed(out))


def _dim_range(dim: int, ndim: int) -> str:
    if ndim == 0:
        return f"Dimension specified as {dim} but tensor has no dimensions"
    return f"Dimension out of range (expected to be in range of [{-ndim}, {ndim - 1}], but got {dim})"
