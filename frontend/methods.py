"""The table of Tensor's methods: each is a function of :mod:`weft.ops`, attached under its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft import indexing
from weft.autograd import hooks
from weft.autograd.engine import backward as _backward
from weft.ir import prims as P
from weft.ops import activation as A
from weft.ops import complexes as K
from weft.ops import convert as C
from weft.ops import equality as B
from weft.ops import extra as E
from weft.ops import index as X
from weft.ops import inplace as I
from weft.ops import linalg as L
from weft.ops import math as M
from weft.ops import reduce as R
from weft.ops import shape as S
from weft.ops import sort as O
from weft.ops import statistics as Q
from weft.ops.keywords import keywords
from weft.quick import binary_function
from weft.random import IN_PLACE
from weft.tensor import Tensor


def _names(text: str) -> list[str]:
    return text.split()


MATH = _names("""
    exp exp2 expm1 log log2 log1p log10 sin cos tan asin acos atan arcsin arccos arctan sinh cosh tanh asinh
    acosh atanh arcsinh arccosh arctanh erf erfc erfinv lgamma digamma sqrt rsqrt neg positive abs sign sgn
    floor ceil trunc fix round frac reciprocal square sigmoid logit sinc relu deg2rad rad2deg add sub mul
    div true_divide floor_divide fmod remainder pow float_power atan2 arctan2 maximum minimum fmax fmin
    copysign hypot xlogy logaddexp logaddexp2 lerp addcmul addcdiv eq ne lt le gt ge not_equal less
    less_equal greater greater_equal logical_not logical_and logical_or logical_xor bitwise_not bitwise_and
    bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift isnan isinf isposinf isneginf isfinite
    isreal signbit clamp clip clamp_min clamp_max nan_to_num heaviside
""")
REDUCE = _names("""
    sum nansum prod mean nanmean var std norm logsumexp logcumsumexp amax amin aminmax max min argmax argmin
    any all count_nonzero cumsum cumprod cummax cummin diff dist
""")
SHAPE = _names("""
    reshape view_as reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose swapaxes swapdims
    t movedim moveaxis expand expand_as narrow select unbind split split_with_sizes chunk tensor_split
    diagonal unfold flip fliplr flipud roll rot90 repeat tile repeat_interleave tril triu diag diag_embed
    clone contiguous as_strided
""")
INDEX = _names("""
    index_select take gather take_along_dim scatter scatter_add scatter_reduce index_add index_copy
    index_fill masked_fill masked_select masked_scatter nonzero argwhere slice_scatter select_scatter
""")
LINALG = _names("""
    dot inner vdot mv mm bmm matmul outer ger kron addmm addmv addr baddbmm addbmm trace matrix_power cross
""")
SORT = _names("""
    sort argsort topk kthvalue median nanmedian mode msort unique unique_consecutive
""")
CONVERT = _names("""
    to type_as cpu cuda detach detach_ item tolist numpy new_zeros new_ones new_empty new_full new_tensor
""")

# Functions with an in-place form of the same name and an underscore.
INPLACE = {
    M: _names("""
        exp exp2 expm1 log log2 log1p log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf
        erfc erfinv lgamma digamma sqrt rsqrt neg abs sign sgn floor ceil trunc fix round frac reciprocal
        square sigmoid logit sinc relu deg2rad rad2deg add sub mul div true_divide floor_divide fmod
        remainder pow float_power atan2 copysign hypot xlogy lerp addcmul addcdiv eq ne lt le gt ge
        logical_not logical_and logical_or logical_xor bitwise_not bitwise_and bitwise_or bitwise_xor
        bitwise_left_shift bitwise_right_shift clamp clip clamp_min clamp_max nan_to_num heaviside
    """),
    R: _names("""
        cumsum cumprod
    """),
    S: _names("""
        tril triu
    """),
    X: _names("""
        scatter scatter_add scatter_reduce index_add index_copy index_fill masked_fill masked_scatter
    """),
    L: _names("""
        addmm addmv addr baddbmm addbmm
    """),
}
EXTRA = _names("""
    is_same_size resolve_conj resolve_neg is_conj adjoint hsplit vsplit dsplit diagflat sum_to_size ldexp
    put renorm
""")
STATISTICS = _names("quantile nanquantile cov corrcoef")
COMPLEX = _names("conj conj_physical angle")
EQUALITY = _names("isclose allclose equal")
TABLE = {
    K: COMPLEX, B: EQUALITY, E: EXTRA, Q: STATISTICS, M: MATH, R: REDUCE, S: SHAPE, X: INDEX, L: LINALG,
    O: SORT, C: CONVERT,
}  # fmt: skip


def _swapped(fn: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, other: fn(other, self)


def _operator(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A binary operator: NotImplemented for operands that are no tensors or numbers, so that Python tries
    theirs.
    """

    def method(self: Tensor, other: Any) -> Any:
        if isinstance(other, Tensor) or I.is_number(other):
            return fn(self, other)
        return NotImplemented

    return method


OPERATORS: dict[str, Callable[..., Any]] = {
    "add": M.add,
    "sub": M.sub,
    "mul": M.mul,
    "truediv": M.div,
    "floordiv": M.floor_divide,
    "mod": M.remainder,
    "pow": M.pow,
    "and": M.bitwise_and,
    "or": M.bitwise_or,
    "xor": M.bitwise_xor,
    "lshift": M.bitwise_left_shift,
    "rshift": M.bitwise_right_shift,
}
COMPARISONS = {"eq": M.eq, "ne": M.ne, "lt": M.lt, "le": M.le, "gt": M.gt, "ge": M.ge}


# the primitives of operators that are one primitive on floats
PRIMITIVES = {"add": P.add_p, "sub": P.sub_p, "mul": P.mul_p, "truediv": P.div_p}
# and those of functions, which have other arguments besides
INPLACE_PRIMITIVES = {"add": P.add_p, "sub": P.sub_p, "div": P.div_p, "true_divide": P.div_p}


def _attach_operators() -> None:
    for name, fn in OPERATORS.items():
        straight, reflected = _operator(fn), _operator(_swapped(fn))
        if name in PRIMITIVES:
            straight = binary_function(PRIMITIVES[name], straight)
            reflected = binary_function(PRIMITIVES[name], reflected, swapped=True)
        setattr(Tensor, f"__{name}__", straight)
        setattr(Tensor, f"__r{name}__", reflected)
        setattr(Tensor, f"__i{name}__", _operator(I.inplace(fn, PRIMITIVES.get(name))))
    for name, fn in COMPARISONS.items():
        setattr(Tensor, f"__{name}__", binary_function(P.PRIMITIVES[name], _operator(fn)))
    # defining __eq__ would take the hash away
    Tensor.__matmul__ = _operator(L.matmul)  # type: ignore[method-assign]
    more = {
        "__rmatmul__": _operator(_swapped(L.matmul)),
        "__neg__": M.neg,
        "__pos__": M.positive,
        "__abs__": M.abs,
        "__invert__": M.bitwise_not,
        "__getitem__": indexing.getitem,
        "__setitem__": indexing.setitem,
        "__len__": C.length,
        "__iter__": C.iterate,
        "__bool__": C.to_bool,
        "__int__": C.to_int,
        "__float__": C.to_float,
        "__complex__": C.to_complex,
        "__index__": C.to_index,
        "__contains__": C.contains,
        "__array__": C.to_array,
        "__dlpack__": C.dlpack,
        "__dlpack_device__": C.dlpack_device,
    }
    for name, fn in more.items():
        setattr(Tensor, name, fn)


def _aliases() -> list[tuple[str, Any]]:
    """Second names of in-place methods."""
    pairs = {
        "arccos": M.acos,
        "arccosh": M.acosh,
        "arcsin": M.asin,
        "arcsinh": M.asinh,
        "arctan": M.atan,
        "arctanh": M.atanh,
        "arctan2": M.atan2,
        "divide": M.div,
        "multiply": M.mul,
        "subtract": M.sub,
        "negative": M.neg,
        "greater": M.gt,
        "greater_equal": M.ge,
        "less": M.lt,
        "less_equal": M.le,
        "not_equal": M.ne,
    }
    return [(name + "_", I.inplace(fn)) for name, fn in pairs.items()]


def _max(self: Tensor, *args: Any, **kw: Any) -> Any:
    return R.max(self, *_other(args, kw), **kw)


def _min(self: Tensor, *args: Any, **kw: Any) -> Any:
    return R.min(self, *_other(args, kw), **kw)


def _other(args: tuple[Any, ...], kw: dict[str, Any]) -> tuple[Any, ...]:
    if "axis" in kw:
        kw["dim"] = kw.pop("axis")
    return (kw.pop("other"), *args) if "other" in kw else args


def _norm(self: Tensor, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    return R.norm(self, p, dim, keepdim, dtype)


def _where(self: Tensor, condition: Tensor, other: Any) -> Tensor:
    return M.where(condition, self, other)


def _backward_method(
    self: Tensor,
    gradient: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """Add the gradients of this tensor to ``.grad`` of the leaves it was computed from; see
    ``autograd.backward``.
    """
    _backward([self], [gradient], retain_graph, create_graph, inputs)


def attach() -> None:
    """Give Tensor its methods."""
    for module, names in TABLE.items():
        for name in names:
            setattr(Tensor, name, keywords(getattr(module, name)))
    for module, names in INPLACE.items():
        for name in names:
            setattr(Tensor, name + "_", I.inplace(getattr(module, name), INPLACE_PRIMITIVES.get(name)))
    for name, fn in (*C.CASTS.items(), *IN_PLACE.items(), *E.IN_PLACE.items(), *_aliases()):
        setattr(Tensor, name, fn)
    for name in ("copy_", "fill_", "zero_", "set_", "fill_diagonal_", "resize_"):
        setattr(Tensor, name, getattr(I, name))
    for name in ("squeeze", "unsqueeze", "transpose", "t", "swapaxes", "swapdims"):
        setattr(Tensor, name + "_", I.squeezer(getattr(S, name)))
    extra: dict[str, Any] = {
        "view": keywords(S.view_as_shape),
        "type": C.type_,
        "index_put_": indexing.index_put_,
        "index_put": indexing.index_put,
        "max": _max,
        "min": _min,
        "norm": _norm,
        "where": _where,
        "backward": _backward_method,
        "register_hook": hooks.register_hook,
        "retain_grad": hooks.retain_grad,
        "register_post_accumulate_grad_hook": hooks.register_post_accumulate_grad_hook,
        "absolute": M.abs,
        "absolute_": I.inplace(M.abs),
        "negative": M.neg,
        "multiply": M.mul,
        "subtract": M.sub,
        "divide": M.div,
        "dim_order": lambda self: tuple(range(self.ndim)),
        "broadcast_to": S.broadcast_to_,
        "polygamma": lambda self, n: M.polygamma(n, self),
        "is_nonzero": C.to_bool,
        "bincount": O.bincount,
        "histc": O.histc,
        "resize_as_": lambda self, other: I.resize_(self, tuple(other.shape)),
        "pin_memory": C.pin_memory,
        "share_memory_": lambda self: self,
        "__reversed__": E.reversed_,
        "softmax": keywords(A.softmax),
        "log_softmax": keywords(A.log_softmax),
    }
    for name, fn in extra.items():
        setattr(Tensor, name, fn)
    properties = {
        "T": S.reversed_dims,
        "mT": S.matrix_transpose,
        "H": lambda x: S.t(x).conj(),
        "mH": lambda x: S.matrix_transpose(x).conj(),
        "real": K.real,
        "imag": K.imag,
        "retains_grad": hooks.retains_grad,
        "__cuda_array_interface__": C.cuda_array_interface,
    }
    for name, fn in properties.items():
        setattr(Tensor, name, property(fn))
    _attach_operators()
