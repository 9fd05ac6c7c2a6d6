"""Einstein sums: letters are parsed, diagonals taken, operands contracted pairwise by ``dot_general``."""

from __future__ import annotations

import string
from collections.abc import Sequence

from weft.dispatch import apply
from weft.ir import prims as P
from weft.ops.common import convert
from weft.promotion import promote
from weft.tensor import Tensor


def _parse(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """The letters of each operand and of the result; ellipses become letters that no one wrote."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(operands):
        raise RuntimeError(
            f"einsum(): the number of subscripts in the equation ({len(terms)}) does not match the number of "
            f"operands ({len(operands)})"
        )
    used = set(text)
    free = [c for c in string.ascii_letters if c not in used]
    width = max(
        (x.ndim - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True) if "..." in t),
        default=0,
    )
    dots = "".join(free[:width])
    out = []
    for i, (t, x) in enumerate(zip(terms, operands, strict=True)):
        k = x.ndim - len(t.replace("...", ""))
        t = t.replace("...", dots[width - k :] if k > 0 else "")
        if len(t) != x.ndim:
            raise RuntimeError(
                f"einsum(): the number of subscripts in the equation ({len(t)}) does not match the number of "
                f"dimensions ({x.ndim}) for operand {i} and no ellipsis was given"
            )
        out.append(t)
    if not arrow:
        every = "".join(out)
        right = dots + "".join(sorted(c for c in set(every) if every.count(c) == 1 and c not in dots))
    else:
        right = right.replace("...", dots)
    for c in right:
        if not any(c in t for t in out):
            raise RuntimeError(
                f"einsum(): output subscript {c} does not appear in the equation for any input operand"
            )
    return out, right


def _diagonals(x: Tensor, term: str) -> tuple[Tensor, str]:
    for c in dict.fromkeys(term):
        while term.count(c) > 1:
            i = term.index(c)
            j = term.index(c, i + 1)
            x = x.diagonal(0, i, j)
            term = term[:i] + term[i + 1 : j] + term[j + 1 :] + c
    return x, term


def _contract(a: Tensor, ta: str, b: Tensor, tb: str, keep: set[str]) -> tuple[Tensor, str]:
    """Two operands into one: letters of both that are not needed later are summed."""
    a, ta = _sum_out(a, ta, {c for c in ta if c not in tb and c not in keep})
    b, tb = _sum_out(b, tb, {c for c in tb if c not in ta and c not in keep})
    a, ta = _squeeze_ones(a, ta, b, tb)
    b, tb = _squeeze_ones(b, tb, a, ta)
    shared = [c for c in ta if c in tb]
    summed = [c for c in shared if c not in keep]
    batch = [c for c in shared if c in keep]
    for c in shared:
        if a.shape[ta.index(c)] != b.shape[tb.index(c)]:
            raise RuntimeError(
                f"einsum(): subscript {c} has size {b.shape[tb.index(c)]} for operand 1 which does not "
                f"broadcast with previously seen size {a.shape[ta.index(c)]}"
            )
    out = apply(
        P.dot_general_p,
        a,
        b,
        contract=(tuple(ta.index(c) for c in summed), tuple(tb.index(c) for c in summed)),
        batch=(tuple(ta.index(c) for c in batch), tuple(tb.index(c) for c in batch)),
    )
    rest_a = [c for c in ta if c not in shared]
    rest_b = [c for c in tb if c not in shared]
    return out, "".join(batch + rest_a + rest_b)


def _sum_out(x: Tensor, term: str, letters: set[str]) -> tuple[Tensor, str]:
    if not letters:
        return x, term
    x = x.sum([i for i, c in enumerate(term) if c in letters])
    return x, "".join(c for c in term if c not in letters)


def _squeeze_ones(x: Tensor, tx: str, y: Tensor, ty: str) -> tuple[Tensor, str]:
    """Extents of 1 that broadcast against the other operand are dropped."""
    drop = [i for i, c in enumerate(tx) if c in ty and x.shape[i] == 1 and y.shape[ty.index(c)] != 1]
    return (x.squeeze(drop), "".join(c for i, c in enumerate(tx) if i not in drop)) if drop else (x, tx)


def run(equation: str, operands: list[Tensor]) -> Tensor:
    terms, right = _parse(equation, operands)
    dtype = promote(*operands)
    pairs = [_diagonals(convert(x, dtype), t) for x, t in zip(operands, terms, strict=True)]
    x, tx = pairs[0]
    for i, (y, ty) in enumerate(pairs[1:], 1):
        keep = set(right) | {c for _, t in pairs[i + 1 :] for c in t}
        x, tx = _contract(x, tx, y, ty, keep)
    x, tx = _sum_out(x, tx, {c for c in tx if c not in right})
    order = [tx.index(c) for c in right]
    return x.permute(order) if order != list(range(len(order))) else x
