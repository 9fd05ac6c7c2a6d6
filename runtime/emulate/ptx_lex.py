"""Tokens of PTX text."""

from __future__ import annotations

import re
from typing import NamedTuple

from weft.runtime.emulate.ptx_ast import PtxSyntaxError

_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(
    r"""//.*|\#.*
    |[A-Za-z_$%.](?:[\w$.]|::(?=\w))*
    |0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
    |\d+\.\d*(?:[eE][+-]?\d+)?|\d+U?
    |"(?:[^"\\]|\\.)*"
    |\S""",
    re.VERBOSE,
)
_MARKS = frozenset("-+@!{}()[],;:=|<>*")
_NAMES = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_$%.")
_DIGITS = frozenset("0123456789")


class Tokens(NamedTuple):
    """Texts, kinds ("name", "number", "string", "mark", and one "end") and lines."""

    texts: list[str]
    kinds: list[str]
    lines: list[int]


def tokens(text: str) -> Tokens:
    """All tokens but white space and comments. PtxSyntaxError for a character that starts none."""
    if "/*" in text:
        text = _COMMENT.sub(lambda match: "\n" * match.group().count("\n"), text)
    found = Tokens([], [], [])
    texts, kinds, lines = found
    line = 0
    for line, source in enumerate(text.rstrip("\0").split("\n"), 1):
        for word in _TOKEN.findall(source):
            first = word[0]
            if first in _NAMES:
                kind = "name"
            elif first in _DIGITS:
                kind = "number"
            elif first in _MARKS:
                kind = "mark"
            elif word.startswith("//") or first == "#":
                continue
            elif first == '"' and len(word) > 1:
                kind = "string"
            else:
                raise PtxSyntaxError(line, f"unexpected character {word!r}")
            texts.append(word)
            kinds.append(kind)
            lines.append(line)
    texts.append("")
    kinds.append("end")
    lines.append(line)
    return found
