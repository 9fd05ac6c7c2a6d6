"""The composed functions of the scalar vocabulary: everything a scalar rule may call beyond the base methods.

They take and give handles of f32 or f64 (half precision is widened by the primitives' rules). A target's
builder inherits :class:`ScalarMath` and gives the base methods; it may override

* ``scale2`` and ``normalise``, where it has instructions for them (``vscalefps``, ``vgetexpps`` and
  ``vgetmantps``): the results are the same to the bit;
* ``rare``, to branch around code that hardly any element needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weft.ir import (
    math_division,
    math_exponential,
    math_gamma,
    math_hyperbolic,
    math_pow,
    math_special,
    math_trig,
)
from weft.ir.scalar import ScalarBuilder
from weft.ir.scalarexpr import Num


class ScalarMath(ScalarBuilder):
    """exp, log, sin ... over the base vocabulary.

    Accuracy: within 2 ULP for f32 (tan and pow within 4); for f64 a few ULP, and next to a zero of lgamma and
    digamma the absolute bound that tests/ir/test_scalarmath.py states.
    """

    def rare(
        self, condition: Any, usual: tuple[Any, ...], slow: Callable[[], tuple[Any, ...]]
    ) -> tuple[Any, ...]:
        """``slow()`` in the elements where ``condition`` holds, else ``usual``; it hardly ever holds.

        Both are tuples of handles of equal dtypes. This default computes both; a code generator may emit the
        code of ``slow`` in a block of its own, entered where any lane of the condition is true.
        """
        return tuple(self.select(condition, s, u) for s, u in zip(slow(), usual, strict=True))

    def scale2(self, p: Any, n: Any) -> Any:
        """p * 2^floor(n) rounded once, n a multiple of 1/16 (or NaN) with |n| <= 2 * (exponent bias - 1)."""
        return math_exponential.scale2(Num(self, p), Num(self, n)).h

    def normalise(self, x: Any) -> tuple[Any, Any]:
        """Exponent and mantissa of x, as :func:`weft.ir.math_exponential.normalise`."""
        e, m = math_exponential.normalise(Num(self, x))
        return e.h, m.h

    def int_pow(self, x: Any, n: Any) -> Any:
        return math_pow.int_pow(Num(self, x), Num(self, n)).h

    def polygamma(self, n: int, x: Any) -> Any:
        return math_gamma.polygamma(n, Num(self, x)).h


def _method(name: str, fn: Callable[..., Num]) -> Callable[..., Any]:
    def method(self: ScalarMath, *xs: Any) -> Any:
        return fn(*(Num(self, x) for x in xs)).h

    method.__name__ = name
    method.__doc__ = fn.__doc__
    return method


FUNCTIONS: dict[str, Callable[..., Num]] = {
    name: getattr(module, name)
    for module, names in (
        (math_exponential, "exp exp2 expm1 log log2 log1p"),
        (math_hyperbolic, "sinh cosh tanh asinh acosh atanh"),
        (math_pow, "pow"),
        (math_trig, "sin cos tan asin acos atan atan2"),
        (math_special, "erf erfc erfinv"),
        (math_gamma, "lgamma digamma"),
        (math_division, "rsqrt fmod"),
    )
    for name in names.split()
}

for _name, _fn in FUNCTIONS.items():
    setattr(ScalarMath, _name, _method(_name, _fn))
