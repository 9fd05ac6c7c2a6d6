"""Which operations share a kernel: groups grown from producers to consumers.

Index-only operations (broadcast, slice, permute ...) and constants are *transparent*: they belong to no
group, and every kernel that reads through them gets a copy. All others are nodes; nodes merge where the
union is one legal nest or one contraction with its epilogue.
"""

from __future__ import annotations

from collections.abc import Iterable

from weft.ir import contraction
from weft.ir.access import access_of
from weft.ir.graph import Graph, Op, Value
from weft.ir.nest import NestPlan, Refused, analyse
from weft.ir.prims.base import Kind
from weft.ir.scalarcost import cost_of
from weft.ir.types import TensorType
from weft.passes.fuse_folds import fold_refusal, follows_folds
from weft.passes.fuse_grow import Growing
from weft.passes.fuse_spread import spread_for_epilogue

LOOP_KINDS = frozenset({Kind.MAP, Kind.REDUCE, Kind.MOVE, Kind.GATHER, Kind.RANDOM, Kind.SOURCE})
SINGLE_FORMS = {
    Kind.SCATTER: "scatter", Kind.SORT: "sort", Kind.SCAN: "cumulative", Kind.WINDOW: "window",
    Kind.ATTENTION: "attention",
}  # fmt: skip
TRANSPARENT_MOVES = frozenset({"broadcast", "reshape", "slice", "permute", "flip"})
PLAIN = "plain"
LARGEST = 160  # operations of one nest
CHEAP = 4.0  # cost per element up to which a value may be computed several times
BETWEEN = "another kernel lies between them"
_TILED_ROWS = 16  # of a product, from which on its kernel has tiles of several rows in any case
_SMALL = 32 << 10  # bytes of weights that stay in the first-level cache
REPEATS = 4  # number of times up to which any value may be


class Node:
    """A group of operations that become one kernel (or one operation that stays as it is: form ``plain``).

    ``bits`` has the numbers of its operations; ``before`` those of everything it depends on; ``nest`` is what
    the last analysis of a loop group found.
    """

    __slots__ = ("before", "bits", "form", "main", "nest", "nests", "ops")

    def __init__(self, form: str, op: Op, number: int, before: int) -> None:
        self.form, self.ops, self.main = form, [op], op
        self.bits, self.before = 1 << number, before
        self.nest: Growing | None = None
        self.nests = 1

    @property
    def number(self) -> int:
        return (self.bits & -self.bits).bit_length() - 1


def describe(op: Op) -> str:
    """An operation as the refusals name it."""
    return f"{op.prim.name} -> {', '.join(str(r.type) for r in op.results)}"


class Grouping:
    """The state of the grouping of one graph."""

    def __init__(self, graph: Graph, target_kind: str = "cpu") -> None:
        self.target_kind = target_kind
        self.graph = graph = _own_scalar_results(graph)
        self.number = {op: i for i, op in enumerate(graph.ops)}
        self.producer = graph.producers()
        self.users = graph.users()
        self.results = set(graph.results)
        self.node: dict[Op, Node] = {}
        self.nodes: dict[Node, None] = {}  # those that have not become part of another
        self.refusals: list[tuple[str, str, str]] = []
        self.transparent = {op for op in graph.ops if is_transparent(op)}
        self.turns = self._turns()
        self._materialise()

    def _turns(self) -> dict[Op, Op]:
        """The permutations that tell convolutions how to store: each belongs to its convolution."""
        found: dict[Op, Op] = {}
        for op in self.graph.ops:
            if op.prim.name != "conv" or form_of(op) != "conv":
                continue
            users = self.users.get(op.result, ())
            turn = contraction.turn_of(self.graph, op) if len(users) == 1 else None
            if turn is not None and turn in self.transparent:
                found[turn] = op
                self.transparent.discard(turn)
        return found

    def _made(self, node: Node) -> Op:
        """The operation whose result the tiles of a contraction are."""
        users = self.users.get(node.main.result, ()) if node.main.results else ()
        return next((op for op in users if op in self.turns), node.main)

    # -- which transparent operations must exist as values

    def _materialise(self) -> None:
        """Results and operands of opaque operations need memory: their makers are nodes."""
        for v in self.graph.results:
            self._need(v)
        for op in self.graph.ops:
            if op in self.transparent or form_of(op) == "loop":
                continue
            if op.prim.kind is Kind.CONTRACT and form_of(op) != PLAIN:
                for k, x in enumerate(op.operands):
                    self._need_prologue(op, x, k)
            elif op.prim.kind is Kind.ATTENTION and form_of(op) != PLAIN:
                for x in op.operands:
                    self._need_strided(x)
            else:
                for x in op.operands[int(self._starts_from_number(op)) :]:
                    self._need(x)

    def _starts_from_number(self, op: Op) -> bool:
        """True for a scatter into equal elements: it fills its result itself."""
        x = self.producer.get(op.operands[0]) if op.prim.kind is Kind.SCATTER else None
        return x is not None and x.prim.name == "full" and form_of(op) == "scatter"

    def _need(self, v: Value) -> None:
        op = self.producer.get(v)
        while op is not None and op.prim.name == "reshape":
            v = op.operands[0]
            op = self.producer.get(v)
        self.transparent.discard(op)  # type: ignore[arg-type]

    def _need_strided(self, v: Value) -> None:
        """``v``, if of rows, may be a strided view of memory; anything else must exist."""
        moves = {r: op for op in self.transparent for r in op.results}
        found = access_of(v, moves)
        if found is None or not found.pure or v.type.ndim < 4:
            self._need(v)

    def _need_prologue(self, contract: Op, v: Value, operand: int) -> None:
        op = self.producer.get(v)
        if contraction.in_panels(self.graph, contract, operand) and v is contract.operands[operand]:
            return  # all of it is a view
        if op in self.transparent and operand == 1 and self._blocked(contract) and v is contract.operands[1]:
            for x in op.operands:
                self._need_prologue(contract, x, operand)
        elif op is None or op not in self.transparent or op.prim.name == "reshape":
            self._need(v)
        elif contraction.prologue_refusal(contract, op, operand) is None:
            for x in op.operands:
                self._need_prologue(contract, x, operand)
        else:
            self.transparent.discard(op)

    def _blocked(self, contract: Op) -> bool:
        """True for a convolution that reads its weights from blocks in memory, through a view of them."""
        if form_of(contract) != "conv":
            return False
        return contraction.blocked_weights(self.graph, contract) is not None

    # -- walking through transparent operations

    def closure(self, values: Iterable[Value], inside: Node | None = None) -> list[Op]:
        """The transparent operations through which ``values`` are reached, up to nodes, parameters and views.

        A reshape of a value from outside ``inside`` (a whole value in memory) is a free view: it ends the
        walk.
        """
        found: dict[Op, None] = {}
        stack = list(values)
        while stack:
            op = self.producer.get(stack.pop())
            if op is None or op not in self.transparent or op in found or self.is_view(op, inside):
                continue
            found[op] = None
            stack += op.operands
        return sorted(found, key=self.number.__getitem__)

    def is_view(self, op: Op, inside: Node | None) -> bool:
        """True for a reshape (of reshapes) of memory that ``inside`` does not make itself."""
        while op.prim.name == "reshape":
            made = self.producer.get(op.operands[0])
            if made is None:
                return True
            if made not in self.transparent:
                return inside is None or self.node.get(made) is not inside
            op = made
        return False

    def sources(self, values: Iterable[Value]) -> list[Node]:
        """The nodes that produce ``values``, seen through transparent operations; latest first."""
        found: dict[Node, None] = {}
        stack, seen = list(values), set()
        while stack:
            op = self.producer.get(stack.pop())
            if op is None or op in seen:
                continue
            seen.add(op)
            if op in self.transparent:
                stack += op.operands
            else:
                found[self.node[op]] = None
        return sorted(found, key=lambda n: -n.bits.bit_length())

    # -- growing

    def run(self) -> None:
        for op in self.graph.ops:
            if op in self.transparent:
                continue
            before = 0
            for n in self.sources(op.operands):
                before |= n.bits | n.before
            node = Node(form_of(op), op, self.number[op], before)
            self.node[op] = node
            self.nodes[node] = None
            if op in self.turns:
                self.merge(self.node[self.turns[op]], node)
                continue
            if node.form == "loop":
                self._join_producers(op)

    def _join_producers(self, op: Op) -> None:
        candidates = self.sources(op.operands)
        candidates.sort(key=lambda n: n.form == "loop")  # an epilogue saves more than a map
        between = self._join_each(op, candidates)
        if between and len(between) < len(candidates):  # what lay between may have joined since
            between = self._join_each(op, between)
        for other in between:
            self.refusals.append((describe(self._last(other)), describe(op), BETWEEN))

    def _join_each(self, op: Op, candidates: list[Node]) -> list[Node]:
        """Join the groups that allow it; returns those that another kernel keeps apart."""
        between = []
        for other in candidates:
            mine = self.node[op]
            if other is mine:
                continue
            reason = self.refusal(other, mine)
            if reason is None:
                self.merge(other, mine)
            elif reason == BETWEEN:
                between.append(other)
            elif other.form != PLAIN:
                self.refusals.append((describe(self._last(other)), describe(op), reason))
        return between

    def _last(self, node: Node) -> Op:
        return node.ops[-1]

    def refusal(self, a: Node, b: Node) -> str | None:
        """Why producer group ``a`` and consumer group ``b`` cannot be one kernel."""
        if any(c is not a and c.before & a.bits for c in self._inputs(b)):
            return BETWEEN
        if b.form != "loop":
            return self._side_refusal(a, b)
        if a.form == "loop":
            return self._loop_refusal(a, b)
        if a.form in ("contract", "conv"):
            return self._epilogue_refusal(a, b)
        return f"{a.form} kernels have no epilogue"

    def _inputs(self, node: Node) -> list[Node]:
        return [n for n in self.sources(x for op in node.ops for x in op.operands) if n is not node]

    def outputs(self, node_ops: Iterable[Op]) -> list[Value]:
        """Values of a group that are read outside it, through transparent operations too."""
        mine = set(node_ops)
        return [r for op in node_ops for r in op.results if r in self.results or self._escapes(r, mine)]

    def _escapes(self, v: Value, mine: set[Op]) -> bool:
        for u in self.users.get(v, ()):
            if u in self.transparent:
                if any(r in self.results or self._escapes(r, mine) for r in u.results):
                    return True
            elif u not in mine:
                return True
        return False

    def _loop_refusal(self, a: Node, b: Node) -> str | None:
        if len(a.ops) + len(b.ops) > LARGEST:
            return "the kernel would be too long"
        if len(b.ops) == 1 and spread_for_epilogue(self, b.main):
            return "the epilogue of a product computes it from less"
        if a.nest is not None and len(b.ops) == 1 and a.nest.grow(self._new_in(a.nest, b.ops[0]), b.ops[0]):
            b.nest = a.nest
            return None
        union = sorted([*a.ops, *b.ops], key=self.number.__getitem__)
        ops = self.with_transparent(union)
        for op in ops:
            if op.prim.name == "reshape" and not loops_for_reshape(op):
                return "the reshape between them would need a division for each element"
        try:
            plan = analyse(ops, self.outputs(union))
        except Refused as e:
            return str(e)
        b.nest = Growing(plan)
        return repeated_work(plan, self.producer)

    def _new_in(self, nest: Growing, op: Op) -> list[Op]:
        """The transparent operations that ``op`` brings into a nest."""
        found: dict[Op, None] = {}
        stack = list(op.operands)
        while stack:
            made = self.producer.get(stack.pop())
            if made is None or made not in self.transparent or made in found or made in nest.ops:
                continue
            found[made] = None
            stack += made.operands
        return sorted(found, key=self.number.__getitem__)

    def with_transparent(self, ops: Iterable[Op], within: Iterable[Op] = ()) -> list[Op]:
        """Operations of a kernel in program order, its transparent ones among them; ``within`` are others of
        the same kernel."""
        mine = {*ops, *within}
        found: dict[Op, None] = dict.fromkeys(ops)
        stack = [x for op in ops for x in op.operands]
        while stack:
            op = self.producer.get(stack.pop())
            if op is None or op in found or op not in self.transparent or self._view_of_outside(op, mine):
                continue
            found[op] = None
            stack += op.operands
        return sorted(found, key=self.number.__getitem__)

    def _view_of_outside(self, op: Op, mine: set[Op]) -> bool:
        while op.prim.name == "reshape":
            made = self.producer.get(op.operands[0])
            if made is None or (made not in self.transparent and made not in mine):
                return True
            if made in mine:
                return False
            op = made
        return False

    def _epilogue_refusal(self, a: Node, b: Node) -> str | None:
        columns = self._columns(a)
        if b.main.prim.kind is Kind.REDUCE:
            reason = fold_refusal(self, a, b)
        elif follows_folds(a, b):
            reason = contraction.side_refusal(a.main, b.main)
        else:
            reasons = (contraction.epilogue_refusal(self._made(a), op, columns) for op in b.ops)
            reason = next((r for r in reasons if r is not None), None)
        if reason is not None:
            return reason
        for op in self.with_transparent(b.ops, a.ops):  # what ``a`` reads itself has been looked at
            if op in self.transparent and self._reads(op, a):
                if columns is not None and contraction.columns_of(op) == columns:
                    continue
                return f"{op.prim.name} does not run on a tile of the result"
            if op in self.transparent and op not in self._prologue(a):
                reason = contraction.side_refusal(a.main, op)
                if reason is not None:
                    return reason
        return None

    def _columns(self, a: Node) -> contraction.Columns | None:
        """The groups of columns in which the product of ``a``, or what maps make of it, is read by all."""
        if a.form != "contract" or self.target_kind != "cpu" or not self._tiles(a.main):
            return None
        found: set[contraction.Columns | None] = set()
        parts: set[int] = set()
        shape, stack = a.main.result.type.shape, [a.main.result]
        while stack:
            v = stack.pop()
            for u in self.users.get(v, ()):
                if u in self.transparent:
                    part, readers = u.result.type.shape, self.users.get(u.result, ())
                    whole = u.result not in self.results and all(self._maps(w, part) for w in readers)
                    found.add(contraction.columns_of(u) if whole else None)
                    parts.add(u.attrs.get("start", (0,))[-1])
                elif self._maps(u, shape):
                    stack += u.results
                else:
                    return None
            if v in self.results:
                return None
        (columns,) = found if len(found) == 1 else (None,)
        return columns if len(parts) > 1 else None

    def _tiles(self, dot: Op) -> bool:
        """True where tiles of the result are a good way to compute it: few rows of large weights are read
        from end to end, or along k, unless these lie in panels.
        """
        w = dot.operands[1].type
        if len(contraction.axes_of(dot, 1)[1]) != 1:
            return False
        rows = dot.result.type.size // dot.result.type.shape[-1]
        return rows >= _TILED_ROWS or w.nbytes <= _SMALL or contraction.in_panels(self.graph, dot, 1)

    @staticmethod
    def _maps(op: Op, shape: tuple[int, ...]) -> bool:
        return op.prim.kind is Kind.MAP and len(op.results) == 1 and op.result.type.shape == shape

    def _side_refusal(self, a: Node, b: Node) -> str | None:
        """Why the maps of ``a``, which feed the epilogue of ``b``, may not be computed there."""
        if a.form != "loop" or b.form not in ("contract", "conv"):
            return f"{b.form} kernels take no producers"
        shape = self._made(b).result.type.shape
        if any(
            op.prim.kind is not Kind.MAP or (op.result.type.shape != shape and cost_of(op) > CHEAP)
            for op in a.ops
        ):
            return "only cheap maps and those of the shape of the result join a contraction"
        if set(self.outputs(a.ops)) & set(self.outputs([*a.ops, *b.ops])):
            return "the maps are wanted elsewhere too"
        if any(n is a for n in self.sources(b.main.operands)):
            return "the contraction itself reads it"
        prologue = self._prologue(b)
        for op in self.with_transparent([*a.ops, *b.ops]):
            if op not in b.ops and op not in prologue:
                reason = contraction.side_refusal(b.main, op)
                if reason is not None:
                    return reason
        return None

    def _prologue(self, a: Node) -> set[Op]:
        return set(self.closure(a.main.operands, a))

    def _reads(self, op: Op, a: Node) -> bool:
        return any(n is a for n in self.sources(op.operands))

    def merge(self, a: Node, b: Node) -> Node:
        """Make one group of two; a contraction keeps its form."""
        if a.form == "loop" and b.form != "loop":
            a.form, a.main = b.form, b.main
        a.ops = sorted([*a.ops, *b.ops], key=self.number.__getitem__)
        a.bits |= b.bits
        a.before = (a.before | b.before) & ~a.bits
        a.nest = b.nest if a.form == "loop" else None
        for op in b.ops:
            self.node[op] = a
        del self.nodes[b]
        bits, more = a.bits, a.bits | a.before
        for n in self.nodes:
            if n.before & bits and n is not a:
                n.before |= more
        return a


def _own_scalar_results(graph: Graph) -> Graph:
    """Compute scalar results by operations of their own, so that others may repeat theirs."""
    producer, users = graph.producers(), graph.users()
    ops, results = list(graph.ops), []
    for v in graph.results:
        op = producer.get(v)
        if op is not None and users.get(v) and scalar_map(op) and compilable(v.type):
            v = Value(v.type, v.name)
            ops.append(Op(op.prim, op.operands, op.attrs, [v], (), op.loc))
        results.append(v)
    return Graph(graph.params, ops, results, graph.name)


def is_transparent(op: Op) -> bool:
    """True for operations that only change indices, for constants and for arithmetic on single elements."""
    if any(not compilable(v.type) for v in (*op.operands, *op.results)):
        return False
    if op.prim.kind is Kind.SOURCE:
        return op.prim.name != "constant" or op.result.type.size == 1
    if op.prim.kind is Kind.MAP:
        return scalar_map(op)
    return op.prim.kind is Kind.MOVE and op.prim.name in TRANSPARENT_MOVES


def scalar_map(op: Op) -> bool:
    """True for arithmetic on single elements: a loop that reads it may as well repeat it, once per call."""
    return op.prim.kind is Kind.MAP and op.result.type.size == 1


def compilable(t: TensorType) -> bool:
    return not t.dtype.is_complex and t.size > 0


def form_of(op: Op) -> str:
    """The kernel form of an operation alone."""
    kind = op.prim.kind
    if any(not compilable(v.type) for v in (*op.operands, *op.results)):
        return PLAIN
    if kind is Kind.CONTRACT:
        return contraction.form_of(op) if contraction.unsupported(op) is None else PLAIN
    if kind is Kind.SOURCE and op.prim.name == "constant":
        return PLAIN
    if kind in LOOP_KINDS:
        return PLAIN if op.prim.name == "reshape" else "loop"
    return SINGLE_FORMS.get(kind, PLAIN)


def loops_for_reshape(op: Op) -> bool:
    """True where loops over the finer shape give all indices: a dim is split or merged, not both."""
    shape = [d for d in op.operands[0].type.shape if d != 1]
    out = [d for d in op.result.type.shape if d != 1]
    i = j = 0
    while i < len(shape) or j < len(out):
        n, m, a, b = shape[i], out[j], 1, 1
        while n != m:
            if n < m:
                n, a = n * shape[i + a], a + 1
            else:
                m, b = m * out[j + b], b + 1
        if a > 1 and b > 1:
            return False
        i, j = i + a, j + b
    return True


def repeated_work(plan: NestPlan, producer: dict[Value, Op]) -> str | None:
    """A reason where the nest would compute something dear many times over."""
    rows = set(plan.p)
    mine = set(plan.ops)
    costs: dict[Value, float] = {}
    for op in plan.ops:
        if op.prim.kind is Kind.MAP:
            if op.result.type.size == 1:
                continue  # computed once
            made = [x for x in op.operands if producer.get(x) in mine]
            costs[op.result] = cost_of(op) + sum(costs.get(x, 0.0) for x in made)
        elif op.prim.kind is Kind.MOVE:
            cost = max((costs.get(x, 0.0) for x in op.operands), default=0.0)
            most = REPEATS if len(op.operands) == 1 else 1  # of several operands all are computed everywhere
            if cost > CHEAP and _repeats(plan, op, rows) > most:
                return f"{op.prim.name} would repeat dear work for each element"
            costs[op.result] = cost
        elif op.prim.kind is Kind.GATHER:
            indexed = op.operands[0]
            costs[op.result] = costs.get(op.operands[1], 0.0) + costs.get(indexed, 0.0)
            if costs.get(indexed, 0.0) > CHEAP and op.result.type.size * REPEATS > indexed.type.size:
                return "what is indexed would be computed for each index"
    return None


def _repeats(plan: NestPlan, op: Op, rows: set[int]) -> float:
    """How often an element of the operand is computed under a movement inside the nest."""
    worst = 1.0
    for x in op.operands:
        classes = set(plan.classes.get(x, ())) - {-1}
        if not classes or (classes <= rows and plan.q):
            continue  # known once, or once per row
        if x in plan.classes and x.type.size and classes != set(plan.classes[op.result]) - {-1}:
            worst = max(worst, op.result.type.size / x.type.size)
    return worst
