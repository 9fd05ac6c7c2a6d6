"""The statements that random programs are made of: ``make(program) -> (text, exact, bits[, target])``."""

from __future__ import annotations

import math
from typing import Any

SMOOTH = ["sin", "cos", "tanh", "sigmoid", "exp", "erf", "atan", "expm1"]
POSITIVE = ["sqrt", "log", "log1p", "rsqrt", "reciprocal", "log2"]
EXACT = ["neg", "abs", "relu"]
JUMPS = ["floor", "ceil", "round", "trunc", "sign"]


def unary(p: Any) -> Any:
    x = p.float()
    return f"T.{p.r.choice(SMOOTH)}({x.name})", False, 3


def positive(p: Any) -> Any:
    x = p.float()
    return f"T.{p.r.choice(POSITIVE)}({x.name}.abs() + 0.5)", False, 3


def exact_unary(p: Any) -> Any:
    x = p.pick(lambda v: str(v.value.dtype).split(".")[-1] != "bool")
    return f"{x.name}.{p.r.choice(EXACT)}()", x.exact, x.bits


def jump(p: Any) -> Any:
    x = p.pick(lambda v: v.exact and v.is_float)
    return f"T.{p.r.choice(JUMPS)}({x.name})", True, x.bits


def binary(p: Any) -> Any:
    x = p.pick()
    y = p.fitting(x)
    op = p.r.choice(("+", "-", "*", "+", "*"))
    return (
        f"{x.name} {op} {y.name}",
        x.exact and y.exact,
        x.bits + y.bits if op == "*" else max(x.bits, y.bits) + 1,
    )


def with_number(p: Any) -> Any:
    x = p.pick()
    op = p.r.choice(("+", "-", "*", "/"))
    a, b = x.name, p.number()
    if p.r.random() < 0.3 and op != "/":
        a, b = b, a
    return (
        f"{a} {op} {b}",
        x.exact and op != "/" and "s" not in b and not str(x.value.dtype).endswith("16"),
        x.bits + 3,
    )


def divide(p: Any) -> Any:
    x = p.float()
    y = p.fitting(x)
    return f"{x.name} / ({y.name} * {y.name} + 1)", False, 3


def power(p: Any) -> Any:
    return f"{p.float().name} ** {p.r.choice(('2', '3', '2.0', 'k'))}", False, 3


def compare(p: Any) -> Any:
    x = p.exact()
    y = p.fitting(x)
    if not y.exact:
        return None
    return f"{x.name} {p.r.choice(('<', '<=', '>', '==', '!='))} {y.name}", True, 1


def where(p: Any) -> Any:
    c = p.pick(lambda v: str(v.value.dtype).endswith("bool"))
    x, y = p.fitting(c), p.fitting(c)
    return f"T.where({c.name}, {x.name}, {y.name})", x.exact and y.exact, max(x.bits, y.bits)


def extremes(p: Any) -> Any:
    x = p.exact()
    y = p.fitting(x)
    fn = p.r.choice(("maximum", "minimum"))
    return f"T.{fn}({x.name}, {y.name})", x.exact and y.exact, max(x.bits, y.bits)


def clamp(p: Any) -> Any:
    x = p.exact()
    return (
        f"{x.name}.clamp({p.r.choice(('-1', '-0.5', 'min=0'))}, max={p.r.choice(('1', '1.5'))})".replace(
            "min=0, ", "min=0, "
        ),
        True,
        x.bits,
    )


def convert(p: Any) -> Any:
    x = p.exact()
    to = p.r.choice(("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool", "float32"))
    return f"{x.name}.to(T.{to})", x.bits <= 6, x.bits


def reduce(p: Any) -> Any:
    x = p.pick()
    fn = p.r.choice(("sum", "sum", "mean", "amax", "amin"))
    if fn in ("amax", "amin") and not x.exact:
        return None
    if p.r.random() < 0.25:
        dims = ""
    elif len(x.shape) > 1 and p.r.random() < 0.3:
        dims = "(0, -1)"
    else:
        dims = str(p.dim(x))
    keep = f"{', ' if dims else ''}keepdim=True" if dims and p.r.random() < 0.4 else ""
    exact = x.exact and fn != "mean" and x.value.numel() <= 64
    return f"{x.name}.{fn}({dims}{keep})", exact, x.bits + (4 if fn == "sum" else 0)


def reduce_more(p: Any) -> Any:
    x = p.float(1)
    d = p.dim(x)
    fn = p.r.choice(
        (
            f"T.softmax({x.name}, {d})",
            f"T.log_softmax({x.name}, {d})",
            f"T.logsumexp({x.name}, {d})",
            f"({x.name} * 0.5).var({d}, unbiased=False)",
            f"{x.name}.cumsum({d})",
            f"F.layer_norm({x.name}, {x.name}.shape[-1:])",
            f"{x.name}.std()" if x.value.numel() > 3 else f"{x.name}.sum()",
            f"({x.name} * {x.name}).sum({d}).add(1).sqrt()",
            f"T.prod({x.name}, {d})",
        )
    )
    return fn, False, 3


def order(p: Any) -> Any:
    x = p.exact(1)
    d = p.dim(x)
    fn = p.r.choice(
        (
            f"{x.name}.argmax({d})",
            f"{x.name}.argmin({d}, keepdim=True)",
            f"T.sort({x.name}, dim={d}, stable=True)[0]",
            f"T.argsort({x.name}, dim={d}, stable=True)",
            f"{x.name}.max({d})[0]",
            f"T.topk({x.name} * 1.0, 1, {d})[0]",
            f"{x.name}.cummax({d})[0]",
            f"({x.name} != 0).any({d})",
            f"({x.name} != 0).all({d}, keepdim=True)",
        )
    )
    return fn, True, x.bits


def view(p: Any) -> Any:
    x = p.pick(lambda v: len(v.shape) >= 1)
    d, e = p.dim(x), p.dim(x)
    n = x.shape[d]
    fn = p.r.choice(
        (
            f"{x.name}.transpose({d}, {e})",
            f"{x.name}.unsqueeze({d})",
            f"{x.name}.squeeze()",
            f"{x.name}.flatten()",
            f"{x.name}.reshape(-1)",
            f"{x.name}.permute({', '.join(map(str, p.r.sample(range(len(x.shape)), len(x.shape))))})",
            f"{x.name}.narrow({d}, {n // 3}, {n - n // 3})",
            f"{x.name}.select({d}, {p.r.randrange(n) if n else 0})",
            f"{x.name}.flip({d})",
            f"{x.name}.roll({p.r.randint(-2, 3)}, {d})",
            f"{x.name}.expand(2, *{x.name}.shape)",
            f"{x.name}.repeat({', '.join(['2'] * len(x.shape))})",
            f"{x.name}.chunk(2, {d})[{p.r.choice((0, -1))}]",
            f"{x.name}.view({x.name}.shape)",
            f"{x.name}.contiguous()",
            f"{x.name}.clone()",
            f"{x.name}.detach()",
            f"{x.name}.mT" if len(x.shape) > 1 else f"{x.name}.unsqueeze(0)",
            f"{x.name}.diagonal()" if len(x.shape) > 1 else f"T.diag({x.name})",
            f"{x.name}.unflatten({d}, (1, -1))",
            f"{x.name}.tril()" if len(x.shape) > 1 else f"{x.name}.expand(3, -1)",
            f"F.pad({x.name}, ({p.r.randint(-1, 2)}, {p.r.randint(0, 2)}))",
        )
    )
    return fn, x.exact, x.bits


def index(p: Any) -> Any:
    x = p.pick(lambda v: len(v.shape) >= 1)
    return f"{x.name}[{p.index(x)}]", x.exact, x.bits


def gather(p: Any) -> Any:
    x = p.pick(lambda v: len(v.shape) >= 1 and 0 not in v.shape)
    d = p.dim(x)
    n = x.shape[d]
    picks = [p.r.randrange(n) for _ in range(p.r.randint(1, 4))]
    order = f"T.arange({x.value.numel()}).reshape({x.name}.shape) % {n}"
    fn = p.r.choice(
        (
            f"{x.name}.index_select({d}, T.tensor({picks}))",
            f"T.gather({x.name}, {d}, {order})",
            f"{x.name}.take_along_dim({order}, {d})",
            f"T.zeros_like({x.name}).index_add({d}, T.arange({n}) // 2, {x.name})",
            f"T.zeros_like({x.name}).scatter({d}, {order}, {x.name})"
            if len(x.shape) == 1
            else f"T.zeros_like({x.name}).scatter_add({d}, {order}, {x.name})",
            f"F.embedding(T.tensor([[0, {n - 1}]]), {x.name})"
            if len(x.shape) == 2 and d == 0
            else f"{x.name}[[0]]",
        )
    )
    return fn, x.exact and x.value.numel() <= 64, x.bits + 3


def join(p: Any) -> Any:
    x = p.pick(lambda v: len(v.shape) >= 1)
    y = p.pick(lambda v: v.shape == x.shape)
    d = p.dim(x)
    fn = p.r.choice(("cat", "stack", "cat"))
    return f"T.{fn}([{x.name}, {y.name}, {x.name}], {d})", x.exact and y.exact, max(x.bits, y.bits)


def matmul(p: Any) -> Any:
    x = p.float(1)
    same = str(x.value.dtype)
    y = p.pick(lambda v: str(v.value.dtype) == same and len(v.shape) >= 1)
    n = x.shape[-1]
    fn = p.r.choice(("plain", "outer", "self", "linear", "einsum"))
    if fn == "plain" and len(y.shape) > 1 and y.shape[-2] == n:
        return f"{x.name} @ {y.name}", False, 3
    if fn == "outer":
        return (
            f"{x.name}.flatten()[:9, None] @ {y.name}.flatten()[None, :11]",
            x.exact and y.exact,
            x.bits + y.bits,
        )
    if fn == "linear" and y.shape[-1] == n and len(y.shape) == 2:
        return f"F.gelu(F.linear({x.name}, {y.name}))", False, 3
    if fn == "einsum" and len(x.shape) == 3:
        return f"T.einsum('bij,bkj->bik', {x.name}, {x.name})", False, 3
    if len(x.shape) > 1:
        return f"{x.name} @ {x.name}.transpose(-1, -2)", False, 3
    return f"{x.name} @ {x.name}", False, 3


def conv(p: Any) -> Any:
    x = p.pick(lambda v: v.is_float and len(v.shape) in (2, 3, 4) and 0 not in v.shape)
    n = len(x.shape)
    x4 = x.name + "[None]" * (4 - n) if n < 4 else x.name
    c = 1 if n == 2 else x.shape[-3]
    k = p.r.choice((1, 2, 3))
    args = f"stride={p.r.choice((1, 2))}, padding={p.r.choice((1, 2))}, dilation={p.r.choice((1, 1, 2))}"
    kind = p.r.random()
    if kind < 0.6:
        groups = c if p.r.random() < 0.3 else 1
        shape = (2 * c, c // groups, k, k)
        w = f"(T.arange({math.prod(shape)}, dtype={x.name}.dtype).reshape({shape}) % 5 - 2)"
        return f"F.conv2d({x4}, {w}, {args}, groups={groups})", False, 3
    if kind < 0.8:
        return f"F.avg_pool2d({x4}, {k}, 1, {k // 2})", False, 3
    if not x.exact:
        return None
    return f"F.max_pool2d({x4}, {k}, 1, {k // 2})", True, x.bits


def random_numbers(p: Any) -> Any:
    x = p.float()
    fn = p.r.choice(
        ("T.rand_like({0}) + {0}", "{0} * T.rand({0}.shape)", "F.dropout({0}, 0.5)", "{0} + T.randn(())")
    )
    return fn.format(x.name), False, 3


def create(p: Any) -> Any:
    x = p.pick()
    fn = p.r.choice(
        (
            "T.zeros_like({0})",
            "T.ones_like({0})",
            "T.full_like({0}, 2)",
            "{0}.new_zeros(3)",
            "T.arange(7)",
            "T.eye(4)",
        )
    )
    return fn.format(x.name), True, 3


def overlaps(t: Any) -> bool:
    """Whether elements share memory, or are in memory where some do."""
    return 0 in t.stride() or (t._base is not None and 0 in t._base.stride())


def in_place(p: Any) -> Any:
    x = p.pick(lambda v: v.is_float and not overlaps(v.value))
    op = p.r.random()
    if op < 0.35:
        y = p.fitting(x)
        return (
            f"{x.name}.{p.r.choice(('add_', 'sub_', 'mul_', 'copy_'))}({y.name})",
            x.exact and y.exact,
            3,
            x,
        )
    if op < 0.65:
        fn = p.r.choice(
            (
                "add_(s)",
                "mul_(0.5)",
                "zero_()",
                "fill_(k)",
                "clamp_(-1, 1)",
                "neg_()",
                "sigmoid_()",
                "relu_()",
            )
        )
        return f"{x.name}.{fn}", False, 3, x
    if op < 0.9:
        value = p.r.choice(("0", "1.5", "s", p.fitting(x).name))
        return f"{x.name}[{p.index(x)}] {p.r.choice(('=', '=', '+=', '*='))} {value}", False, 3, x
    m = p.pick(lambda v: v.exact and v.shape == x.shape)
    return f"{x.name}.masked_fill_({m.name} > 0, 0.5)", False, 3, x


def control(p: Any) -> Any:
    x = p.float()
    y = p.like(x)
    text = p.r.choice(
        (
            "sum({0} * i for i in range(k))",
            "{0} if {0}.ndim > 1 else {1}",
            "[{0}, {1}][k % 2]",
            "(lambda t: t * s)({0})",
            "T.stack(list({0}.unbind(0)))" if x.shape and x.shape[0] else "{0} + 0",
        )
    )
    return text.format(x.name, y.name), False, 3


STATEMENTS = [
    (unary, 6), (positive, 3), (exact_unary, 3), (jump, 2), (binary, 10), (with_number, 6), (divide, 2),
    (power, 2), (compare, 4), (where, 3), (extremes, 2), (clamp, 2), (convert, 4), (reduce, 7),
    (reduce_more, 5), (order, 4), (view, 14), (index, 9), (gather, 5), (join, 3), (matmul, 5), (conv, 3),
    (random_numbers, 1), (create, 2), (in_place, 9), (control, 2),
]  # fmt: skip
