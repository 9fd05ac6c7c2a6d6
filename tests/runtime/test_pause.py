"""Automatic garbage collection while a graph is compiled, and after."""

from __future__ import annotations

import gc

import pytest
import weft
from weft.runtime import build
from weft.runtime.pause import collection_paused


def test_collection_is_as_it_was_after_a_pause() -> None:
    with collection_paused():
        assert not gc.isenabled()
        with collection_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), collection_paused():
        raise KeyError
    assert gc.isenabled()


def test_nothing_is_collected_while_a_graph_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def lower(graph: object, run: object = build.lower) -> object:
        seen.append(gc.isenabled())
        return run(graph)  # type: ignore[operator]

    monkeypatch.setattr(build, "lower", lower)
    monkeypatch.setattr("weft.runtime.compile.disk_cache", lambda: None)
    f = weft.compile(lambda x: (x * 3.25).sin() - 17.5)
    f(weft.ones(3))
    assert seen == [False] and gc.isenabled()
