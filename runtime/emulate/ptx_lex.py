"""Tokens of PTX text."""

from __future__ import annotations

import re
from typing import NamedTuple

from weft.runtime.emulate.ptx_ast import PtxSyntaxError

_TOKEN = re.compile(
    r"""(?P<skip>[ \t\r\f]+|//[^\n]*|\#[^\n]*)
    |(?P<comment>/\*.*?\*/)
    |(?P<newline>\n)
    |(?P<string>"(?:[^"\\]|\\.)*")
    |(?P<number>0[fF][0-9a-fA-F]{8}\b|0[dD][0-9a-fA-F]{16}\b|0[xX][0-9a-fA-F]+U?|0[bB][01]+U?
        |\d+\.\d*(?:[eE][+-]?\d+)?|\d+U?)
    |(?P<name>[A-Za-z_$%.](?:[\w$.]|::(?=\w))*)
    |(?P<mark>[-+@!{}()\[\],;:=|<>*])""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    kind: str
    text: str
    line: int


def tokens(text: str) -> list[Token]:
    """All tokens but white space and comments. PtxSyntaxError for a character that starts none."""
    found: list[Token] = []
    line, at = 1, 0
    for match in _TOKEN.finditer(text):
        if match.start() != at:
            break
        at = match.end()
        kind = match.lastgroup or ""
        if kind == "newline":
            line += 1
        elif kind == "comment":
            line += match.group().count("\n")
        elif kind != "skip":
            found.append(Token(kind, match.group(), line))
    if at != len(text) and text[at:].strip("\0"):
        raise PtxSyntaxError(line, f"unexpected character {text[at]!r}")
    found.append(Token("end", "", line))
    return found
