"""Records against the dataclasses that they stand for."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import ClassVar

import pytest
from weft.ir.record import field, fields, record, replace


@record
class Plain:
    name: str
    sizes: list[int] = field(default_factory=list)
    scale: float = 1.0
    count: ClassVar[int] = 0

    def total(self) -> float:
        return self.scale * sum(self.sizes)


@record(frozen=True, slots=True)
class Frozen:
    x: int
    y: tuple[int, ...] = ()


@record(frozen=True, eq=False)
class Named:
    x: int

    def __repr__(self) -> str:
        return "named"


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    x: int
    y: tuple[int, ...] = ()


def test_defaults_and_methods() -> None:
    a, b = Plain("a", [1, 2], scale=2.0), Plain(name="b")
    b.sizes.append(5)
    assert (a.total(), b.sizes, Plain("c").sizes, Plain.count) == (6.0, [5], [], 0)
    assert fields(a) == fields(Plain) == ("name", "sizes", "scale")
    assert repr(b) == "Plain(name='b', sizes=[5], scale=1.0)"


@pytest.mark.parametrize("args", [(), (1, 2, 3, 4)])
def test_wrong_arguments_are_refused_by_name(args: tuple[int, ...]) -> None:
    with pytest.raises(TypeError, match=r"Plain\.__init__"):
        Plain(*args)
    with pytest.raises(TypeError, match="unexpected keyword argument 'z'"):
        Frozen(1, z=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("args", [(1,), (1, (2, 3)), (0, ())])
def test_frozen_records_are_what_dataclasses_are(args: tuple) -> None:
    a, twin = Frozen(*args), Twin(*args)
    assert repr(a) == repr(twin).replace("Twin", "Frozen")
    assert hash(a) == hash(twin)
    assert a == Frozen(*args) and a != twin and a != replace(a, x=9)
    assert pickle.loads(pickle.dumps(a)) == copy.deepcopy(a) == a
    assert not hasattr(a, "__dict__")
    match a:
        case Frozen(x, y):
            assert (x, y or ()) == (a.x, a.y)


def test_frozen_records_refuse_assignment() -> None:
    a = Frozen(1)
    with pytest.raises(AttributeError, match="cannot assign to field 'x': Frozen is frozen"):
        a.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del a.x
    assert a.x == 1


def test_equality() -> None:
    assert Plain("a") == Plain("a") != Plain("a", [1])
    with pytest.raises(TypeError, match="unhashable"):
        hash(Plain("a"))
    a, b = Named(1), Named(1)
    assert a != b and len({a, b}) == 2 and repr(a) == "named"


def test_init_is_written_for_classes_that_have_many_instances() -> None:
    @record
    class Late:
        x: int
        y: list[int] = field(default_factory=list)
        z: int = 5

    before, made = Late.__init__, []
    for k in range(20):
        made.append(Late(k) if k % 2 else Late(x=k, z=7))
        assert (Late.__init__ is before) == (k < 8)
    assert [a.x for a in made] == list(range(20))
    assert [a.z for a in made] == [7, 5] * 10
    assert len({id(a.y) for a in made}) == 20


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [((1, 2, 3), {}, "takes from"), ((), {}, "missing 1 required"), ((1,), {"x": 2}, "multiple values"),
     ((), {"y": 1}, "missing 1 required"), ((1,), {"q": 2}, "unexpected keyword")],
)  # fmt: skip
def test_what_both_ways_to_make_an_instance_refuse(many: bool, args: tuple, kwargs: dict, error: str) -> None:
    @record
    class Pair:
        x: int
        y: int = 0

    if many:
        for k in range(20):
            assert Pair(k).x == k
    with pytest.raises(TypeError, match=error):
        Pair(*args, **kwargs)
    assert (Pair(1).x, Pair(1, y=2).y) == (1, 2)
