"""``assert_same_story``: whole scenarios, with state between calls, eager and compiled."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
from weft.capture.compiled import compile
from weft.random import manual_seed
from weft.testing.compare import assert_close

Decorate = Callable[[Any], Any]


def assert_same_story(
    scenario: Callable[[Decorate], Any], *, rtol: float = 1e-5, atol: float = 1e-6, **options: Any
) -> None:
    """Raise AssertionError unless a scenario sees the same with compiled functions as with eager ones.

    ``scenario(decorate)`` makes fresh state, decorates functions, calls them, changes things in between,
    and returns what it observed (tensors, numbers, containers of them). It is run with a ``decorate`` that
    does nothing and with ``weft.compile`` (``options`` go there), each time from the same seeds of weft,
    Python and numpy.

    >>> import weft
    >>> def scenario(decorate):
    ...     k = [1.0]
    ...     f = decorate(lambda x: x * k[0])
    ...     first = f(weft.ones(2))
    ...     k[0] = 2.0
    ...     return first, f(weft.ones(2))
    >>> assert_same_story(scenario)
    """
    eager = _run(scenario, lambda fn: fn)
    compiled = _run(scenario, lambda fn: compile(fn, **options))
    assert_close(compiled, eager, rtol=rtol, atol=atol, equal_nan=True)


def _run(scenario: Callable[[Decorate], Any], decorate: Decorate) -> Any:
    manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    return scenario(decorate)
