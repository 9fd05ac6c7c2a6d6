"""Classes that are their fields: what ``dataclasses`` makes of a class, at a twentieth of its time.

A start defines some seventy such classes, and most of it uses few. ``dataclass`` writes and compiles four or
five methods for each; :func:`record` compiles ``__init__`` alone, for classes that have many instances, and
has the other methods read the fields by ``operator.attrgetter``.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload

__all__ = ["field", "fields", "record", "replace"]

C = TypeVar("C", bound=type)
R = TypeVar("R")


class _Made:
    """The default of a field that is made anew for each instance."""

    __slots__ = ("make",)

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make


def field(*, default_factory: Callable[[], R]) -> R:
    """The default of a field that every instance has one of its own of.

    >>> @record
    ... class Node:
    ...     children: list = field(default_factory=list)
    >>> Node().children is Node().children
    False
    """
    return _Made(default_factory)  # type: ignore[return-value]


@overload
def record(cls: C, /) -> C: ...
@overload
def record(*, frozen: bool = False, slots: bool = False, eq: bool = True) -> Callable[[C], C]: ...
@dataclass_transform(field_specifiers=(field,))
def record(cls: Any = None, /, *, frozen: bool = False, slots: bool = False, eq: bool = True) -> Any:
    """Give a class with annotated fields ``__init__``, ``__repr__``, ``__eq__`` and ``__match_args__``.

    ``frozen`` records cannot be assigned to (AttributeError) and are hashed by their fields; ``slots`` takes
    the ``__dict__`` away; without ``eq`` records are equal to themselves alone. Methods that the class
    defines stay. A record may extend another one.

    >>> @record(frozen=True)
    ... class Point:
    ...     x: int
    ...     y: int = 0
    >>> Point(1), Point(1, 2) == Point(x=1, y=2)
    (Point(x=1, y=0), True)
    """
    if cls is None:
        return lambda cls: _record(cls, frozen, slots, eq)
    return _record(cls, frozen, slots, eq)


def fields(record: Any) -> tuple[str, ...]:
    """The names of the fields of a record or of its class, in order."""
    return record.__match_args__


def replace(record: R, **changes: Any) -> R:
    """A copy of a record with other values in some of its fields. TypeError for what is no field.

    >>> from weft.ir.types import CPU
    >>> replace(CPU, index=1)
    device(type='cpu', index=1)
    """
    return type(record)(**({name: getattr(record, name) for name in fields(record)} | changes))


def _record(cls: type, frozen: bool, slots: bool, eq: bool) -> type:
    types: dict[str, Any] = getattr(cls, "__annotations__", {})
    names = tuple(n for n, t in types.items() if not str(t).startswith(("ClassVar", "typing.ClassVar")))
    defaults = {n: cls.__dict__[n] for n in names if n in cls.__dict__}
    if slots:
        cls = _with_slots(cls, names)
    methods = _methods(names, attrgetter(*names) if names else lambda _: (), frozen, slots, eq)
    methods |= {"__init__": _first_init(cls, defaults, frozen), "__match_args__": names}
    for name, method in methods.items():
        if name not in cls.__dict__:
            setattr(cls, name, method)
    return cls


def _with_slots(cls: type, names: tuple[str, ...]) -> type:
    """The class made again without a ``__dict__``."""
    body = {n: v for n, v in cls.__dict__.items() if n not in (*names, "__dict__", "__weakref__")}
    return type(cls)(cls.__name__, cls.__bases__, body | {"__slots__": names})


def _methods(
    names: tuple[str, ...], values: Callable[[Any], Any], frozen: bool, slots: bool, eq: bool
) -> dict[str, Any]:
    def __repr__(self: Any) -> str:
        inner = ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
        return f"{type(self).__qualname__}({inner})"

    def __eq__(self: Any, other: object) -> bool:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    def __reduce__(self: Any) -> tuple[Any, ...]:
        return type(self), tuple(getattr(self, n) for n in names)

    found: dict[str, Any] = {"__repr__": __repr__}
    if eq:
        found |= {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}
    if frozen:
        found |= {"__setattr__": _refuse, "__delattr__": _refuse}
        found |= {"__reduce__": __reduce__} if slots else {}  # what pickle would do by assignment
    return found


def _refuse(self: Any, name: str, value: Any = None) -> None:
    raise AttributeError(f"cannot assign to field {name!r}: {type(self).__qualname__} is frozen")


_FEW = 8  # instances of a class before it is worth an ``__init__`` of its own, which takes 80 us to compile


def _first_init(cls: Any, defaults: dict[str, Any], frozen: bool) -> Callable[..., None]:
    """An ``__init__`` for any fields; it makes way for one that is written for them."""
    left = _FEW

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        left -= 1
        names, put = cls.__match_args__, object.__setattr__
        values = defaults | dict(zip(names, args, strict=False)) | kwargs
        twice = not kwargs.keys().isdisjoint(names[: len(args)])
        if left < 0 or len(values) != len(names) or len(args) > len(names) or twice:
            made = _init(cls, defaults, frozen)
            type.__setattr__(cls, "__init__", made)
            made(self, *args, **kwargs)
            return
        for name in names:
            value = values[name]
            put(self, name, value.make() if type(value) is _Made else value)

    return __init__


def _init(cls: Any, defaults: dict[str, Any], frozen: bool) -> Callable[..., None]:
    heads, lines = ["self"], []
    for n in cls.__match_args__:
        heads.append(f"{n}=_{n}" if n in defaults else n)
        value = f"_{n}.make() if {n} is _{n} else {n}" if isinstance(defaults.get(n), _Made) else n
        lines.append(f"_(self, {n!r}, {value})" if frozen else f"self.{n} = {value}")
    text = f"def __init__({', '.join(heads)}):\n " + "\n ".join(lines or ["pass"])
    scope = {f"_{n}": v for n, v in defaults.items()} | {"_": object.__setattr__}
    exec(compile(text, __file__, "exec"), scope)  # a file of ours: a trace takes it for no code of the user
    made: Any = scope["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    return made
