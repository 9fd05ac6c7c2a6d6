"""Attributes, conversions to Python and numpy, printing, copying, saving, exchange with other libraries."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import weft as torch


def test_attributes() -> None:
    x = torch.zeros(2, 3)
    assert x.shape == (2, 3) and x.size() == torch.Size([2, 3]) and x.size(-1) == 3 and x.shape.numel() == 6
    assert (x.ndim, x.dim(), x.numel(), x.element_size(), x.nbytes) == (2, 2, 6, 4, 24)
    assert x.dtype is torch.float32 and x.device == torch.device("cpu") and x.is_floating_point()
    assert repr(x.shape) == "weft.Size([2, 3])" and str(x.device) == "cpu"
    assert x.requires_grad is False and x.grad is None and x.grad_fn is None and x.is_leaf
    with pytest.raises(IndexError, match="Dimension out of range"):
        x.size(2)


def test_devices() -> None:
    assert torch.device("cuda:1") == torch.device("cuda", 1) and isinstance(torch.device("cpu"), torch.device)
    with pytest.raises(RuntimeError, match="cannot hold tensors on device null"):
        torch.zeros(1, device="null")
    with pytest.raises(RuntimeError, match="device string"):
        torch.device("cake")


def test_a_gpu_that_is_not_there_is_an_error_that_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setenv("WEFT_CUDA", "off")
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    for make in (lambda: torch.zeros(1, device="cuda"), torch.zeros(1).cuda, torch.cuda.current_device):
        with pytest.raises(RuntimeError, match="CUDA"):
            make()


def test_python_conversions() -> None:
    assert torch.tensor(3).item() == 3 and type(torch.tensor(3.0).item()) is float
    assert (
        float(torch.tensor([2.5])) == 2.5 and int(torch.tensor(2.7)) == 2 and complex(torch.tensor(1j)) == 1j
    )
    assert bool(torch.tensor([1])) and not torch.tensor(0.0)
    assert [10, 20, 30][torch.tensor(1)] == 20
    assert torch.tensor([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]
    assert torch.tensor(1.5, dtype=torch.bfloat16).item() == 1.5
    assert len(torch.zeros(4, 2)) == 4 and [r.tolist() for r in torch.eye(2)] == [[1, 0], [0, 1]]
    assert 3 in torch.arange(4) and 9 not in torch.arange(4)


@pytest.mark.parametrize(("call", "kind", "text"), [
    (lambda: torch.zeros(2).item(), RuntimeError, "a Tensor with 2 elements cannot be converted to Scalar"),
    (lambda: bool(torch.zeros(2)), RuntimeError, "more than one value is ambiguous"),
    (lambda: bool(torch.zeros(0)), RuntimeError, "with no values is ambiguous"),
    (lambda: len(torch.tensor(1)), TypeError, "0-d tensor"),
    (lambda: iter(torch.tensor(1)), TypeError, "iteration over a 0-d tensor"),
    (lambda: [1][torch.tensor(0.0)], TypeError, "only integer tensors of a single element"),
    (lambda: torch.ones(1, requires_grad=True).numpy(), RuntimeError, "Can't call numpy"),
    (lambda: torch.ones(2) + "a", TypeError, "unsupported operand"),
    (lambda: torch.exp([1.0]), TypeError, "must be Tensor"),
    (lambda: torch.ones(2) + torch.ones(3), RuntimeError, "must match the size of tensor b"),
    (lambda: torch.ones(2).bad, AttributeError, "bad"),
])  # fmt: skip
def test_errors(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_hash_is_identity_and_equality_elementwise() -> None:
    x, y = torch.ones(2), torch.ones(2)
    assert {x: 1}[x] == 1 and hash(x) != hash(y)
    assert (x == y).tolist() == [True, True] and (x != 1).tolist() == [False, False]
    assert (x == None) is False and x in [x]  # noqa: E711


def test_operators_with_numpy() -> None:
    x = torch.tensor([1.0, 2.0])
    assert (2 - x).tolist() == [1, 0] and (2 / x).tolist() == [2, 1] and (2**x).tolist() == [2, 4]
    assert (np.float64(2) * x).tolist() == [2, 4] and (x * np.float32(3)).dtype is torch.float32
    assert np.asarray(x).dtype == np.float32 and np.sum(x.numpy()) == 3
    assert (7 // torch.tensor([2, 3])).tolist() == [3, 2] and (7 % torch.tensor([4])).tolist() == [3]
    assert (~torch.tensor([True])).tolist() == [False] and (-x).tolist() == [-1, -2]
    assert divmod(7, 2) == (3, 1) and abs(-x).tolist() == [1, 2]


def test_conversions_between_dtypes() -> None:
    x = torch.tensor([1.9, -1.9])
    assert x.int().tolist() == [1, -1] and x.long().dtype is torch.int64 and x.bool().tolist() == [True, True]
    assert x.half().dtype is torch.float16 and x.double().dtype is torch.float64
    assert x.to(torch.float32) is x and x.to("cpu") is x and x.to(x) is x and x.to(x, copy=True) is not x
    assert x.to(torch.int8).dtype is torch.int8 and x.type() == "weft.FloatTensor"
    assert (
        x.type(torch.int64).dtype is torch.int64
        and x.type_as(torch.ones(1, dtype=torch.float64)).dtype.bits == 64
    )
    g = torch.ones(2, requires_grad=True)
    (g.double() * 2).sum().backward()
    assert g.grad.dtype is torch.float32


def test_new_forms() -> None:
    x = torch.zeros(2, dtype=torch.float64)
    assert x.new_zeros(3).dtype is torch.float64 and x.new_ones((2, 2)).shape == (2, 2)
    assert x.new_full((2,), 3).tolist() == [3, 3] and x.new_tensor([1, 2]).dtype is torch.float64
    assert x.new_empty(4).shape == (4,)
    assert torch.Tensor(2, 3).shape == (2, 3) and torch.Tensor([1, 2]).dtype is torch.float32


def test_default_dtype() -> None:
    assert torch.get_default_dtype() is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.tensor(1.0).dtype is torch.float64 and (torch.tensor(1) / 2).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(TypeError):
        torch.set_default_dtype(torch.int32)


def test_limits() -> None:
    assert torch.finfo(torch.float32).eps == 2.0**-23 and torch.finfo(torch.bfloat16).bits == 16
    assert torch.iinfo(torch.int8).max == 127
    with pytest.raises(TypeError):
        torch.finfo(torch.int32)


PRINTS: list[tuple[Any, str]] = [
    (lambda: torch.tensor([1.0, 2.5]), "tensor([1.0000, 2.5000])"),
    (lambda: torch.tensor([1.0, 2.0]), "tensor([1., 2.])"),
    (lambda: torch.tensor([1e-5, 1.0]), "tensor([1.0000e-05, 1.0000e+00])"),
    (lambda: torch.tensor([1, 20]), "tensor([ 1, 20])"),
    (lambda: torch.tensor(3.0), "tensor(3.)"),
    (lambda: torch.tensor([True, False]), "tensor([ True, False])"),
    (lambda: torch.tensor([1 + 2j]), "tensor([1.+2.j])"),
    (lambda: torch.zeros(0), "tensor([])"),
    (lambda: torch.zeros(0, 3), "tensor([], size=(0, 3))"),
    (lambda: torch.zeros(0, dtype=torch.int64), "tensor([], dtype=weft.int64)"),
    (lambda: torch.zeros(2, dtype=torch.float64), "tensor([0., 0.], dtype=weft.float64)"),
    (lambda: torch.ones(1, requires_grad=True), "tensor([1.], requires_grad=True)"),
    (lambda: torch.ones(1, requires_grad=True) * 2, "tensor([2.], grad_fn=<MulBackward0>)"),
    (lambda: torch.arange(1001), "tensor([   0,    1,    2,  ...,  998,  999, 1000])"),
    (lambda: torch.tensor([1.0, float("nan"), float("inf")]), "tensor([1., nan, inf])"),
    (lambda: torch.tensor([[1.5, 2], [3, 4]]), "tensor([[1.5000, 2.0000],\n        [3.0000, 4.0000]])"),
]


@pytest.mark.parametrize(("make", "text"), PRINTS, ids=lambda v: "" if callable(v) else v[:24])
def test_printing(make: Any, text: str) -> None:
    assert repr(make()) == text


def test_print_options() -> None:
    try:
        torch.set_printoptions(precision=2, sci_mode=False)
        assert repr(torch.tensor([1e-5, 1.0])) == "tensor([0.00, 1.00])"
        torch.set_printoptions(threshold=3, edgeitems=1)
        assert repr(torch.arange(9)) == "tensor([0,  ..., 8])"
    finally:
        torch.set_printoptions(profile="default")
    assert f"{torch.tensor(3.14159):.2f}" == "3.14"


def test_pickle_and_deepcopy() -> None:
    for x in (
        torch.randn(2, 3),
        torch.ones(2, requires_grad=True),
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.arange(6).reshape(2, 3).t(),
    ):
        y = pickle.loads(pickle.dumps(x))
        assert torch.equal(x, y) and y.dtype is x.dtype and y.requires_grad == x.requires_grad
        z = copy.deepcopy(x)
        assert torch.equal(x, z) and z.requires_grad == x.requires_grad and z._data is not x._data
    assert pickle.loads(pickle.dumps(torch.float32)) is torch.float32
    with pytest.raises(RuntimeError, match="Only Tensors created explicitly by the user"):
        copy.deepcopy(torch.ones(1, requires_grad=True) * 2)
    x = torch.ones(2)
    a, b = copy.deepcopy([x, x])
    assert a is b


def test_save_and_load(tmp_path: Any) -> None:
    obj = {
        "w": torch.randn(3, requires_grad=True),
        "n": 3,
        "l": [torch.arange(2), "text"],
        "d": torch.float16,
        "s": torch.Size([2]),
    }
    obj["same"] = obj["w"]
    torch.save(obj, tmp_path / "f.pt")
    back = torch.load(tmp_path / "f.pt", map_location="cpu")
    assert torch.equal(back["w"], obj["w"]) and back["w"].requires_grad and back["same"] is back["w"]
    assert back["l"][0].tolist() == [0, 1] and back["d"] is torch.float16 and back["s"] == (2,)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_load_runs_no_code(tmp_path: Any) -> None:
    buffer = io.BytesIO()
    torch.save({"x": Evil()}, buffer)
    buffer.seek(0)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(buffer)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(RuntimeError, match="not a file written by"):
        torch.load(tmp_path / "junk")


def test_dlpack_both_ways() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    a = np.from_dlpack(x)
    assert np.shares_memory(a, x.numpy()) and x.__dlpack_device__() == (1, 0)
    y = torch.from_dlpack(np.arange(4.0))
    assert y.tolist() == [0, 1, 2, 3]
    with pytest.raises(BufferError):
        np.from_dlpack(torch.ones(1, requires_grad=True))


def test_array_protocol() -> None:
    x = torch.tensor([1.0, 2.0])
    assert np.shares_memory(np.asarray(x), x.numpy())
    assert np.asarray(x, dtype=np.float64).dtype == np.float64 and not np.shares_memory(
        np.array(x), x.numpy()
    )
    assert torch.as_tensor(np.ones(2)).dtype is torch.float64
    with pytest.raises(ValueError, match="negative"):
        torch.from_numpy(np.arange(3)[::-1])
    with pytest.raises(TypeError, match="expected np"):
        torch.from_numpy([1])


def test_creation() -> None:
    assert (
        torch.tensor([[1, 2], [3, 4]]).dtype is torch.int64 and torch.tensor([1, 2.0]).dtype is torch.float32
    )
    assert torch.tensor([True, 2]).dtype is torch.int64 and torch.tensor(1j).dtype is torch.complex64
    assert torch.tensor([torch.tensor(1.0), torch.tensor(2.0)]).tolist() == [1, 2]
    assert torch.tensor(np.ones(2)).dtype is torch.float64
    assert torch.eye(2, 3).tolist() == [[1, 0, 0], [0, 1, 0]] and torch.full((2,), True).dtype is torch.bool
    assert torch.arange(0, 1, 0.25).tolist() == [0, 0.25, 0.5, 0.75] and torch.linspace(0, 1, 3).tolist() == [
        0,
        0.5,
        1,
    ]
    with pytest.raises(ValueError, match="expected sequence of length 2 at dim 1"):
        torch.tensor([[1, 2], [3]])
    with pytest.raises(RuntimeError, match="negative dimension"):
        torch.zeros(-1)
    with pytest.raises(TypeError):
        torch.zeros(1.5)


def test_gradients_cross_numpy_scalars_and_lists() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (x * np.float32(2) + 1).sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_named_results() -> None:
    r = torch.tensor([[1.0, 5.0], [7.0, 2.0]]).max(1)
    assert r.values.tolist() == [5, 7] and r.indices.tolist() == [1, 0]
    v, i = r
    assert v is r.values and i is r[1]
    assert repr(r).startswith("weft.return_types.max(\nvalues=tensor([5., 7.])")


def test_typed_constructors() -> None:
    assert torch.FloatTensor([1, 2]).dtype is torch.float32 and torch.LongTensor([3]).tolist() == [3]
    assert torch.DoubleTensor(2, 3).shape == (2, 3)
    assert isinstance(torch.ones(1), torch.FloatTensor) and not isinstance(torch.ones(1), torch.LongTensor)


def test_complex_is_refused_where_numbers_must_be_ordered() -> None:
    z = torch.tensor([1j, 2.0])
    for fn in (torch.floor, torch.erf, torch.argmax, lambda z: z < z, lambda z: z.sort()):
        with pytest.raises((NotImplementedError, RuntimeError)):
            fn(z)


def test_out_arguments() -> None:
    a, out = torch.tensor([1.0, 2.0]), torch.empty(0)
    assert torch.add(a, a, out=out) is out and out.tolist() == [2, 4]
    values, index = torch.empty(0), torch.empty(0, dtype=torch.int64)
    torch.sort(torch.tensor([2.0, 1.0]), out=(values, index))
    assert values.tolist() == [1, 2] and index.tolist() == [1, 0]
    with pytest.raises(RuntimeError, match="automatic differentiation"):
        torch.exp(torch.ones(1, requires_grad=True), out=out)
    with pytest.raises(RuntimeError, match="can't be cast"):
        torch.exp(a, out=index)


def test_second_spellings_of_keywords() -> None:
    x = torch.arange(6.0).reshape(2, 3)
    assert x.sum(axis=0).tolist() == torch.sum(x, axis=0).tolist() == [3, 5, 7]
    assert x.mean(axis=1, keepdims=True).shape == (2, 1) and x.max(axis=1).values.tolist() == [2, 5]
    assert x.permute(dims=(1, 0)).shape == (3, 2) and x.reshape(shape=(3, 2)).shape == (3, 2)
    assert x.expand(size=(4, 2, 3)).shape == (4, 2, 3) and x.view(size=(6,)).shape == (6,)
    assert torch.flip(x, dims=(0,)).tolist() == [[3, 4, 5], [0, 1, 2]] and x.repeat(repeats=(2, 1)).shape == (
        4,
        3,
    )
    assert x.swapaxes(axis0=0, axis1=1).shape == (3, 2)
    with pytest.raises(TypeError):
        x.sum(nonsense=1)
