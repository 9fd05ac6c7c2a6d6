"""``weft.special``: special functions under the names that PyTorch gives them there."""

from __future__ import annotations

import math
from typing import Any

from weft.ops.activation import log_softmax, softmax
from weft.ops.math import (
    digamma,
    erf,
    erfc,
    erfinv,
    exp2,
    expm1,
    log1p,
    logit,
    polygamma,
    round,
    sigmoid,
    sinc,
    where,
    xlogy,
)
from weft.ops.math import lgamma as gammaln
from weft.ops.math import log as _log
from weft.ops.reduce import logsumexp
from weft.tensor import Tensor

expit, psi = sigmoid, digamma


def entr(input: Tensor) -> Tensor:
    """-x log x, 0 at 0, -inf below."""
    return where(input < 0, -math.inf, -xlogy(input, input))


def ndtr(input: Tensor) -> Tensor:
    """The normal distribution function."""
    return 0.5 * (1.0 + erf(input * math.sqrt(0.5)))


def xlog1py(input: Any, other: Any) -> Tensor:
    """input * log(1 + other), 0 where input is 0."""
    return xlogy(input, other + 1)


def multigammaln(input: Tensor, p: int) -> Tensor:
    """The logarithm of the multivariate gamma function of dimension ``p``."""
    total = gammaln(input)
    for i in range(1, p):
        total = total + gammaln(input - i / 2)
    return total + p * (p - 1) / 4 * math.log(math.pi)


def log_ndtr(input: Tensor) -> Tensor:
    """The logarithm of the normal distribution function (moderate arguments)."""
    return _log(ndtr(input))


__all__ = [
    "digamma",
    "entr",
    "erf",
    "erfc",
    "erfinv",
    "exp2",
    "expit",
    "expm1",
    "gammaln",
    "log1p",
    "log_ndtr",
    "log_softmax",
    "logit",
    "logsumexp",
    "multigammaln",
    "ndtr",
    "polygamma",
    "psi",
    "round",
    "sigmoid",
    "sinc",
    "softmax",
    "xlog1py",
    "xlogy",
]
