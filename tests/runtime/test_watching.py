"""The profile hook that leaves out what is known not to matter."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from weft.runtime import callpath, watching


def inner(x: list[int]) -> int:
    return len(x)


def outer(x: list[int]) -> int:
    return inner(x) + max(x)


def events(fn: Callable[..., Any], *args: Any) -> Counter[tuple[str, str]]:
    """(code, what it called or "call") of the events that reach Python while ``fn`` runs."""
    seen: Counter[tuple[str, str]] = Counter()

    def note(frame: Any, event: str, arg: Any) -> None:
        if event in ("call", "c_call"):
            seen[frame.f_code.co_name, getattr(arg, "__name__", "call")] += 1

    watching.start(note)
    try:
        fn(*args)
    finally:
        sys.setprofile(None)
    return seen - Counter({("events", "setprofile"): 1})


def test_calls_of_functions_and_of_c_functions_are_told_of() -> None:
    assert events(outer, [1, 2]) == {
        ("outer", "call"): 1, ("inner", "call"): 1, ("inner", "len"): 1, ("outer", "max"): 1
    }  # fmt: skip


def test_what_is_passed_over_is_told_of_no_more() -> None:
    if callpath.symbols() is None:
        pytest.skip("native calls cannot be used here")

    def hidden(x: list[int]) -> int:
        return inner(x) + len(x)

    assert events(hidden, [1]) == {
        ("hidden", "call"): 1, ("hidden", "len"): 1, ("inner", "call"): 1, ("inner", "len"): 1
    }  # fmt: skip
    watching.pass_over(hidden.__code__)
    watching.pass_over(hidden.__code__)
    assert events(hidden, [1]) == {("inner", "call"): 1, ("inner", "len"): 1}


def test_the_hook_stands_in_for_the_callback_and_what_it_raises_comes_through() -> None:
    def angry(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code is inner.__code__:
            raise ZeroDivisionError("seen")

    watching.start(angry)
    try:
        assert sys.getprofile() is angry
        with pytest.raises(ZeroDivisionError, match="seen"):
            inner([1])
    finally:
        sys.setprofile(None)
    assert inner([1]) == 1


def test_what_runs_unwatched_is_not_told_of_and_what_follows_is() -> None:
    def work(x: list[int]) -> int:
        return watching.unwatched(outer, x) + inner(x)

    seen = events(work, [1, 2])
    assert seen["inner", "call"] == 1 and seen["outer", "max"] == 0


def test_a_profiler_of_somebody_else_is_told_of_what_runs_unwatched() -> None:
    names: list[str] = []
    sys.setprofile(lambda frame, event, arg: names.append(frame.f_code.co_name) if event == "call" else None)
    try:
        watching.unwatched(outer, [1, 2])
    finally:
        sys.setprofile(None)
    assert names.count("inner") == 1


def test_an_error_in_what_runs_unwatched_leaves_the_watch_on() -> None:
    def work(x: list[int]) -> None:
        with pytest.raises(ValueError, match="empty"):
            watching.unwatched(max, x)
        inner(x)

    assert events(work, [])["inner", "call"] == 1
