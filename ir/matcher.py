"""Expected lines for texts of IR, after LLVM's FileCheck: what tests of passes are written in.

An expectation is a text of directives, one per line:

    CHECK: pattern        some line after the last matched one contains it
    CHECK-NEXT: pattern   the very next line contains it
    CHECK-NOT: pattern    no line between the neighbouring matches contains it
    CHECK-COUNT-3: pattern   exactly 3 lines of the rest contain it (the position does not move)

A pattern is literal text, but that runs of blanks are alike, ``{{...}}`` holds a regular expression, and
``[[X]]`` stands for a word: any where X is new, the same again afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_DIRECTIVE = re.compile(r"\s*CHECK(?:-(NEXT|NOT|COUNT-(\d+)))?:\s*(.*?)\s*$")
_PART = re.compile(r"\{\{(.*?)\}\}|\[\[(\w+)\]\]|(\s+)")


class Mismatch(AssertionError):
    """The text is not as expected; the message shows the directive and the text."""


def match(text: str, expected: str) -> dict[str, str]:
    """Match ``text`` against ``expected`` and return what the ``[[X]]`` stand for.

    Raises Mismatch where the text differs, ValueError where ``expected`` has a line that is no directive.

    >>> match("%1 = exp(%0)\\n%2 = mul(%1, %1)", "CHECK: %[[E]] = exp\\nCHECK-NEXT: mul(%[[E]], %[[E]])")
    {'E': '1'}
    """
    lines, at, known, forbidden = text.split("\n"), 0, {}, []
    for kind, count, pattern in _directives(expected):
        if kind == "NOT":
            forbidden.append(pattern)
        elif count is not None:
            _expect_count(lines, at, pattern, known, count)
        else:
            found = _find(lines, at, pattern, known, next_only=kind == "NEXT")
            _expect_none(lines, at, found, forbidden, known)
            at, forbidden = found + 1, []
    _expect_none(lines, at, len(lines), forbidden, known)
    return known


def _directives(expected: str) -> Iterator[tuple[str | None, int | None, str]]:
    for line in expected.split("\n"):
        if line.strip():
            m = _DIRECTIVE.fullmatch(line)
            if m is None:
                raise ValueError(f"not a directive: {line.strip()!r}")
            yield m[1], None if m[2] is None else int(m[2]), m[3]


def _compile(pattern: str, known: dict[str, str]) -> re.Pattern[str]:
    out, at, new = [], 0, set()
    for m in _PART.finditer(pattern):
        out.append(re.escape(pattern[at : m.start()]))
        regex, name, blanks = m.groups()
        if blanks is not None:
            out.append(r"\s+")
        elif regex is not None:
            out.append(f"(?:{regex})")
        elif name in known:
            out.append(re.escape(known[name]) + r"\b")
        else:
            out.append(f"(?P={name})" if name in new else rf"(?P<{name}>\w+)")
            new.add(name)
        at = m.end()
    return re.compile("".join(out) + re.escape(pattern[at:]))


def _find(lines: list[str], at: int, pattern: str, known: dict[str, str], *, next_only: bool) -> int:
    regex = _compile(pattern, known)
    for i in range(at, min(at + 1, len(lines)) if next_only else len(lines)):
        m = regex.search(lines[i])
        if m:
            known.update(m.groupdict())
            return i
    where = f"on line {at + 1}" if next_only else f"from line {at + 1} on"
    raise Mismatch(f"expected {where}: {pattern}\n{_show(lines, at)}")


def _expect_none(lines: list[str], begin: int, end: int, patterns: list[str], known: dict[str, str]) -> None:
    for pattern in patterns:
        regex = _compile(pattern, known)
        for i in range(begin, end):
            if regex.search(lines[i]):
                raise Mismatch(f"line {i + 1} must not contain: {pattern}\n{_show(lines, i)}")


def _expect_count(lines: list[str], at: int, pattern: str, known: dict[str, str], count: int) -> None:
    regex = _compile(pattern, known)
    found = sum(1 for line in lines[at:] if regex.search(line))
    if found != count:
        raise Mismatch(f"expected {count} lines but {found} contain: {pattern}\n{_show(lines, at)}")


def _show(lines: list[str], at: int) -> str:
    return "\n".join(f"{'->' if i == at else '  '} {i + 1:3} {line}" for i, line in enumerate(lines))
