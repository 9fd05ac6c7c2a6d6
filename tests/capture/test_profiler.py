"""Compiled functions under a profiler."""

from __future__ import annotations

import cProfile
import pstats

import weft


def test_a_first_call_under_cprofile_is_captured_and_goes_on_being_profiled() -> None:
    f = weft.compile(lambda x: x * 2 + 1, fullgraph=True)

    def afterwards() -> int:
        return 3

    profiler = cProfile.Profile()
    profiler.enable()
    out = f(weft.ones(2))
    afterwards()
    profiler.disable()
    assert out.tolist() == [3.0, 3.0] and f.traces == 1
    names = {name for _, _, name in pstats.Stats(profiler).stats}  # type: ignore[attr-defined]
    assert "afterwards" in names
