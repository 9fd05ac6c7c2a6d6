"""Random numbers: Philox bits, a counter-based generator, turned into distributions by ordinary operations.

A generator's state is a tensor ``[seed, offset]``, advanced in place: in capture it is an input and output of
the graph like any other tensor, so that eager and compiled programs draw the same bits. Source of the
generator: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from weft.autograd.grad_mode import no_grad
from weft.composite import composite
from weft.creation import constant, shape_of_args
from weft.devices import put, usable
from weft.dispatch import apply, at_hand, interpreter, wrap
from weft.dtypes import as_device, as_dtype, get_default_dtype, type_name
from weft.eager import kernels, switch
from weft.ir import prims as P
from weft.ir import types as T
from weft.ir.prims.base import _NUMPY, interpreting
from weft.ir.types import CPU, Device, DType
from weft.ops.common import as_tensor, broadcast_shapes, broadcast_to, convert, shape_of
from weft.runtime import buffers
from weft.tensor import Tensor
from weft.views import check_inplace, write_

_MASK = 2**64 - 1
_MANY = 1 << 15  # words that are worth a kernel
_FAR = 1 << 62  # an offset after which a sum may wrap


class _Seeds:
    """The seed that was set last, from which the generators of other devices start."""

    last = 67280421310721


_seeds = _Seeds()


class Generator:
    """A stream of random numbers.

    >>> g = Generator().manual_seed(7)
    >>> g.initial_seed()
    7
    """

    def __init__(self, device: Any = "cpu") -> None:
        self.device = as_device(device)
        self._state = wrap(put(np.array([0, 0], np.int64), self.device))
        self.manual_seed(_seeds.last)

    def manual_seed(self, seed: int) -> Generator:
        """Start the stream of this seed; returns the generator."""
        value = int(seed)
        if not -(2**63) <= value <= _MASK:
            raise RuntimeError(f"Overflow when unpacking long: seed {seed} does not fit in 64 bits")
        signed = np.array([value & _MASK, 0], np.uint64).view(np.int64)
        with no_grad():
            write_(self._state, constant(signed, self.device) if interpreter().recording else wrap(signed))
        return self

    def seed(self) -> int:
        """Seed from the operating system; returns the seed."""
        value = int.from_bytes(os.urandom(8), "little")
        self.manual_seed(value)
        return value

    def initial_seed(self) -> int:
        return int(self._state._array("initial_seed()")[0]) & _MASK

    def get_state(self) -> Tensor:
        """A copy of the state, for :meth:`set_state`."""
        return wrap(np.array(self._state._array("get_state()")))

    def set_state(self, new_state: Tensor) -> Generator:
        """Go on from a state. RuntimeError for a tensor that is no state."""
        if not isinstance(new_state, Tensor) or new_state.dtype is not T.i64 or shape_of(new_state) != (2,):
            raise RuntimeError("RNG state must be an int64 tensor of two elements, as get_state returns it")
        with no_grad():
            write_(self._state, new_state.detach().to(self.device))
        return self

    def clone_state(self) -> Generator:
        return Generator(self.device).set_state(self.get_state())


default_generator = Generator()
_defaults: dict[Device, Generator] = {CPU: default_generator}


def default_generator_of(device: Device) -> Generator:
    """The generator from which numbers on a device are drawn where none is given."""
    found = _defaults.get(device)
    if found is None or not usable(found._state._data):
        with interpreting(_NUMPY):  # it outlives a capture that is the first to draw from it
            found = _defaults[device] = Generator(device)
    return found


def defaults() -> list[Generator]:
    """The default generators of all devices that have drawn numbers and that this process can use."""
    return [g for g in _defaults.values() if usable(g._state._data)]


def _drawing(generator: Generator | None, device: Device) -> Generator:
    """The generator to draw from for a device. RuntimeError for one of another device."""
    if generator is None:
        return default_generator_of(device)
    if generator.device.type != device.type:
        raise RuntimeError(
            f"Expected a '{device.type}' device type for generator but found '{generator.device.type}'"
        )
    return generator


def manual_seed(seed: int) -> Generator:
    """Seed the default generators of all devices; returns that of the CPU."""
    default_generator.manual_seed(seed)
    _seeds.last = int(seed)
    for g in defaults():
        g.manual_seed(seed)
    return default_generator


def seed() -> int:
    """Seed the default generator from the operating system."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default generator."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The state of the default generator."""
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Set the state of the default generator."""
    default_generator.set_state(new_state)


class fork_rng:
    """Context manager: the default generator goes on afterwards as if nothing had been drawn."""

    def __init__(self, devices: Any = None, enabled: bool = True, **kw: Any) -> None:
        self.enabled = enabled

    def __enter__(self) -> None:
        self.saved = [(g, g.get_state()) for g in defaults()]

    def __exit__(self, *exc: Any) -> None:
        if self.enabled:
            for g, state in self.saved:
                g.set_state(state)


# -- bits and distributions ---------------------------------------------------------------------------------


def bits(shape: tuple[int, ...], generator: Generator | None) -> Tensor:
    """Random u32 words; advances the generator by one block for every four words."""
    state, n = (generator or default_generator)._state, math.prod(shape)
    words = None
    if n >= _MANY and switch.on and type(state._data) is np.ndarray and interpreter() is _NUMPY:
        words = kernels.random_words(state._data, n)
    out = apply(P.random_bits_p, state, shape=shape) if words is None else wrap(words.reshape(shape))
    _advance(state, n)
    return out


def drawn(n: int, device: Device = CPU) -> Tensor:
    """The state of the default generator of a device, which goes on as if ``n`` words had been drawn."""
    state = default_generator_of(device)._state
    with no_grad():
        before = apply(P.copy_p, state)
    _advance(state, n)
    return before


def _advance(state: Tensor, n: int) -> None:
    blocks, a = -(-n // 4), state._data
    if type(a) is np.ndarray and interpreter() is _NUMPY and a[1] < _FAR:
        a[1] += blocks
        state._vc[0] += 1
        return
    with no_grad():
        step = constant(np.array([0, blocks], np.int64), state.device)
        write_(state, apply(P.add_p, state, step))


def _narrow(words: Tensor, shift: int) -> Tensor:
    amount = broadcast_to(as_tensor(shift, T.u32), shape_of(words))
    return apply(P.shr_p, words, amount)


def uniform(shape: tuple[int, ...], dtype: DType, generator: Generator | None) -> Tensor:
    """Uniform in [0, 1), as many random bits as the dtype has significant ones."""
    if dtype.is_complex:
        part = T.f64 if dtype is T.c128 else T.f32
        return apply(P.complex_p, uniform(shape, part, generator), uniform(shape, part, generator))
    if not dtype.is_floating_point:
        raise RuntimeError(f'"uniform" not implemented for {dtype.long_name}')
    if dtype is T.f64:
        words = bits((2, *shape), generator)
        high = convert(_narrow(words[0], 5), T.f64)
        low = convert(_narrow(words[1], 6), T.f64)
        return (high * 67108864.0 + low) * (1.0 / 9007199254740992.0)
    if math.prod(shape) < _MANY:
        return _composed(_uniform_of, shape, generator, dtype)
    return _uniform_from(bits(shape, generator), dtype)


@composite
def _uniform_of(state: Tensor, shape: tuple[int, ...], dtype: DType) -> Tensor:
    return _uniform_from(apply(P.random_bits_p, state, shape=shape), dtype)


def _uniform_from(words: Tensor, dtype: DType) -> Tensor:
    digits = {T.f32: 24, T.f16: 11, T.bf16: 8}[dtype]
    return convert(_narrow(words, 32 - digits), dtype) * 2.0**-digits


def _composed(make: Any, shape: tuple[int, ...], generator: Generator | None, *options: Any) -> Tensor:
    """What one composition makes of the next words of a generator and of its state's device."""
    state, n = (generator or default_generator)._state, math.prod(shape)
    out = make(state, shape, *options)
    _advance(state, n)
    return out


def normal_values(shape: tuple[int, ...], dtype: DType, generator: Generator | None) -> Tensor:
    """Standard normal numbers by the Box-Muller transform.

    The transform is computed in float64 whatever the dtype, so that the last bits in which numpy's and the
    compiler's functions differ do not reach a narrower result. For float64 it is one primitive.
    """
    if dtype.is_complex:
        part = T.f64 if dtype is T.c128 else T.f32
        both = normal_values((2, *shape), part, generator) * math.sqrt(0.5)
        return apply(P.complex_p, both[0].contiguous(), both[1].contiguous())
    if not dtype.is_floating_point:
        raise RuntimeError(f'"normal_kernel_cpu" not implemented for {dtype.long_name}')
    if dtype is T.f64:
        u = uniform((2, *shape), T.f64, generator)
        return _normal_of_uniform(u)
    if 2 * math.prod(shape) < _MANY:
        return _composed(_normal_of, (2, *shape), generator, dtype)
    return _normal_from(bits((2, *shape), generator), dtype)


@composite
def _normal_of_uniform(u: Tensor) -> Tensor:
    return apply(P.box_muller_p, 1.0 - u[0], u[1])


def _box_muller(first: Tensor, second: Tensor) -> Tensor:
    radius = (first.log() * -2.0).sqrt()
    return radius * (second * (2 * math.pi)).cos()


@composite
def _normal_of(state: Tensor, shape: tuple[int, ...], dtype: DType) -> Tensor:
    return _normal_from(apply(P.random_bits_p, state, shape=shape), dtype)


def _normal_from(words: Tensor, dtype: DType) -> Tensor:
    wide = convert(words, T.f64)
    return convert(_box_muller((wide[0] + 1.0) * 2.0**-32, wide[1] * 2.0**-32), dtype)


def _finish(t: Tensor, requires_grad: bool) -> Tensor:
    if type(t._data) is np.ndarray:
        t = wrap(buffers.aligned(t._data, t.dtype))
    return t.requires_grad_(True) if requires_grad else t


def rand(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    **kw: Any,
) -> Tensor:
    """Uniform numbers in [0, 1) of a shape."""
    generator = _drawing(generator, as_device(device))
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    with no_grad():
        t = uniform(shape_of_args(size or (kw.get("size", ()),)), d, generator)
    return _finish(t, requires_grad)


def randn(
    *size: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    **kw: Any,
) -> Tensor:
    """Standard normal numbers of a shape."""
    generator = _drawing(generator, as_device(device))
    d = as_dtype(dtype) if dtype is not None else get_default_dtype()
    with no_grad():
        t = normal_values(shape_of_args(size or (kw.get("size", ()),)), d, generator)
    return _finish(t, requires_grad)


def _integers(
    low: int, high: int, shape: tuple[int, ...], dtype: DType, generator: Generator | None
) -> Tensor:
    span = high - low
    if span <= 0:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    words = shape if span <= 2**32 else (2, *shape)
    if math.prod(words) < _MANY:
        return _composed(_integers_of, words, generator, low, span, dtype)
    return _integers_from(bits(words, generator), low, span, dtype)


@composite
def _integers_of(state: Tensor, shape: tuple[int, ...], low: int, span: int, dtype: DType) -> Tensor:
    return _integers_from(apply(P.random_bits_p, state, shape=shape), low, span, dtype)


def _integers_from(words: Tensor, low: int, span: int, dtype: DType) -> Tensor:
    value = convert(words, T.i64)
    if span > 2**32:
        value = (value[0] & 0x3FFFFFFF) * 2**32 + value[1]
    value = value % span if span != 2**32 else value
    return convert(value + low if low else value, dtype)


def randint(
    *args: Any,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    **kw: Any,
) -> Tensor:
    """``randint(high, size)`` or ``randint(low, high, size)``: integers in [low, high)."""
    generator = _drawing(generator, as_device(device))
    args = (*args, *(kw[k] for k in ("low", "high", "size") if k in kw))
    if len(args) == 2:
        args = (0, *args)
    low, high, size = args
    d = as_dtype(dtype) if dtype is not None else T.i64
    with no_grad():
        t = _integers(int(low), int(high), shape_of_args((size,)), d, generator)
    return _finish(t, requires_grad)


def randperm(
    n: int,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """A random permutation of 0 to n - 1: the order of n random words."""
    generator = _drawing(generator, as_device(device))
    if n < 0:
        raise RuntimeError(f"n must be non-negative, got {n}")
    with no_grad():
        if n < _MANY:
            order = _composed(_order_of, (n,), generator)
        else:
            order = _order_from(bits((n,), generator))
        t = convert(order, as_dtype(dtype) if dtype is not None else T.i64)
    return _finish(t, requires_grad)


@composite
def _order_of(state: Tensor, shape: tuple[int, ...]) -> Tensor:
    return _order_from(apply(P.random_bits_p, state, shape=shape))


def _order_from(words: Tensor) -> Tensor:
    return apply(P.sort_p, convert(words, T.i64), axis=0, descending=False)[1]


def rand_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """As rand, with the shape, dtype and device of ``input``."""
    place = input.device if device is None else device
    return rand(
        tuple(input.shape), dtype=dtype or input.dtype, device=place, requires_grad=requires_grad
    )


def randn_like(
    input: Tensor, *, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """As randn, with the shape, dtype and device of ``input``."""
    place = input.device if device is None else device
    return randn(
        tuple(input.shape), dtype=dtype or input.dtype, device=place, requires_grad=requires_grad
    )


def randint_like(
    input: Tensor, *args: int, dtype: Any = None, device: Any = None, requires_grad: bool = False, **kw: Any
) -> Tensor:
    """As randint, with the shape, dtype and device of ``input``."""
    return randint(
        *args,
        tuple(input.shape),
        dtype=dtype or input.dtype,
        device=input.device if device is None else device,
        requires_grad=requires_grad,
        **{k: v for k, v in kw.items() if k in ("low", "high")},
    )


def bernoulli(input: Tensor, p: float | None = None, *, generator: Generator | None = None) -> Tensor:
    """One with probability ``input`` (elementwise), else zero, in the dtype of ``input``."""
    if not input.dtype.is_floating_point and p is None:
        raise RuntimeError(f'"bernoulli_tensor_cpu_p_" not implemented for {input.dtype.long_name}')
    generator = _drawing(generator, input.device)
    with no_grad():
        wide = input.dtype if input.dtype in (T.f32, T.f64) else T.f32
        u = uniform(shape_of(input), wide, generator)
        return convert(u < (input.to(wide) if p is None else p), input.dtype)


def normal(
    mean: Any,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Generator | None = None,
    dtype: Any = None,
    device: Any = None,
) -> Tensor:
    """Normal numbers of the means and deviations given (tensors or numbers)."""
    tensors = [x for x in (mean, std) if isinstance(x, Tensor)]
    shape = shape_of_args((size,)) if size is not None else broadcast_shapes(*(shape_of(x) for x in tensors))
    d = as_dtype(dtype) if dtype is not None else tensors[0].dtype if tensors else get_default_dtype()
    place = tensors[0].device if tensors else as_device(device)
    with no_grad():
        return normal_values(shape, d, _drawing(generator, place)) * std + mean


def poisson(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Poisson counts of the rates given, by inversion of the distribution function (rates up to a few
    hundred).
    """
    generator = _drawing(generator, input.device)
    with no_grad():
        rate = input.to(T.f64)
        top = int(rate.max().item() + 12 * math.sqrt(rate.max().item() + 1) + 12) if input.numel() else 1
        k = constant(np.arange(top, dtype=np.float64), input.device)
        logs = k * rate.unsqueeze(-1).log() - rate.unsqueeze(-1) - (k + 1).lgamma()
        below = logs.exp().cumsum(-1)
        u = uniform(shape_of(input), T.f64, generator)
        return convert((below < u.unsqueeze(-1)).sum(-1), input.dtype)


def _check_weights(weights: Tensor, sums: bool) -> None:
    """The errors of torch, whose words depend on the algorithm: by running ``sums`` or by a race."""
    a = at_hand(weights)
    if a is None or not a.size:
        return
    a = a.astype(np.float64)
    if not (np.isfinite(a).all() and a.min() >= 0):
        if not sums:
            raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
        which = "= infinity or NaN" if a.min() >= 0 else "< 0"
        raise RuntimeError(f"invalid multinomial distribution (encountering probability entry {which})")
    if not a.sum(-1).all():
        raise RuntimeError("invalid multinomial distribution (sum of probabilities <= 0)")


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Indices drawn with the weights of each row. Without replacement by the exponential race.

    RuntimeError for weights that are negative or not finite and for rows that add up to 0, where they are at
    hand.
    """
    if input.ndim not in (1, 2):
        raise RuntimeError("prob_dist must be 1 or 2 dim")
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            f"multinomial only supports floating-point dtypes for input, got: {type_name(input.dtype)}"
        )
    if num_samples <= 0:
        raise RuntimeError("cannot sample n_sample <= 0 samples")
    if not replacement and num_samples > shape_of(input)[-1]:
        raise RuntimeError("cannot sample n_sample > prob_dist.size(-1) samples without replacement")
    _check_weights(input, replacement and num_samples > 1)
    generator = _drawing(generator, input.device)
    with no_grad():
        p = input.detach().to(T.f64)
        lead = shape_of(p)[:-1]
        if not replacement:
            e = -(1.0 - uniform(shape_of(p), T.f64, generator)).log()
            return (p / e.clamp(min=1e-300)).topk(num_samples, -1)[1]
        edges = p.cumsum(-1)
        u = uniform((*lead, num_samples), T.f64, generator) * edges[..., -1:]
        return (edges.unsqueeze(-2) <= u.unsqueeze(-1)).sum(-1).clamp(max=shape_of(p)[-1] - 1)


# -- in-place -----------------------------------------------------------------------------------------------


def _store(x: Tensor, generator: Generator | None, make: Callable[[Generator], Tensor]) -> Tensor:
    check_inplace(x)
    with no_grad():
        value = make(_drawing(generator, x.device))
    return write_(x, convert(value, x.dtype))


def uniform_(
    self: Tensor, a: float = 0.0, b: float = 1.0, *, generator: Generator | None = None, **kw: Any
) -> Tensor:
    """Fill with uniform numbers in [a, b)."""
    a, b = kw.get("from", a), kw.get("to", b)
    if a > b:
        raise RuntimeError(f"uniform_ expects to return a [from, to) range, but found from={a} > to={b}")
    return _store(self, generator, lambda g: uniform(shape_of(self), self.dtype, g) * (b - a) + a)


def normal_(
    self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    """Fill with normal numbers."""
    if std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {std}")
    return _store(self, generator, lambda g: normal_values(shape_of(self), self.dtype, g) * std + mean)


def bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Fill with ones (with probability p) and zeros."""
    return _store(self, generator, lambda g: uniform(shape_of(self), T.f32, g) < p)


def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Fill with exponential numbers of rate ``lambd``."""
    return _store(self, generator, lambda g: (1.0 - uniform(shape_of(self), self.dtype, g)).log() / -lambd)


def log_normal_(
    self: Tensor, mean: float = 1.0, std: float = 2.0, *, generator: Generator | None = None
) -> Tensor:
    return _store(
        self, generator, lambda g: (normal_values(shape_of(self), self.dtype, g) * std + mean).exp()
    )


def cauchy_(
    self: Tensor, median: float = 0.0, sigma: float = 1.0, *, generator: Generator | None = None
) -> Tensor:
    return _store(
        self,
        generator,
        lambda g: ((uniform(shape_of(self), self.dtype, g) - 0.5) * math.pi).tan() * sigma + median,
    )


def geometric_(self: Tensor, p: float, *, generator: Generator | None = None) -> Tensor:
    return _store(
        self, generator, lambda g: ((1.0 - uniform(shape_of(self), T.f32, g)).log() / math.log1p(-p)).ceil()
    )


def random_(
    self: Tensor, low: int = 0, high: int | None = None, *, generator: Generator | None = None
) -> Tensor:
    """Fill with integers in [low, high); of one argument in [0, low)."""
    if high is None and low:
        low, high = 0, low
    top = high if high is not None else _largest(self.dtype)
    return _store(self, generator, lambda g: _integers(low, top, shape_of(self), T.i64, g))


def _largest(d: DType) -> int:
    if d.is_integer:
        return min(int(np.iinfo(d.np).max), 2**62)
    return 2 if d is T.bool_ else {T.f32: 2**24, T.f64: 2**53, T.f16: 2**11, T.bf16: 2**8}[d]


IN_PLACE = {
    "uniform_": uniform_,
    "normal_": normal_,
    "bernoulli_": bernoulli_,
    "exponential_": exponential_,
    "log_normal_": log_normal_,
    "cauchy_": cauchy_,
    "geometric_": geometric_,
    "random_": random_,
    "bernoulli": bernoulli,
    "multinomial": multinomial,
}
