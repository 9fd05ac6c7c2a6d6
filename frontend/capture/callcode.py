"""The generated function of an entry: checks, call, results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from weft.autograd.grad_mode import mode
from weft.autograd.tape import Saved, edge_of
from weft.capture.backward import BackwardPlan, Joint, Rerun, edges_of
from weft.capture.entry import HELPERS, Miss, clashes
from weft.capture.environment import same
from weft.capture.outputs import OutputWriter, follow, tensor_paths
from weft.capture.recorder import overlap, shares
from weft.capture.signature import NATIVE
from weft.capture.sources import Source, spell
from weft.capture.state import EPOCH
from weft.devices import write
from weft.dtypes import _DefaultDevice, _defaults
from weft.ir.graph import Value
from weft.ir.prims.base import _NUMPY, _current
from weft.runtime.precision import switches
from weft.tensor import Tensor
from weft.views import take_history

CALL_HELPERS: dict[str, Any] = {
    "Tensor": Tensor,
    "ndarray": np.ndarray,
    "new": object.__new__,
    "copyto": write,
    "ascontiguous": np.ascontiguousarray,
    "asarray": np.asarray,
    "clash": shares,
    "clashes": clashes,
    "same": same,
    "mode": mode,
    "defaults": _defaults,
    "default_device": _DefaultDevice,
    "switches": switches,
    "current": _current.get,
    "EAGER": _NUMPY,
    "Saved": Saved,
    "take_history": take_history,
    "Rerun": Rerun,
    "edges_of": edges_of,
}


class CallWriter(OutputWriter):
    """Writes the source of the call function."""

    def _scalar_lines(self) -> list[str]:
        out: list[str] = []
        for n, (owner, key) in enumerate(self.rec.leaves):
            if owner == "argument":
                continue
            kind = type(owner[key]).__name__
            fetch = f"s{n} = {self.code.const(owner, 'O')}[{self.code.const(key, 'k')}]"
            gone = self._miss(f"{key} is no longer there")
            out += ["try:", f"    {fetch}", f"except (LookupError, TypeError): return {gone}"]
            out.append(
                f"if type(s{n}) is not {kind}: return " + self._miss(f"{key} is no longer of type {kind}")
            )
        guards = list(self.rec.log.guards.items())
        if guards:
            out.append("try:")
            for expr, value in guards:
                text = f"{spell(expr, self.rec.labels)} is no longer {value!r}"
                test = (
                    f"{self.number(expr)} is not {value}"
                    if type(value) is bool
                    else (f"not same({self.number(expr)}, {self.code.const(value, 'k')})")
                )
                out.append(f"    if {test}: return {self._miss(text)}")
            out.append(
                f"except ArithmeticError: return {self._miss('a number cannot be computed as in the trace')}"
            )
        return out

    def _array_expression(self, s: Any, donated: bool) -> str:
        if not isinstance(s, Tensor):
            return self.number(s._weft_expr)
        src = self.source(s)
        if src.contiguous or donated or type(s._data) is not np.ndarray:
            return src.array
        return (
            f"ascontiguous({src.array}).reshape({s._data.shape!r})"
            if s._data.ndim == 0
            else f"ascontiguous({src.array})"
        )

    def _source(
        self,
        writes: list[tuple[Source, Value]],
        donate: dict[int, int],
        expression: str,
        backward: BackwardPlan | None,
        split: Joint | None,
    ) -> tuple[str, dict[str, Any]]:
        """The source text of the call function, and the constants it uses."""
        numbers = self._scalar_lines()
        lines = [*self._check_lines(), *self.body, *self._alias_lines(writes), *numbers]
        rerun = "None"
        if split is not None:
            rerun = self._rerun_lines(lines, writes)
        if backward is not None:
            lines.append(f"ins = ({''.join(self.source(t).var + ', ' for t in self.differentiated)})")
            lines.append("edges = edges_of(ins)")
        donated = set(donate.values())
        inputs = [self._array_expression(s, i in donated) for i, s in enumerate(self.seg.sources)]
        lines.append(f"r = run({', '.join(inputs)})")
        lines += self._result_lines(writes, backward, rerun)
        lines.append(f"return {expression}")
        return "\n".join(map(_as_miss, lines)), self._namespace(backward, split)

    def _check_lines(self) -> list[str]:
        """Checks of the interpreter, the arguments, the modes and the environment."""
        grad, inference = self.made.modes
        miss = self._miss(f"grad mode changed from {'on' if grad else 'off'}")
        cast = mode.autocast
        recast = self._miss(f"autocast changed from {cast or 'off'}")
        dtype = _defaults.dtype
        other = self._miss(f"the default dtype changed from {dtype}")
        exact = switches.now
        rounded = self._miss(_precision_change)
        tf32 = f"if switches.now is not {self.code.const(exact, 'tf')}: return {rounded}"
        place = _DefaultDevice.value
        moved = self._miss(f"the default device changed from {place}")
        return [
            f"if current() is not EAGER: return {self._miss('called inside another capture')}",
            *self.code.lines,
            f"if mode.grad is not {grad} or mode.inference is not {inference}: return {miss}",
            f"if mode.autocast is not {self.code.const(cast, 'ac') if cast else None}: return {recast}",
            f"if defaults.dtype is not {self.code.const(dtype, 'dt')}: return {other}",
            f"if default_device.value is not {self.code.const(place, 'D')}: return {moved}",
            *([tf32] if self.on_device else []),
            *self._guard_lines(),
        ]

    def _result_lines(
        self, writes: list[tuple[Source, Value]], backward: BackwardPlan | None, rerun: str
    ) -> list[str]:
        """After the call: results become tensors, tensors that were written get versions and histories,
        views of outputs are made, gradients are set."""
        views = [a[5:] for a in self.after if a.startswith("VIEW ")]
        grads = [a for a in self.after if "._grad = " in a]
        fresh = [a for a in self.after if not a.startswith("VIEW ") and "._grad = " not in a]
        history: list[str] = []
        if backward is not None:
            history.append(f"node = make_node(ins, edges, [{', '.join(self.saved_code)}], {rerun})")
            for i, target in enumerate(self.edge_targets):
                if i < len(self.edge_targets) - self.n_rebased:
                    history += [f"{target}._edge = (node, {i})", f"{target}._rg = True"]
                else:
                    history.append(f"take_history({target}, (node, {i}))")
        return [*self.write_code, *fresh, *self._version_lines(writes), *history, *views, *grads]

    def _namespace(self, backward: BackwardPlan | None, split: Joint | None) -> dict[str, Any]:
        """The globals of the generated functions."""
        space = {
            **HELPERS,
            **CALL_HELPERS,
            **self.code.consts,
            **self.guards.namespace,
            "fn": self.fn,
            "e0": EPOCH[0],
        }
        space |= {f"M_{i}": Miss(r, i) for i, r in enumerate(self.code.reasons)}
        space |= self.guards.written()
        if backward is not None:
            space["make_node"] = backward.node
            space["select"] = self._selector() if split is not None else None
        return space

    def _guard_lines(self) -> list[str]:
        """Identity tests; the slow comparison where one of them fails."""
        tests = ["EPOCH[0] != e0", *self.guards.checks]
        tests += [
            f"{h.name}._data is not {h.array_name} or {h.name}._rg is not {h.tensor._rg}"
            for h in self.guards.hidden.values()
        ]
        lines = ["try:"]
        for i in range(0, len(tests), 40):
            part = " or ".join(tests[i : i + 40])
            lines.append(f"    stale = {part}" if i == 0 else f"    stale = stale or {part}")
        lines += [
            "except (KeyError, ValueError, AttributeError): stale = True",
            "if stale:",
            "    why = refresh()",
            "    if why is not None: return why",
        ]
        return lines

    def _alias_lines(self, writes: list[tuple[Source, Value]]) -> list[str]:
        """Arguments must not share memory with what is written: the trace took them apart."""
        out: list[str] = []
        given = [s for s in self.sources.values() if s.tensor is not None and id(s.tensor) in self.sig.given]
        written = [s for s, _ in writes]
        for g in given:
            others = [w for w in written if w.tensor is not g.tensor]
            hidden = any(w.hidden is not None for w in others)
            explicit = [w for w in others if w.hidden is None]
            reason = self._miss(f"{self._label(g.tensor)} now shares memory with a tensor that is written")
            if hidden:
                out.append(f"if clashes({g.array}, roots, written): return {reason}")
            out += [
                f"if clash({g.array}, {w.array}): return {reason}"
                for w in explicit
                if not overlap(g.tensor, w.tensor)
            ]
        return out

    def _version_lines(self, writes: list[tuple[Source, Value]]) -> list[str]:
        out: list[str] = []
        for s, _ in writes:
            n = max(s.tensor._vc[0] - self.rec.states[id(s.tensor)].version, 1)
            if s.hidden is not None:
                s.hidden.writes = n
            else:
                out.append(f"{s.var}._vc[0] += {n}")
        return [*out, "for t, n in writes: t._vc[0] += n"] if len(out) < len(writes) else out

    def _rerun_lines(self, lines: list[str], writes: list[tuple[Source, Value]]) -> str:
        """What a double backward will need: versions of the inputs, copies of small ones that are written."""
        pre = ", ".join(f"({s.var}, {s.array}.copy())" for s, _ in writes if s.tensor._data.size <= 4096)
        lines.append(f"pre = [{pre}]")
        inputs = ", ".join(self.source(t).var for t in self.differentiated)
        versions = ", ".join(f"{self.source(t).var}._vc[0]" for t in self.differentiated)
        lines.append(f"vers = [{versions}]")
        if self._selector() is None:
            return "None"
        return f"Rerun(fn, args, kwargs, [{inputs}], vers, pre, select)"

    def _selector(self) -> Callable[[Any], list[Tensor]] | None:
        """Finds the differentiable outputs in what another run returns; None where some are inputs."""
        places = {id(t): path for path, t in tensor_paths(self.made.out)}
        tracked = [t for t in self.out_tensors if edge_of(t) is not None]
        if len(tracked) != len(self.edge_targets) or any(id(t) not in places for t in tracked):
            return None
        paths = [places[id(t)] for t in tracked]
        return lambda out: [follow(out, path) for path in paths]


def _precision_change(args: Any, kwargs: Any) -> str:
    return f"the precision of float32 products changed: {switches.now}"


def fast_version(source: str) -> str:
    """Source of ``call``, which leaves to the native code what that checks itself; where the native code
    refuses the arrays it turns to ``full``."""
    lines = [line for line in source.split("\n") if NATIVE not in line]
    lines.insert(_run_line(lines) + 1, "if r is REFUSED: return full(args, kwargs)")
    return _function("call(args, kwargs)", lines)


def full_version(source: str) -> str:
    """Source of ``full``, which checks everything; with ``dry`` it does nothing else."""
    lines = [line.replace(NATIVE, "") for line in source.split("\n")]
    at = _run_line(lines)
    lines[at] = lines[at].replace("r = run(", "r = run_checked(")
    return _function("full(args, kwargs, dry=False)", [*lines[:at], "if dry: return None", *lines[at:]])


def _run_line(lines: list[str]) -> int:
    return next(i for i, line in enumerate(lines) if line.startswith("r = run("))


def _function(head: str, lines: list[str]) -> str:
    return f"def {head}:\n" + "".join(f"    {x}\n" for x in lines)


def _as_miss(line: str) -> str:
    """Failing checks of the arguments return the index of their reason: make that a Miss."""
    head, sep, tail = line.rpartition(": return ")
    return f"{head}: return M_{tail}" if sep and tail.isdigit() else line
