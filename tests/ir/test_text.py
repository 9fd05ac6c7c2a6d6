"""The text form: printing, parsing, the round trip."""

import math

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.prims.base import PRIMITIVES, GraphInterpreter, interpreting, trace
from weft.ir.text import canonical_text, parse_graph, parse_type, print_attr, print_graph, value_names
from weft.ir.types import DTYPES, Device, Dim, TensorType, bf16, f16, f32, f64, i64

V = TensorType((3,), f32)


def same(a, b):
    """Two graphs are one: structure, names, types, attributes to the bit, regions, source lines."""
    if len(a.params) != len(b.params) or a.name != b.name:
        return False
    env = dict(zip(a.params, b.params, strict=True))

    def values(xs, ys):
        return [env[x] for x in xs] == list(ys)

    def alike(xs, ys):
        return [(x.type, x.name) for x in xs] == [(y.type, y.name) for y in ys]

    if not alike(a.params, b.params) or len(a.ops) != len(b.ops):
        return False
    for x, y in zip(a.ops, b.ops, strict=True):
        if x.prim is not y.prim or x.loc != y.loc or not values(x.operands, y.operands):
            return False
        if not alike(x.results, y.results) or not same_attr(attrs_of(x), attrs_of(y)):
            return False
        if len(x.regions) != len(y.regions) or not all(map(same, x.regions, y.regions)):
            return False
        env.update(zip(x.results, y.results, strict=True))
    return values(a.results, b.results)


def attrs_of(op):
    return tuple(sorted(op.attrs.items()))


def same_attr(a, b):
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same_attr, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (float, complex)):
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return a == b


def round_trip(graph):
    text = print_graph(graph)
    again = parse_graph(text)
    assert same(graph, again), text
    assert print_graph(again) == text
    return again


def test_what_a_graph_looks_like():
    b = GraphBuilder("step")
    x, w = b.param(V, "x"), b.param(V)
    with interpreting(GraphInterpreter(b, "train.py:12")):
        y = P.mul_p.bind(x, w)
    with interpreting(GraphInterpreter(b)):
        values, indices = P.sort_p.bind(y, axis=0)
        total = P.sum_p.bind(values, axes=(0,))
    assert print_graph(b.finish([total, indices])) == """\
graph step(%x: f32[3], %1: f32[3]) {
  %2 = mul(%x, %1): f32[3]  # train.py:12
  %3, %4 = sort(%2) {axis=0}: f32[3], i64[3]
  %5 = sum(%3) {axes=(0,)}: f32[]
  return %5, %4
}"""


def test_str_of_a_graph_is_its_text():
    graph = trace(lambda x: x + x, V)
    assert str(graph) == print_graph(graph)


# a graph with every primitive ----------------------------------------------------------------


EXAMPLES = {
    "full": ([], {"shape": (2,), "dtype": bf16, "value": 1.5, "device": Device("cuda", 1)}),
    "iota": ([], {"shape": (2, 3), "dtype": i64, "axis": 1}),
    "constant": ([], {"value": np.array([[1.0, math.nan], [-0.0, math.inf]], np.float16)}),
    "kernel": (["x"], {"form": "loop", "name": "k"}),
    "host_call": (["x"], {"fn": "np.something", "mode": "full"}),
    "cond": (["b", "x"], {}),
    "while_loop": (["x"], {}),
    "scan": (["x", "x"], {"n_consts": 0, "n_carry": 1, "length": 3, "reverse": True}),
    "conv": (["x", "x"], {"stride": (1, 2), "padding": ((0, -1), (2, 3)), "lhs_dilation": (1, 1),
                          "rhs_dilation": (1, 1), "groups": 2}),
}  # fmt: skip
REGIONS = {"kernel": 1, "cond": 2, "while_loop": 2, "scan": 1}


def test_every_primitive_makes_the_round_trip():
    """Of primitives that are not listed the text is the same but for the name."""
    ops, body = [], trace(lambda x: P.tanh_p.bind(x) * x, V, name="body")
    params = {"x": Value(V, "x"), "b": Value(TensorType((), PRIMITIVES["eq"].infer(V, V).dtype), "b")}
    for name, prim in sorted(PRIMITIVES.items()):
        operands, attrs = EXAMPLES.get(name, (["x"], {"axis": 0, "flag": True, "dtype": f64, "none": None}))
        results = [Value(V, f"{name}_out"), Value(TensorType((2, 0), i64))][: prim.n_results]
        regions = [body] * REGIONS.get(name, 0)
        attrs = prim.normalize_attrs(attrs)
        ops.append(Op(prim, [params[k] for k in operands], attrs, results, regions, f"{name}.py:1"))
    graph = Graph(params.values(), ops, [ops[0].results[0], *params.values()], "all")
    again = round_trip(graph)
    assert [op.prim for op in again.ops] == [PRIMITIVES[n] for n in sorted(PRIMITIVES)]


# attributes ----------------------------------------------------------------

NAN_WITH_PAYLOAD = np.array(0x7FF80000DEADBEEF, np.uint64).view(np.float64).item()
ATTRS = [
    0, -7, 2**70, True, False, None, 1.0, -0.0, 0.1, 1e300, 5e-324, 1e22, math.inf, -math.inf, math.nan,
    NAN_WITH_PAYLOAD, 1 + 2j, complex(-0.0, math.nan), "", "plain", 'quote " and \\ and # and \n and é',
    "true", (), (1,), (1, 2.5, "x"), ((0, 1), (), ((True, None),)), Device("cpu"), Device("cuda", 0),
    Device("null"), Dim("N"), (Dim("batch_0"), 3), *DTYPES,
]  # fmt: skip


@pytest.mark.parametrize("value", ATTRS, ids=repr)
def test_every_kind_of_attribute_makes_the_round_trip(value):
    x = Value(V)
    op = Op(P.host_call_p, [x], {"fn": "f", "value": value}, [Value(V)])
    again = round_trip(Graph([x], [op], op.results))
    assert type(again.ops[0].attrs["value"]) is type(value)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3), (3, 0, 1)])
def test_arrays_make_the_round_trip_to_the_bit(dtype, shape):
    rng = np.random.default_rng(0)
    n = math.prod(shape)
    bits = rng.integers(0, 256, n * dtype.itemsize, np.uint8)  # NaNs with payloads among them
    value = bits.view(dtype.np) if dtype.category != "bool" else rng.integers(0, 2, n).astype(bool)
    round_trip(trace(lambda: P.constant_p.bind(value=value.reshape(shape))))


def test_arrays_that_are_not_contiguous():
    value = np.arange(12, dtype=np.float32).reshape(3, 4).T[::2]
    (op,) = round_trip(trace(lambda: P.constant_p.bind(value=value))).ops
    np.testing.assert_array_equal(op.attrs["value"], value)


def test_numpy_scalars_print_as_python_numbers():
    assert print_attr((np.int64(3), np.float32(0.5), np.bool_(True))) == "(3, 0.5, true)"


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, object(), {1}])
def test_other_attributes_are_refused(value):
    with pytest.raises(TypeError, match="an attribute cannot be"):
        print_attr(value)


def test_defaults_are_left_out_and_come_back():
    graph = trace(lambda x: P.cumsum_p.bind(x, axis=0), V)
    assert "reverse" not in print_graph(graph)
    assert parse_graph(print_graph(graph)).ops[0].attrs["reverse"] is False
    assert "reverse=true" in print_graph(trace(lambda x: P.cumsum_p.bind(x, axis=0, reverse=True), V))
    # equal but of another type: written, so that it comes back as it was
    odd = Op(P.cumsum_p, [x := Value(V)], {"axis": 0, "reverse": 0}, [Value(V)])
    round_trip(Graph([x], [odd], odd.results))


def test_the_order_of_attributes_does_not_show():
    a, b = ({"lo": (0,), "hi": (1,)}, {"hi": (1,), "lo": (0,)})
    zero = TensorType((), f32)

    def text(attrs):
        return print_graph(trace(lambda x, z: P.pad_p.bind(x, z, interior=(0,), **attrs), V, zero))

    assert text(a) == text(b)


# names and types ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "layer.1", "two words", "", "7", '"', "x # y", "é"])
def test_names_of_values_make_the_round_trip(name):
    x, y = Value(V, name), Value(V, name)  # a name may be given twice
    op = Op(P.neg_p, [x], {}, [y])
    round_trip(Graph([x], [op], [y, x]))


@pytest.mark.parametrize("name", ["main", "a b", "", "1", "return"])
def test_names_of_graphs_make_the_round_trip(name):
    x = Value(V)
    round_trip(Graph([x], [], [x], name))


@pytest.mark.parametrize("loc", ["a.py:1", "my dir/a#b.py:1", '"', " lead", "a\nb", "trail ", "{x} # y", ""])
def test_source_lines_make_the_round_trip(loc):
    x = Value(V)
    op = Op(P.neg_p, [x], {}, [Value(V)], (), loc)
    round_trip(Graph([x], [op], op.results))


@pytest.mark.parametrize(
    "t",
    [TensorType((), f32), TensorType((0, 2), bf16), TensorType((Dim("N"), 3, Dim("k_1")), f16),
     TensorType((2,), i64, Device("cuda", 3)), TensorType((2,), i64, Device("null"))],
)  # fmt: skip
def test_types_make_the_round_trip(t):
    assert parse_type(str(t)) == t
    x = Value(t)
    round_trip(Graph([x], [], [x]))


def test_graphs_without_params_results_or_ops():
    round_trip(Graph([], [], []))
    op = Op(P.host_call_p, [], {"fn": "print"}, [])
    round_trip(Graph([], [op], []))


def test_value_names():
    graph = trace(lambda x: x + x, V)
    assert value_names(graph, [graph.params[0], graph.results[0], Value(V)]) == ["%0", "%1", "%?"]


# a key for caches ----------------------------------------------------------------


def test_the_canonical_text_has_no_names_and_no_source_lines():
    def build(name, value_name, loc):
        b = GraphBuilder(name)
        x = b.param(V, value_name)
        body = trace(lambda v: v * v, V, name=name)
        out = b.add(P.kernel_p, [x], {"form": "loop", "name": "k"}, [body], loc)
        return b.finish(out)

    a, b = build("f", "x", "a.py:1"), build("g", "y", None)
    assert print_graph(a) != print_graph(b)
    assert canonical_text(a) == canonical_text(b)
    assert print_graph(parse_graph(canonical_text(a)), locs=False, names=False) == canonical_text(a)


def test_the_canonical_text_tells_programs_apart():
    texts = {
        canonical_text(g)
        for g in (
            trace(lambda x: x + x, V),
            trace(lambda x: x * x, V),
            trace(lambda x: [x, x + x], V),
            trace(lambda x: x + x, TensorType((4,), f32)),
            trace(lambda x: x + x, TensorType((3,), f32, Device("null"))),
            trace(lambda x: P.cumsum_p.bind(x, axis=0), V),
            trace(lambda x: P.cumsum_p.bind(x, axis=0, reverse=True), V),
            trace(lambda x: [x, P.constant_p.bind(value=np.array(0.0))], V),
            trace(lambda x: [x, P.constant_p.bind(value=np.array(-0.0))], V),
        )
    }
    assert len(texts) == 9


# parsing ----------------------------------------------------------------


def test_types_may_be_left_out():
    graph = parse_graph("""
        graph f(%x: f32[2,3]) {

          %y = exp(%x)
          %s = sum(%y) {axes=(1,)}   # here
          %v, %i = sort(%s) {axis=0}
          %c = cond(%p, %v)
            graph a(%0: f32[2]) {
              return %0
            }
            graph b(%0: f32[2]) {
              return %0
            }
          return %c, %i
        }
    """.replace("%x: f32[2,3]", "%x: f32[2,3], %p: bool[]"))
    assert [str(r.type) for r in graph.results] == ["f32[2]", "i64[2]"]
    assert graph.ops[1].loc == "here" and graph.ops[0].results[0].name == "y"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text ends"),
        ("graph f() {", "the text ends"),
        ("graph f() {\n return\n}\nmore", "line 4: text after"),
        ("func f() {\n return\n}", "line 1: expected a graph"),
        ("graph f(%x) {\n return\n}", "line 1: expected ':'"),
        ("graph f(%x: q8[2]) {\n return\n}", "line 1: unknown dtype 'q8'"),
        ("graph f(%x: f32[2], %x: f32[2]) {\n return\n}", "line 1: %x is defined twice"),
        ("graph f(%x: f32[2]) {\n %x = neg(%x)\n return\n}", "line 2: %x is defined twice"),
        ("graph f() {\n return %y\n}", "line 2: %y is not defined"),
        ("graph f(%x: f32[2]) {\n %y = neg(%z)\n return\n}", "line 2: %z is not defined"),
        ("graph f(%x: f32[2]) {\n %y = negate(%x)\n return\n}", "line 2: unknown primitive 'negate'"),
        ("graph f(%x: f32[2]) {\n %y = neg(%x) {a=blue}\n return\n}", "unknown attribute value 'blue'"),
        ("graph f(%x: f32[2]) {\n %y = neg(%x) {a=}\n return\n}", "expected an attribute value"),
        ("graph f(%x: f32[2]) {\n %y = neg(%x) {a 1}\n return\n}", "expected '='"),
        ("graph f(%x: f32[2]) {\n %y, %z = neg(%x): f32[2]\n return\n}", "2 results but 1 types"),
        ("graph f(%x: f32[2]) {\n %y = neg(%x): f32[2] ?\n return\n}", "cannot read '[?]'"),
        ("graph f(%x: f32[2]) {\n %y = neg(%x): f32[2] more\n return\n}", "expected a loc"),
        ("graph f(%x: f32[2]) {\n %y = neg(%x %x)\n return\n}", "expected '[)]'"),
        ("graph f(%x: f32[2]) {\n %y = sum(%x) {axes=(3,)}\n return\n}", "line 2: ValueError: sum: axis 3"),
        ("graph f(%x: f32[2]) {\n %y = sum(%x)\n return\n}", "line 2: TypeError: .*axes"),
        ("graph f(%x: f32[2,,3]) {\n return\n}", "line 1: not a tensor type"),
        ("graph f() {\n %c = constant() {value=f32[2]:0x00}\n return\n}", "line 2"),
    ],
)
def test_what_is_no_graph_is_refused_with_its_line(text, message):
    with pytest.raises(ValueError, match=message):
        parse_graph(text)


def test_printing_is_linear():
    """Counted in characters: each operation costs the same, wherever it stands."""

    def chain(n):
        def f(x):
            for _ in range(n):
                x = P.neg_p.bind(x)
            return x

        return len(canonical_text(trace(f, V)).split("\n"))

    assert chain(1000) - chain(500) == 500
