"""docs/ir.md says what is so."""

import doctest
from pathlib import Path

import pytest
from weft.ir import prims as P
from weft.ir.catalogue import BEGIN, END, main, table, update
from weft.ir.prims.base import PRIMITIVES, Kind, Primitive

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ir.md"
COMPLEX_PARTS = ("complex", "real", "imag", "conj")  # evaluated by numpy, never fused


def test_the_table_of_the_page_is_that_of_the_registry():
    shown = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip()
    assert shown == table(), "run: python -m weft.ir.catalogue docs/ir.md"


def test_the_table_has_every_primitive_once():
    names = [line.split("`")[1] for line in table().splitlines()[2:]]
    ours = [n for n, p in PRIMITIVES.items() if p.infer.__module__.startswith("weft.")]
    assert sorted(names) == sorted(ours) and len(names) == len(set(names))


def test_the_examples_of_the_page_run():
    result = doctest.testfile(str(PAGE), module_relative=False)
    assert result.attempted > 5 and result.failed == 0


def test_update_writes_the_table_once(tmp_path, capsys):
    page = tmp_path / "ir.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert update(page) is True
    assert page.read_text() == f"before\n{BEGIN}\n{table()}\n{END}\nafter\n"
    assert main([page]) == 0 and "unchanged" in capsys.readouterr().out


def test_update_wants_its_marks(tmp_path):
    page = tmp_path / "other.md"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        update(page)


def test_every_primitive_is_exported_and_has_its_rules():
    for name, prim in PRIMITIVES.items():
        if prim.infer.__module__.startswith("weft."):
            assert getattr(P, f"{name}_p") is prim
            assert isinstance(prim, Primitive) and callable(prim.infer) and callable(prim.eval)
            assert prim.nondifferentiable or prim.vjp is not None, name
            if prim.kind is Kind.MAP and name not in COMPLEX_PARTS:
                assert prim.scalar is not None, name
            assert prim.dtypes, name
            assert set(prim.needs) <= set("0123456789o*"), name
