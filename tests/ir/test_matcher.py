"""The matcher of expected lines."""

import pytest
from weft.ir.matcher import Mismatch, match

TEXT = """graph f(%0: f32[3]) {
  %1 = exp(%0): f32[3]
  %2 = mul(%1, %1): f32[3]
  %3 = exp(%2): f32[3]
  return %3
}"""


def test_lines_match_in_order_and_names_are_remembered():
    found = match(TEXT, "CHECK: %[[E]] = exp(%0)\nCHECK-NEXT: mul(%[[E]], %[[E]])\n\nCHECK: return")
    assert found == {"E": "1"}


def test_a_remembered_name_must_be_the_same_again():
    with pytest.raises(Mismatch, match="expected from line 3 on"):
        match(TEXT, "CHECK: %[[E]] = exp\nCHECK: exp(%[[E]])")


def test_a_remembered_name_is_a_whole_word():
    with pytest.raises(Mismatch):
        match("%1 = exp(%0)\n%11 = neg(%10)", "CHECK: %[[A]] = exp\nCHECK: %[[A]] = neg")


def test_a_name_twice_in_one_line():
    assert match(TEXT, "CHECK: mul(%[[A]], %[[A]])") == {"A": "1"}


@pytest.mark.parametrize(
    "expected",
    [
        "CHECK: tanh",
        "CHECK: mul\nCHECK: mul",  # the position moves past a match
        "CHECK: graph\nCHECK-NEXT: mul",
        "CHECK: return\nCHECK: }\nCHECK-NEXT: x",  # past the end
        "CHECK-NOT: mul\nCHECK: return",
        "CHECK-NOT: mul",
        "CHECK: mul\nCHECK-NOT: return",
        "CHECK-COUNT-1: exp",
    ],
)
def test_mismatches(expected):
    with pytest.raises(Mismatch):
        match(TEXT, expected)


@pytest.mark.parametrize(
    "expected",
    [
        "CHECK-COUNT-2: = exp(",
        "CHECK: %2\nCHECK-COUNT-1: = exp(",
        "CHECK: %1 = exp\nCHECK-NOT: exp\nCHECK: mul\nCHECK: exp",  # only what lies between
        "CHECK: %{{[0-9]+}} = mul(%1,   %1)",  # a regular expression; runs of blanks are alike
        "CHECK: f32[3]) {",  # brackets are literal
    ],
)
def test_matches(expected):
    assert match(TEXT, expected) == {}


def test_a_line_that_is_no_directive_is_refused():
    with pytest.raises(ValueError, match="not a directive"):
        match(TEXT, "CHEKC: exp")
