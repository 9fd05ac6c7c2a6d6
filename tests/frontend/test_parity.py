"""The tensor API against installed PyTorch: values, dtypes, shapes, gradients and error types."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.frontend.parity_harness import check

pytest.importorskip("torch")
pytestmark = pytest.mark.parity


def names(text: str) -> list[str]:
    return text.split()


_rs = np.random.RandomState(1)
F = _rs.randn(3, 4).astype("f")
G = _rs.randn(3, 4).astype("f")
POS = np.abs(F) + 0.1
U = (_rs.rand(3, 4) * 1.8 - 0.9).astype("f")
I = _rs.randint(-5, 6, (3, 4))
J = _rs.randint(1, 6, (3, 4))
B = _rs.rand(3, 4) > 0.5
B2 = _rs.rand(3, 4) > 0.5
V = _rs.randn(4).astype("f")
Z = np.array(1.5, "f")
D = _rs.randn(3, 4)
T3 = _rs.randn(2, 3, 4).astype("f")
EMPTY = np.zeros((0, 3), "f")

UNARY = [
    "exp",
    "exp2",
    "expm1",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "atanh",
    "erf",
    "erfc",
    "erfinv",
    "neg",
    "abs",
    "sign",
    "sgn",
    "floor",
    "ceil",
    "trunc",
    "round",
    "frac",
    "reciprocal",
    "square",
    "sigmoid",
    "sinc",
    "relu",
    "deg2rad",
    "rad2deg",
    "isnan",
    "isinf",
    "isposinf",
    "isneginf",
    "isfinite",
    "isreal",
    "signbit",
    "positive",
    "angle",
    "logical_not",
    "nan_to_num",
]


@pytest.mark.parametrize("name", UNARY)
def test_unary(name: str) -> None:
    for x in (U, I, B, D):
        check(name, x)


@pytest.mark.parametrize(
    "name", ["log", "log2", "log1p", "log10", "lgamma", "digamma", "sqrt", "rsqrt", "acosh"]
)
def test_unary_of_positive(name: str) -> None:
    check(name, POS + 1, tol=1e-4)
    check(name, J)


BINARY = [
    "add",
    "sub",
    "mul",
    "div",
    "atan2",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "copysign",
    "hypot",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
    "xlogy",
    "floor_divide",
    "fmod",
    "remainder",
]
PAIRS = [
    (F, G),
    (F, V),
    (F, J),
    (I, J),
    (J, F),
    (F, Z),
    (B, J),
    (B, B2),
    (F, D),
    (Z, J),
    (J.astype("u1"), J.astype("i1")),
]


@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str) -> None:
    for a, b in PAIRS:
        if name in ("floor_divide", "fmod", "remainder") and b.dtype == bool:
            continue
        check(name, a, b)


@pytest.mark.parametrize(
    "name", ["add", "sub", "mul", "div", "floor_divide", "fmod", "remainder", "eq", "lt", "ge"]
)
def test_weak_scalars(name: str) -> None:
    for a, b in [(F, 2), (F, 2.5), (I, 2), (I, 2.5), (B, 2), (I, True), (Z, 3), (F.astype("f2"), 1.5)]:
        check(name, a, b, tol=2e-3 if a.dtype == np.float16 else 2e-5)


@pytest.mark.parametrize(
    "name", ["bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift"]
)
def test_bits(name: str) -> None:
    check(name, I, J)
    check(name, F, G)
    check(name, I, 3)


@pytest.mark.parametrize("e", [0, 1, 2, 3, -1, -2, 0.5, -0.5, 2.5, 0.3])
def test_pow(e: float) -> None:
    check("pow", POS, e)
    check("pow", I if e != -1 and e != -2 else I + 10, e)


MATH: list[tuple[Any, ...]] = [
    ("pow", POS, G),
    ("pow", 2, G),
    ("pow", 2.5, F),
    ("pow", J, J),
    ("float_power", POS, 2),
    ("where", B, F, G),
    ("where", B, F, 2),
    ("where", B, 1, 2.5),
    ("where", B),
    ("where", I, F, G),
    ("lerp", F, G, 0.3),
    ("lerp", F, G, 0.7),
    ("lerp", F, G, U),
    ("clamp", F, -0.5, 0.5),
    ("clamp", I, -2, 2.5),
    ("clamp", F, U, POS),
    ("clamp", F),
    ("logaddexp", F, G),
    ("logaddexp2", F, G),
    ("isclose", F, G),
    ("allclose", F, F),
    ("equal", F, G),
    ("heaviside", F, V),
    ("logit", (U + 1) / 2),
    ("result_type", F, 2),
    ("result_type", I, 2.5),
    ("rsub", F, G),
]


@pytest.mark.parametrize("case", MATH, ids=lambda c: c[0])
def test_math(case: tuple[Any, ...]) -> None:
    check(*case)


def test_math_keywords() -> None:
    check("add", F, G, alpha=2)
    check("add", I, I, alpha=2.5)
    check("sub", F, G, alpha=0.5)
    for mode in ("floor", "trunc"):
        check("div", F, G, rounding_mode=mode)
        check("div", I, J, rounding_mode=mode)
    check("addcmul", F, G, U, value=0.5)
    check("addcdiv", F, G, POS, value=0.5)
    check("logit", (U + 1) / 2, eps=0.1)


REDUCE = [
    "sum",
    "prod",
    "mean",
    "var",
    "std",
    "amax",
    "amin",
    "max",
    "min",
    "argmax",
    "argmin",
    "any",
    "all",
    "median",
    "nansum",
    "nanmean",
]


@pytest.mark.parametrize("name", REDUCE)
def test_reduce(name: str) -> None:
    check(name, F)
    check(name, I)
    check(name, F, 1)
    check(name, F, dim=0)
    check(name, F, 1, True)
    check(name, F, -1, keepdim=True)
    check(name, F, 5)


@pytest.mark.parametrize(
    "name", ["sum", "mean", "var", "std", "amax", "amin", "logsumexp", "nansum", "any", "all"]
)
def test_reduce_several(name: str) -> None:
    check(name, F, (0, 1))
    check(name, F, (0, 0))


REDUCTIONS: list[tuple[Any, ...]] = [
    ("sum", B),
    ("norm", F),
    ("norm", I),
    ("norm", F, 1),
    ("norm", F, float("inf")),
    ("norm", F, 3, 1),
    ("std", F, False),
    ("std_mean", F),
    ("var_mean", F, 1),
    ("diff", F),
    ("aminmax", F),
    ("dist", F, G),
    ("mean", I),
    ("max", EMPTY),
    ("amax", EMPTY, 0),
    ("sum", EMPTY),
    ("count_nonzero", I),
    ("count_nonzero", F, 1),
    ("max", F, G),
    ("min", F, G),
    ("logsumexp", F, 1, True),
]


@pytest.mark.parametrize("case", REDUCTIONS, ids=lambda c: c[0])
def test_reductions(case: tuple[Any, ...]) -> None:
    check(*case)


@pytest.mark.parametrize(
    "name",
    names("""
    cumsum cumprod cummax cummin logcumsumexp
"""),
)
def test_running(name: str) -> None:
    check(name, F, 1)
    check(name, F, 0)
    if name != "logcumsumexp":
        check(name, I, 1)


SHAPE: list[tuple[Any, ...]] = [
    ("reshape", (4, 6)),
    ("reshape", (5, 5)),
    ("reshape", (-1, 8)),
    ("reshape", (-1, -1)),
    ("flatten",),
    ("flatten", 1),
    ("squeeze",),
    ("unsqueeze", 1),
    ("unsqueeze", 5),
    ("permute", (2, 0, 1)),
    ("permute", (0, 1)),
    ("transpose", 0, 2),
    ("transpose", 0, 3),
    ("movedim", 0, 2),
    ("movedim", (0, 1), (1, 2)),
    ("narrow", 1, 1, 2),
    ("narrow", 1, 2, 2),
    ("select", 1, 1),
    ("select", 1, 7),
    ("unbind", 1),
    ("split", 2, 1),
    ("split", [1, 2], 1),
    ("split", [1, 1], 1),
    ("chunk", 2, 2),
    ("chunk", 3, 2),
    ("tensor_split", 3, 2),
    ("tensor_split", (1, 3), 2),
    ("flip", (0, 2)),
    ("roll", 1),
    ("roll", (1, 2), (0, 2)),
    ("rot90",),
    ("tile", (2, 1)),
    ("repeat_interleave", 2),
    ("repeat_interleave", 2, 1),
    ("tril",),
    ("triu", 1),
    ("diagonal",),
    ("diagonal", 1, 0, 2),
    ("diagonal", -1, 1, 2),
    ("diag_embed",),
    ("diag_embed", 1),
    ("broadcast_to", (2, 2, 3, 4)),
    ("unflatten", 2, (2, 2)),
    ("swapaxes", 0, 1),
    ("fliplr",),
    ("flipud",),
    ("ravel",),
    ("atleast_3d",),
    ("clone",),
    ("t",),
]


@pytest.mark.parametrize("case", SHAPE, ids=lambda c: "-".join(map(str, c)))
def test_shape(case: tuple[Any, ...]) -> None:
    check(case[0], T3, *case[1:])


SHAPE_METHODS: list[tuple[Any, ...]] = [
    (".repeat", 2, 1, 3),
    (".repeat", 2, 2, 1, 1),
    (".expand", 2, 3, 4),
    (".expand", 5, 2, 3, 4),
    (".expand", 3, 3, 4),
    (".view", 6, 4),
    (".view", 7, 4),
    (".unfold", 2, 2, 1),
    (".unfold", 1, 2, 1),
]


@pytest.mark.parametrize("case", SHAPE_METHODS, ids=lambda c: "-".join(map(str, c)))
def test_shape_methods(case: tuple[Any, ...]) -> None:
    check(case[0], T3, *case[1:])


def test_view_of_transposed() -> None:
    check("view", T3, fn=lambda lib, x: x.transpose(0, 1).view(-1))


JOINS: list[tuple[Any, ...]] = [
    ("cat", [F, G]),
    ("cat", [F, G], 1),
    ("cat", [F, I]),
    ("cat", [F, T3]),
    ("cat", [F, V.reshape(1, 4)], 0),
    ("cat", [F, V.reshape(4, 1)], 0),
    ("cat", []),
    ("stack", [F, G]),
    ("stack", [F, G], -1),
    ("stack", [F, V]),
    ("hstack", [F, G]),
    ("vstack", [V, V]),
    ("dstack", [F, G]),
    ("column_stack", [V, V]),
    ("diag", V),
    ("diag", F),
    ("diag", V, 1),
    ("cartesian_prod", V, V[:2]),
    ("block_diag", F, V),
    ("tril_indices", 3, 4),
    ("triu_indices", 3, 4, 1),
    ("kron", F, G),
    ("trace", F),
    ("broadcast_tensors", F, V),
]


@pytest.mark.parametrize("case", JOINS, ids=lambda c: c[0])
def test_joins(case: tuple[Any, ...]) -> None:
    check(*case)


def test_meshgrid() -> None:
    check("meshgrid", V, V, indexing="ij")
    check("meshgrid", V, V[:2], indexing="xy")


A2 = _rs.randn(4, 5).astype("f")
B3 = _rs.randn(2, 3, 4).astype("f")
C3 = _rs.randn(2, 4, 5).astype("f")
SQUARE = _rs.randn(3, 3).astype("f")
MATMUL = [
    (F, A2),
    (V, A2),
    (F, V),
    (V, V),
    (B3, A2),
    (B3, C3),
    (B3, V),
    (V, C3),
    (F, F),
    (F, I.T.copy()),
    (Z, F),
    (B3, B3),
    (_rs.randn(3, 1, 3, 4).astype("f"), C3),
]


def test_matmul() -> None:
    for a, b in MATMUL:
        check("matmul", a, b)


LINALG: list[tuple[Any, ...]] = [
    ("mm", F, A2),
    ("mm", F, F),
    ("mm", V, F),
    ("bmm", B3, C3),
    ("bmm", B3, B3),
    ("mv", F, V),
    ("mv", F, V[:2]),
    ("dot", V, V),
    ("dot", V, V[:2]),
    ("outer", V, V),
    ("baddbmm", _rs.randn(2, 3, 5).astype("f"), B3, C3),
    ("tensordot", F, A2, 1),
    ("matrix_power", SQUARE, 3),
    ("cdist", F, G),
    ("inner", F, G),
]


@pytest.mark.parametrize("case", LINALG, ids=lambda c: c[0])
def test_linalg(case: tuple[Any, ...]) -> None:
    check(*case)


def test_linalg_keywords() -> None:
    check("addmm", _rs.randn(3, 5).astype("f"), F, A2, beta=0.5, alpha=2)
    check("tensordot", B3, C3, dims=([2], [1]))
    check("cross", SQUARE, SQUARE[::-1].copy(), dim=1)


EINSUM: list[tuple[Any, ...]] = [
    ("ij,jk->ik", F, A2),
    ("bij,bjk", B3, C3),
    ("ii->i", SQUARE),
    ("...ij->...ji", B3),
    ("ij->", F),
    ("i,j->ij", V, V),
    ("bhqd,bhkd->bhqk", _rs.randn(2, 2, 3, 4).astype("f"), _rs.randn(2, 2, 5, 4).astype("f")),
    ("ij,ij,j->i", F, G, V),
    ("ij,kl->", F, A2),
    ("ij,jk->iq", F, A2),
    ("ij,jk", F),
]


@pytest.mark.parametrize("case", EINSUM, ids=lambda c: c[0])
def test_einsum(case: tuple[Any, ...]) -> None:
    check("einsum", *case)


GI = _rs.randint(0, 3, (3, 4))
GJ = _rs.randint(0, 4, (3, 2))
INDEX: list[tuple[Any, ...]] = [
    ("gather", F, 0, GI),
    ("gather", F, 1, GJ),
    ("gather", F, 1, GI + 5),
    ("scatter", F, 0, GI, G),
    ("scatter", F, 1, GJ, 2.5),
    ("index_select", F, 1, np.array([0, 3, 3])),
    ("index_add", F, 0, np.array([0, 0, 2]), G),
    ("index_copy", F, 0, np.array([2, 0]), G[:2].copy()),
    ("index_fill", F, 1, np.array([0, 2]), 9.0),
    ("masked_fill", F, B, 5.0),
    ("masked_select", F, B),
    ("take_along_dim", F, GJ, 1),
    ("take", F, GI),
    ("nonzero", I),
    ("argwhere", B),
    ("scatter_reduce", F, 0, GI, G, "amax"),
    ("scatter_reduce", F, 0, GI, G, "prod"),
    ("scatter_reduce", F, 0, GI, G, "mean"),
    ("slice_scatter", F, G[:, :2].copy(), 1, 1, 3),
    ("select_scatter", F, V, 0, 1),
    ("scatter_add", F, 0, GI, G),
]


@pytest.mark.parametrize("case", INDEX, ids=lambda c: c[0])
def test_index(case: tuple[Any, ...]) -> None:
    check(*case)


def test_index_keywords() -> None:
    check("nonzero", I, as_tuple=True)
    check("index_add", F, 1, np.array([0, 0]), G[:, :2].copy(), alpha=2)
    check("scatter_reduce", F, 0, GI, G, "sum", include_self=False)
    check("masked_scatter", F, B, G, fn=lambda lib, a, m, b: a.masked_scatter(m, b))


SORT: list[tuple[Any, ...]] = [
    ("sort", F),
    ("sort", F, 0, True),
    ("argsort", F, 1),
    ("topk", F, 2),
    ("topk", F, 2, 0, False),
    ("topk", F, 9),
    ("kthvalue", F, 2, 1),
    ("median", F, 1),
    ("median", I),
    ("unique", I),
    ("unique_consecutive", I.reshape(-1)),
    ("searchsorted", np.sort(V), F),
    ("bucketize", F, np.sort(V)),
    ("bincount", J.reshape(-1)),
    ("histc", F, 4, -1, 1),
    ("isin", I, J),
    ("nanmedian", F),
    ("msort", F),
]


@pytest.mark.parametrize("case", SORT, ids=lambda c: c[0])
def test_sort(case: tuple[Any, ...]) -> None:
    check(*case)


CREATION: list[tuple[Any, ...]] = [
    ("arange", 5),
    ("arange", 1, 5),
    ("arange", 1, 5, 2),
    ("arange", 0.0, 1.0, 0.3),
    ("arange", 5, 1, -1),
    ("arange", 5, 1),
    ("arange", 1, 2, 0),
    ("linspace", 0, 1, 5),
    ("linspace", 0, 1, 1),
    ("linspace", 3, -2, 7),
    ("linspace", 0, 1, 0),
    ("logspace", 0, 2, 5),
    ("eye", 3),
    ("eye", 2, 4),
    ("full", (2, 3), 7),
    ("full", (2,), 1.5),
    ("full", (2,), True),
    ("zeros", 2, 3),
    ("ones", (2, 3)),
    ("zeros", 2, -1),
    ("zeros_like", F),
    ("ones_like", I),
    ("full_like", F, 3),
    ("tensor", [[1, 2], [3, 4.5]]),
    ("tensor", [True, False]),
    ("tensor", [[1, 2], [3]]),
    ("tensor", [1, "a"]),
    ("tensor", 3),
    ("tensor", []),
    ("tensor", [1, 2.0, True]),
    ("tensor", [1 + 2j]),
    ("scalar_tensor", 3),
    ("tensor", "a"),
    ("softmax", F, 1),
    ("log_softmax", F, 0),
    ("softmax", I, 1),
    ("complex", F, G),
    ("polar", POS, G),
]


@pytest.mark.parametrize("case", CREATION, ids=lambda c: "-".join(map(str, c))[:40])
def test_creation(case: tuple[Any, ...]) -> None:
    check(*case)


DTYPES = [
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "float16",
    "bfloat16",
    "float32",
    "float64",
    "complex64",
    "complex128",
    "bool",
]


def test_promote_types() -> None:
    for a in DTYPES:
        for b in DTYPES:
            check("promote", fn=lambda lib, a=a, b=b: lib.promote_types(getattr(lib, a), getattr(lib, b)))


def test_result_dtypes_by_rank() -> None:
    """Tensors with dimensions, 0-d tensors and Python numbers, every pair of dtypes."""
    for a in DTYPES:
        for b in DTYPES:
            if a == "float16" and b.startswith("complex"):
                continue  # PyTorch has a complex32 for these
            for other in (lambda lib, d: lib.ones((), dtype=d), lambda lib, d: 2, lambda lib, d: 2.5):
                check(
                    "dtype",
                    fn=lambda lib, a=a, b=b, other=other: (
                        (lib.ones(2, dtype=getattr(lib, a)) * other(lib, getattr(lib, b))).dtype
                    ),
                )


MORE: list[tuple[Any, ...]] = [
    ("quantile", F, 0.3), ("quantile", F, 0.3, 1), ("quantile", F, np.array([0.1, 0.5], "f"), 0, True),
    ("nanquantile", F, 0.5), ("cov", F), ("corrcoef", F), ("trapezoid", F), ("vsplit", F, 3),
    ("hsplit", F, 2),
    ("diagflat", V), ("ldexp", F, J), ("renorm", F, 2, 0, 1.0), ("vander", V), ("hann_window", 5),
    ("hamming_window", 6, False), ("blackman_window", 7), ("trapezoid", F, np.sort(V)), ("adjoint", F),
]  # fmt: skip


@pytest.mark.parametrize("case", MORE, ids=lambda c: c[0])
def test_more(case: tuple[Any, ...]) -> None:
    check(*case)


def test_more_methods() -> None:
    check(".sum_to_size", T3, (1, 4))
    check(".put", F, np.array([0, -1]), np.array([5.0, 6.0], "f"))
    check("unravel_index", np.array([5, 11]), (3, 4))
    check("reversed", F, fn=lambda lib, x: x.__reversed__())
