"""pytest plugin: fixtures that run a test eagerly and compiled. Loaded at every pytest start, so it imports
nothing.

A test that takes ``compiled_mode`` runs twice; the fixture wraps functions: in the first run it returns them
as they are, in the second compiled::

    def test_gelu(compiled_mode):
        f = compiled_mode(weft.nn.functional.gelu)
        assert f(weft.zeros(3)).sum() == 0

A test marked ``@pytest.mark.weft_compiled`` runs twice without being written for it: the second time its
body is captured lazily, so that all of its tensor operations run compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

MODES = ("eager", "compiled")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "weft_compiled: run the test eagerly, and once more with its body captured"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wants = "compiled_mode" in metafunc.fixturenames
    if wants or metafunc.definition.get_closest_marker("weft_compiled") is not None:
        if "_weft_mode" not in metafunc.fixturenames:
            metafunc.fixturenames.append("_weft_mode")
        metafunc.parametrize("_weft_mode", MODES, indirect=True)


@pytest.fixture
def _weft_mode(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "eager")


@pytest.fixture
def compiled_mode(_weft_mode: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The identity in the eager run of the test, ``weft.compile`` in the compiled one."""
    if _weft_mode == "eager":
        return lambda fn, **options: fn
    from weft.capture.compiled import compile

    return compile


@pytest.hookimpl(hookwrapper=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> Iterator[None]:
    marked = pyfuncitem.get_closest_marker("weft_compiled") is not None
    callspec = getattr(pyfuncitem, "callspec", None)
    if not marked or callspec is None or callspec.params.get("_weft_mode") != "compiled":
        yield
        return
    from weft.capture.regions import lazy

    with lazy():
        yield


@pytest.fixture
def assert_equivalent() -> Callable[..., None]:
    """:func:`weft.testing.assert_equivalent`."""
    from weft.testing.equivalence import assert_equivalent

    return assert_equivalent
