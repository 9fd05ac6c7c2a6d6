"""What a function can read besides its arguments: a walk over its closures, globals, defaults, and the
objects, containers and modules behind them.

The walk is static: it follows the names that occur in the code of the function and of every user function it
can reach. What it finds is a list of *places* (a cell, a dictionary entry, the contents of a container) with
the value each held. The same list is compared after the trace (did the function change something?) and at
later calls (does the compiled code still apply?). Values that weft cannot follow (open files, iterators,
random generators) make the environment *opaque*, with the reason.
"""

from __future__ import annotations

import enum
import functools
import re
import sys
import types
from collections import deque, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
from weft.capture.state import TracedScalar
from weft.capture.userland import kind_of, kind_of_file
from weft.ir.graph import Graph, Value
from weft.ir.record import record
from weft.ir.types import Device, DType, TensorType

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "nothing"})()
MAX_PLACES = 60_000
SMALL_ARRAY = 64

_PLAIN = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    type(Ellipsis),
    type(NotImplemented),
    slice,
    range,
)
_FIXED = (
    *_PLAIN,
    DType,
    Device,
    TensorType,
    np.dtype,
    np.generic,
    re.Pattern,
    enum.Enum,
    Graph,
    Value,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    types.GetSetDescriptorType,
    np.ufunc,
    types.MemberDescriptorType,
    types.GenericAlias,
    types.UnionType,
    types.CodeType,
    type(vars(namedtuple("Any", "x"))["x"]),
    TracedScalar,
)
_EVERYTHING = frozenset(
    {"__dict__", "vars", "getattr", "setattr", "delattr", "attrgetter", "asdict", "replace"}
)
_VALUE_MODULES = frozenset(
    {"decimal", "datetime", "fractions", "uuid", "pathlib", "zoneinfo"}
)  # immutable objects
_PROBES = frozenset(
    {"hasattr", "getattr", "AttributeError"}
)  # code that tells a missing attribute from one that is
# attributes of a weft module or optimizer that only weft's own code touches, and says so by the mutation
# epoch
EPOCH, CALL, TRACE = "epoch", "call", "trace"


@record(slots=True, eq=False)
class Place:
    """One thing that was read: ``holder[key]`` of a dictionary, the content of a cell, or a whole container.

    ``kind``: "item" (dictionary entry, MISSING when absent), "cell", "list" (list, deque), "dict", "set",
    "array" (a small one), "attr" (a slot), "size" (of a ``__dict__``). ``when``: checked at each call,
    only when the mutation epoch has moved, or only after the trace.
    """

    kind: str
    holder: Any
    key: Any
    value: Any
    path: str
    when: str = CALL
    lazily_made: bool = (
        False  # state that weft itself makes on first use (of optimizers): may change in a trace
    )

    def read(self) -> Any:
        """The present value, in the form that ``value`` has."""
        return _READERS[self.kind](self)


def _read_cell(p: Place) -> Any:
    try:
        return p.holder.cell_contents
    except ValueError:
        return MISSING


def _read_size(p: Place) -> Any:
    return len(p.holder)


_READERS: dict[str, Callable[[Place], Any]] = {
    "item": lambda p: p.holder.get(p.key, MISSING),
    "cell": _read_cell,
    "list": lambda p: list(p.holder),
    "dict": lambda p: list(p.holder.items()),
    "set": lambda p: set(p.holder),
    "array": lambda p: p.holder.copy(),
    "size": _read_size,
    "keys": lambda p: list(p.holder),
    "attr": lambda p: getattr(p.holder, p.key, MISSING),
}


def same(a: Any, b: Any) -> bool:
    """Identical, or equal values of one plain type (NaN equals NaN, 0.0 differs from -0.0)."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float):
        return repr(a) == repr(b)
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (set, frozenset)):
        return a == b
    if isinstance(a, types.MethodType):
        return a.__self__ is b.__self__ and a.__func__ is b.__func__
    return isinstance(a, (*_PLAIN, np.generic, np.dtype)) and bool(a == b)


class Environment:
    """The places that a function and its arguments lead to.

    ``tensors`` maps the id of each tensor found to (tensor, path); ``codes`` are the user's code objects
    that may run; ``opaque`` lists what cannot be followed.
    """

    def __init__(self, is_tensor: Callable[[Any], bool]) -> None:
        self.places: list[Place] = []
        self.tensors: dict[int, tuple[Any, str]] = {}
        self.codes: dict[int, types.CodeType] = {}
        self.opaque: list[str] = []
        self.names: set[str] = set()
        self.everything = False
        self.impure: dict[int, str] = {}
        self.keep: list[Any] = []
        self._is_tensor = is_tensor
        self._lazily: set[int] = set()
        self._seen: set[int] = set()
        self._todo: deque[tuple[Any, str, str]] = deque()
        self._instances: list[tuple[Any, str, str]] = []
        self._open: list[tuple[Any, str]] = []  # objects that may get more attributes
        self._done: set[tuple[int, str]] = set()

    # -- the walk -------------------------------------------------------------------------------------------
    def add(self, obj: Any, path: str) -> None:
        """Walk from ``obj``; call :meth:`finish` when all roots are in."""
        self._todo.append((obj, path, CALL))

    def finish(self) -> Environment:
        """Run the walk to its end: attributes are read for the names in the code found so far, until no more
        come."""
        while True:
            self._drain()
            names = len(self.names)
            for obj, path, when in list(self._instances):
                self._attributes(obj, path, when)
            if not self._todo and names == len(self.names):
                break
        when = CALL if self.names & _PROBES else TRACE
        for obj, path in self._open:
            size = len(obj.__dict__)
            self.places.append(Place("size", obj.__dict__, None, size, f"the attributes of {path}", when))
        self._open.clear()
        return self

    def _drain(self) -> None:
        while self._todo:
            if len(self.places) > MAX_PLACES:
                self.opaque.append("more state than can be followed")
                self._todo.clear()
                return
            self._visit(*self._todo.popleft())

    def _visit(self, obj: Any, path: str, when: str) -> None:
        if (isinstance(obj, _FIXED) and type(obj) is not TracedScalar) or id(obj) in self._seen:
            return
        self._seen.add(id(obj))
        self.keep.append(obj)
        if self._is_tensor(obj):
            self.tensors[id(obj)] = (obj, path)
            self._subclass_attributes(obj, path)
            return
        for types_, visit in _VISITORS:
            if isinstance(obj, types_):
                visit(self, obj, path, when)
                return
        self._instance(obj, path, when)

    def _subclass_attributes(self, obj: Any, path: str) -> None:
        """Python attributes that a user hung on a tensor."""
        own = {k: v for k, v in vars(obj).items() if not k.startswith("_") and k != "name"}
        for key in own:
            self._place("item", obj.__dict__, key, own[key], f"{path}.{key}", CALL)

    def _place(self, kind: str, holder: Any, key: Any, value: Any, path: str, when: str) -> None:
        self.places.append(Place(kind, holder, key, value, path, when))
        if kind in ("item", "cell", "attr") and value is not MISSING:
            self._todo.append((value, path, when))

    # -- functions and classes ------------------------------------------------------------------------------
    def function(self, fn: types.FunctionType, path: str, when: str) -> None:
        if fn.__dict__:
            for key in list(fn.__dict__):
                if key in ("__wrapped__",):
                    self._todo.append((fn.__dict__[key], path, CALL))
        if kind_of(fn.__code__) != "user" and not _follows(fn):
            return
        for i, value in enumerate(fn.__defaults__ or ()):
            self._todo.append((value, f"default {i} of {fn.__name__}", CALL))
        for key, value in (fn.__kwdefaults__ or {}).items():
            self._todo.append((value, f"default {key} of {fn.__name__}", CALL))
        for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=False):
            if id(cell) not in self._seen:
                self._seen.add(id(cell))
                self.keep.append(cell)
                p = Place("cell", cell, None, None, f"closure variable `{name}`")
                self._place("cell", cell, None, p.read(), p.path, CALL)
        self._code(fn.__code__, fn.__globals__)

    def _code(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        if id(code) in self.codes:
            return
        self.codes[id(code)] = code
        names = set(code.co_names) | set(code.co_freevars) | set(code.co_varnames)
        self.names |= names
        self.everything = self.everything or bool(names & _EVERYTHING)
        for name in loaded_globals(code):
            key = (id(scope), name)
            if key in self._done:
                continue
            self._done.add(key)
            if name in scope:
                self._place("item", scope, name, scope[name], f"global `{name}`", CALL)
                self._note_random(code, scope[name], names)
            else:  # a builtin, or a global that the code makes
                self._place("item", scope, name, MISSING, f"global `{name}`", TRACE)
        for const in code.co_consts:
            if isinstance(const, types.CodeType):
                self._code(const, scope)

    def _note_random(self, code: types.CodeType, value: Any, names: set[str]) -> None:
        """What leaves no trace that a profiler sees is looked for by name: numpy's random functions,
        os.environ."""
        if isinstance(value, types.ModuleType) and value.__name__ == "os" and names & {"environ", "getenv"}:
            self.impure[id(code)] = "reads os.environ"
        if (
            isinstance(value, types.ModuleType)
            and (
                value.__name__.startswith("numpy.random") or (value.__name__ == "numpy" and "random" in names)
            )
        ) or getattr(type(getattr(value, "__self__", None)), "__module__", "").startswith("numpy.random"):
            self.impure[id(code)] = "uses numpy.random"

    def method(self, m: types.MethodType, path: str, when: str) -> None:
        self._todo.append((m.__self__, path, when))
        self._todo.append((m.__func__, path, when))

    def builtin(self, fn: types.BuiltinFunctionType, path: str, when: str) -> None:
        """A method of a C object that was taken off it (``append = items.append``) leads to the object."""
        if fn.__self__ is not None and not isinstance(fn.__self__, types.ModuleType):
            self._todo.append((fn.__self__, path, when))

    def partial(self, p: functools.partial[Any], path: str, when: str) -> None:
        for x in (p.func, p.args, p.keywords):
            self._todo.append((x, path, when))

    def wrapper(self, w: Any, path: str, when: str) -> None:
        for f in (getattr(w, n, None) for n in ("fget", "fset", "__func__", "func", "__wrapped__")):
            if f is not None:
                self._todo.append((f, path, when))

    def klass(self, cls: type, path: str, when: str) -> None:
        """The functions and data attributes of a user's class, and of its bases."""
        for base in cls.__mro__:
            if base is object or not _is_user_class(base):
                continue
            if base is not cls:
                self._todo.append((base, base.__name__, when))
                continue
            self._instances.append((base, base.__name__, when))

    def module(self, m: types.ModuleType, path: str, when: str) -> None:
        file = getattr(m, "__file__", None)
        if file is not None and kind_of_file(file) == "user":
            self._instances.append((m, path, when))

    # -- containers -----------------------------------------------------------------------------------------
    def sequence(self, obj: Any, path: str, when: str) -> None:
        if not isinstance(obj, (tuple, frozenset)):
            self._place("list", obj, None, list(obj), path, when)
        for i, x in enumerate(obj):
            self._todo.append((x, f"{path}[{i}]", when))

    def mapping(self, obj: dict[Any, Any], path: str, when: str) -> None:
        self._place("dict", obj, None, list(obj.items()), path, when)
        for k, x in obj.items():
            self._todo.append((k, path, when))
            self._todo.append((x, f"{path}[{k!r}]" if isinstance(k, (str, int)) else f"{path}[...]", when))

    def set_(self, obj: set[Any], path: str, when: str) -> None:
        self._place("set", obj, None, set(obj), path, when)
        for x in obj:
            self._todo.append((x, path, when))

    def array(self, obj: np.ndarray, path: str, when: str) -> None:
        if obj.size > SMALL_ARRAY or obj.dtype == object:
            self.opaque.append(f"the numpy array in {path}, whose contents may change between calls")
        else:
            self._place("array", obj, None, obj.copy(), path, when)

    # -- instances ------------------------------------------------------------------------------------------
    def _instance(self, obj: Any, path: str, when: str) -> None:
        cls = type(obj)
        self._todo.append((cls, cls.__name__, when))
        if isinstance(obj, (dict, list, set, deque)):  # subclasses
            base = next(visit for types_, visit in _CONTAINERS if isinstance(obj, types_))
            base(self, obj, path, when)
        elif cls.__module__ == "logging":  # whether it says anything; if it does, the watch sees that
            for name in ("level", "disabled"):
                self._place("item", vars(obj), name, vars(obj).get(name, MISSING), f"{path}.{name}", CALL)
            return
        elif cls.__module__ in _VALUE_MODULES:
            return
        elif _has_weft_base(cls):
            self._weft_object(obj, path)
            return
        elif not _is_user_class(cls) and not _is_plain_python(cls) and cls is not types.SimpleNamespace:
            self.opaque.append(f"{path}, an object of type {cls.__module__}.{cls.__qualname__}")
            return
        if hasattr(obj, "__dict__") or _slots(cls):
            self._instances.append((obj, path, when))
        if hasattr(obj, "__dict__"):
            self._open.append((obj, path))

    def _weft_object(self, obj: Any, path: str) -> None:
        """Every attribute of a module, an optimizer or a subclass: weft's own code may read any of them.

        The attributes of modules are checked when the mutation epoch has moved, plain containers in them
        always.
        """
        follow = getattr(type(obj), "_weft_follow", None)
        if follow is not None:  # a compiled function: what it compiles matters, not what it has compiled
            self._todo.append((follow(obj), path, CALL))
            return
        module = hasattr(type(obj), "register_parameter")
        self._todo.append((type(obj), type(obj).__name__, CALL))
        for key, value in list(getattr(obj, "__dict__", {}).items()):
            if key == "_weft_compiled":
                continue
            internal = module and key.startswith("_")
            self.places.append(
                Place("item", obj.__dict__, key, value, f"{path}.{key}", EPOCH if module else CALL)
            )
            if key == "state" and not module:
                self._lazily_made(value, f"{path}.{key}")
            else:
                self._todo.append((value, f"{path}.{key}", EPOCH if internal else CALL))
        if hasattr(obj, "__dict__"):
            self._open.append((obj, path))
        for name in _slots(type(obj)):
            if name != "__weakref__" and not (name.startswith("__") and name.endswith("__")):
                self._place("attr", obj, name, getattr(obj, name, MISSING), f"{path}.{name}", CALL)

    def _lazily_made(self, state: Any, path: str) -> None:
        """The state of an optimizer, which its first step makes: nested dictionaries of tensors."""
        if not isinstance(state, dict) or id(state) in self._seen:
            return
        self._seen.add(id(state))
        self.keep.append(state)
        self.places.append(Place("dict", state, None, list(state.items()), path, CALL, True))
        for key, value in state.items():
            inner = f"{path}[...]" if self._is_tensor(key) else f"{path}[{key!r}]"
            if isinstance(value, dict):
                self._lazily_made(value, inner)
            else:
                self._todo.append((value, inner, CALL))

    def _attributes(self, obj: Any, path: str, when: str) -> None:
        """The attributes of an instance, class or module whose names occur in the code found so far."""
        d = obj.__dict__ if hasattr(obj, "__dict__") else {}
        names = (
            set(d)
            if self.everything and not isinstance(obj, (type, types.ModuleType))
            else self.names & set(d)
        )
        if isinstance(obj, type):
            everything = _has_weft_base(obj)  # weft's own code calls its methods
            names |= {n for n in d if (everything or n.startswith("__")) and _is_method(d[n])}
        else:
            names |= {n for n in self.names if n not in d and _data_on_class(type(obj), n)}
        for name in names:
            if (id(obj), name) in self._done:
                continue
            self._done.add((id(obj), name))
            self._place("item", d, name, d.get(name, MISSING), f"{path}.{name}", when)
        for name in _slots(type(obj)):
            if (self.everything or name in self.names) and (id(obj), name) not in self._done:
                self._done.add((id(obj), name))
                self._place("attr", obj, name, getattr(obj, name, MISSING), f"{path}.{name}", when)


def loaded_globals(code: types.CodeType) -> set[str]:
    """Names that the code loads as globals, stores or deletes."""
    import opcode

    found: set[str] = set()
    wanted = {opcode.opmap[n]: n for n in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL", "DELETE_GLOBAL")}
    shift = 1 if sys.version_info >= (3, 11) else 0
    extended = 0
    raw = code.co_code
    for i in range(0, len(raw), 2):
        op, arg = raw[i], raw[i + 1] | extended
        if op == opcode.EXTENDED_ARG:
            extended = arg << 8
            continue
        extended = 0
        name = wanted.get(op)
        if name is not None:
            index = arg >> shift if name == "LOAD_GLOBAL" else arg
            if index < len(code.co_names):
                found.add(code.co_names[index])
    return found


def _follows(fn: types.FunctionType) -> bool:
    """Whether to look into a library's wrapper: its closure may hold the user's function
    (functools.wraps)."""
    return bool(fn.__closure__) and kind_of(fn.__code__) == "library"


def _is_user_class(cls: type) -> bool:
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if module is None or file is None:
        return cls.__module__ == "__main__" or module is None
    return kind_of_file(file) == "user"


def _has_weft_base(cls: type) -> bool:
    return any(b.__module__ == "weft" or b.__module__.startswith("weft.") for b in cls.__mro__)


def _is_method(x: Any) -> bool:
    return isinstance(x, (types.FunctionType, property, staticmethod, classmethod))


def _is_plain_python(cls: type) -> bool:
    """A class written in Python all the way up: its state is in its ``__dict__`` or its slots."""
    return all(b is object or b.__flags__ & (1 << 9) for b in cls.__mro__)  # Py_TPFLAGS_HEAPTYPE


def _slots(cls: type) -> list[str]:
    found: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        found += [slots] if isinstance(slots, str) else list(slots)
    return [name for name in found if name not in ("__dict__", "__weakref__")]


def _data_on_class(cls: type, name: str) -> bool:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base is not object and not callable(base.__dict__[name])
    return False


_CONTAINERS: list[tuple[Any, Any]] = [
    ((list, deque), Environment.sequence),
    (dict, Environment.mapping),
    (set, Environment.set_),
]


class _Exact(type):
    """``isinstance`` that takes only the class itself, so that subclasses are walked as instances."""

    classes: tuple[type, ...] = ()

    def __instancecheck__(cls, obj: Any) -> bool:
        return type(obj) in cls.classes


def _exact(*classes: type) -> Any:
    return _Exact("Exact", (), {"classes": classes})


class _NamedTuple(type):
    def __instancecheck__(cls, obj: Any) -> bool:
        return isinstance(obj, (tuple, frozenset))


_VISITORS: list[tuple[Any, Any]] = [
    (types.FunctionType, Environment.function),
    (types.MethodType, Environment.method),
    (types.BuiltinFunctionType, Environment.builtin),
    (functools.partial, Environment.partial),
    ((property, staticmethod, classmethod, functools.cached_property), Environment.wrapper),
    (type(functools.lru_cache(len)), Environment.wrapper),
    (type, Environment.klass),
    (types.ModuleType, Environment.module),
    (_exact(list, deque), Environment.sequence),
    (_NamedTuple("AnyTuple", (), {}), Environment.sequence),
    (_exact(dict), Environment.mapping),
    (types.MappingProxyType, Environment.mapping),
    (_exact(set), Environment.set_),
    (np.ndarray, Environment.array),
]
