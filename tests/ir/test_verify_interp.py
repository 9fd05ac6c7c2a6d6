"""The verifier on planted faults, and the reference interpreter."""

import numpy as np
import pytest
from weft.ir import prims as P
from weft.ir.errors import CompilerError, VerificationError
from weft.ir.graph import Graph, GraphBuilder, Op, Value
from weft.ir.interp import run
from weft.ir.prims.base import Kind, Primitive, trace
from weft.ir.types import Dim, TensorType, bf16, f32, f64
from weft.ir.verify import verify

V = TensorType((3,), f32)


def op(prim, operands, result_types=(V,), attrs=None, regions=(), loc=None):
    return Op(prim, operands, attrs or {}, [Value(t) for t in result_types], regions, loc)


def test_a_sound_graph_comes_back():
    graph = trace(lambda x: P.cumsum_p.bind(x * x, axis=0), V)
    assert verify(graph) is graph


def fault(graph):
    with pytest.raises(VerificationError) as caught:
        verify(graph)
    assert caught.value.graph is not None
    return str(caught.value)


def test_a_use_before_its_definition_is_shown_with_its_neighbours():
    x = Value(V)
    later = op(P.exp_p, [x], loc="model.py:30")
    ops = [
        op(P.neg_p, [x], loc="model.py:10"),
        op(P.sin_p, [x], loc="model.py:11"),
        op(P.mul_p, [later.result, x], loc="model.py:20"),
        later,
        op(P.cos_p, [x]),
        op(P.tan_p, [x]),
    ]
    assert fault(Graph([x], ops, [x], "f")) == """\
mul: operand 0 is not defined before its use
in graph f, operation 2 of 6:
     %1 = neg(%0): f32[3]  # model.py:10
     %2 = sin(%0): f32[3]  # model.py:11
  -> %3 = mul(%4, %0): f32[3]  # model.py:20
     %4 = exp(%0): f32[3]  # model.py:30
     %5 = cos(%0): f32[3]"""


def test_a_value_of_no_graph():
    x = Value(V)
    assert "%1 = neg(%?)" in fault(Graph([x], [op(P.neg_p, [Value(V)])], [x]))
    assert "result 0 is defined by no operation" in fault(Graph([x], [], [Value(V)]))


def test_a_value_defined_twice():
    x = Value(V)
    a = op(P.neg_p, [x])
    assert "result 0 is defined twice" in fault(Graph([x], [a, a], [x]))
    assert "result 0 is defined twice" in fault(Graph([x], [Op(P.neg_p, [x], {}, [x])], [x]))
    y = Value(V)
    assert "result 1 is defined twice" in fault(Graph([x], [Op(P.sort_p, [x], {"axis": 0}, [y, y])], [x]))
    assert "is defined twice" in fault(Graph([x, x], [], [x]))


def test_a_wrong_type():
    x = Value(V)
    wide = TensorType((3,), f64)
    assert "(f64[3]) but the type rule infers (f32[3])" in fault(Graph([x], [op(P.neg_p, [x], [wide])], [x]))
    two = op(P.neg_p, [x], [V, V])
    assert "(f32[3], f32[3]) but the type rule infers (f32[3])" in fault(Graph([x], [two], [x]))


def test_what_the_type_rule_refuses():
    x = Value(V)
    bad = op(P.sum_p, [x], attrs={"axes": (1,)})
    assert "ValueError: sum: axis 1 is out of range" in fault(Graph([x], [bad], [x]))
    assert "TypeError" in fault(Graph([x], [op(P.sum_p, [x])], [x]))  # the attribute is missing
    assert "TypeError" in fault(Graph([x], [op(P.add_p, [x])], [x]))  # an operand is missing


@pytest.mark.parametrize("value", [[1], (1, [2]), {"a": 1}, np.float32(1), np.array(["s"]), object()])
def test_an_attribute_of_another_type(value):
    x = Value(V)
    assert "attribute extra holds a" in fault(Graph([x], [op(P.neg_p, [x], attrs={"extra": value})], [x]))


def test_a_primitive_of_no_registry():
    x = Value(V)
    stray = object.__new__(Primitive)
    stray.__dict__.update(P.neg_p.__dict__, name="stray", kind=Kind.MAP)
    assert "not in the registry" in fault(Graph([x], [op(stray, [x])], [x]))


def test_a_region_that_is_not_closed():
    x = Value(V)
    p = Value(V)
    body = Graph([p], [leak := op(P.mul_p, [p, x])], leak.results, "body")
    kernel = op(P.kernel_p, [x], attrs={"form": "loop", "name": "k"}, regions=[body])
    message = fault(Graph([x], [kernel], kernel.results))
    assert "regions are closed" in message and "in graph body" in message
    returns = Graph([p], [], [x], "body")
    kernel = op(P.kernel_p, [x], attrs={"form": "loop", "name": "k"}, regions=[returns])
    assert "result 0 is defined by a graph around it" in fault(Graph([x], [kernel], kernel.results))
    shared = Graph([x], [], [x], "body")
    kernel = op(P.kernel_p, [x], attrs={"form": "loop", "name": "k"}, regions=[shared])
    assert "is defined twice" in fault(Graph([x], [kernel], kernel.results))


def test_a_fault_deep_in_a_region():
    x, p, q, wrong = Value(V), Value(V), Value(V), [TensorType((4,), f32)]
    bad = op(P.neg_p, [q], wrong)
    inner = op(P.kernel_p, [p], wrong, {"form": "loop"}, [Graph([q], [bad], bad.results, "deep")])
    outer = op(P.kernel_p, [x], wrong, {"form": "loop"}, [Graph([p], [inner], inner.results)])
    assert "in graph deep" in fault(Graph([x], [outer], outer.results))


def test_the_result_of_a_control_operation_must_fit_its_regions():
    x = Value(V)
    body = trace(lambda v: P.sum_p.bind(v, axes=(0,)), V)
    kernel = op(P.kernel_p, [x], [V], {"form": "loop"}, [body])
    assert "infers (f32[])" in fault(Graph([x], [kernel], kernel.results))


# the interpreter ----------------------------------------------------------------


def test_run():
    graph = trace(lambda x, y: [x * y, P.sum_p.bind(x, axes=(0,)), x], V, V)
    x, y = np.float32([1, 2, 3]), np.float32([2, 2, 2])
    a, b, c = run(graph, [x, y])
    assert a.tolist() == [2, 4, 6] and b == 6 and b.shape == () and c is x


def test_run_gives_arrays_even_for_0d_values():
    graph = trace(lambda x: x * x, TensorType((), f32))
    (out,) = run(graph, [np.float32(3)])
    assert type(out) is np.ndarray and out.dtype == np.float32


def test_run_warns_of_nothing(recwarn):
    graph = trace(lambda x: P.div_p.bind(P.log_p.bind(x), x), V)
    (out,) = run(graph, [np.zeros(3, np.float32)])
    assert np.isinf(out).all() and not recwarn.list


Z = np.zeros(3, np.float32)


@pytest.mark.parametrize("arrays", [[], [Z, Z], [Z[:2]], [np.zeros(3)], [Z.reshape(3, 1)]])
def test_run_checks_its_arguments(arrays):
    with pytest.raises(ValueError, match="argument"):
        run(trace(lambda x: x + x, V), arrays)


def test_run_takes_symbolic_dimensions():
    x = Value(TensorType((Dim("N"), 2), f32))
    double = Op(P.add_p, [x, x], {}, [Value(x.type)])
    graph = Graph([x], [double], double.results)
    for n in (1, 5):
        assert run(graph, [np.ones((n, 2), np.float32)])[0].shape == (n, 2)


def test_a_rule_that_lies_about_its_type_is_caught():
    x = Value(V)
    lie = op(P.neg_p, [x], [TensorType((3,), f64)], loc="here.py:1")
    message = r"neg gave float32\[3\] where its type is f64\[3\] \(at here\.py:1\)"
    with pytest.raises(CompilerError, match=message):
        run(Graph([x], [lie], lie.results), [np.zeros(3, np.float32)])
    pair = op(P.neg_p, [x], [V, V])
    with pytest.raises(CompilerError, match="1 results for 2"):
        run(Graph([x], [pair], pair.results), [np.zeros(3, np.float32)])


def test_errors_of_primitives_come_through():
    b = GraphBuilder()
    x, i = b.param(V), b.param(TensorType((1, 1), P.argmax_p.infer(V, axis=0).dtype))
    graph = b.finish(b.add(P.gather_p, [x, i], {"axes": (0,)}))
    with pytest.raises(IndexError, match="index 3 is out of bounds"):
        run(graph, [np.zeros(3, np.float32), np.array([[3]])])


def test_values_are_dropped_after_their_last_use():
    """A result that is read early and returned late must survive."""
    graph = trace(lambda x: [y := P.neg_p.bind(x), P.exp_p.bind(y), y], V)
    a, b, c = run(graph, [np.zeros(3, np.float32)])
    assert a is c and b.tolist() == [1, 1, 1]


def test_run_in_bfloat16():
    graph = trace(lambda x: P.sum_p.bind(x * x, axes=(0,)), TensorType((2,), bf16))
    assert run(graph, [np.array([1, 2], bf16.np)])[0] == 5
