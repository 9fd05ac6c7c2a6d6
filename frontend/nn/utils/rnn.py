"""Batches of sequences of different lengths, as ``torch.nn.utils.rnn``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from weft.creation import as_tensor, full, tensor
from weft.dtypes import int64
from weft.ops.index import index_select
from weft.ops.shape import stack
from weft.ops.sort import argsort, sort
from weft.tensor import Tensor


class _Packed(NamedTuple):
    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None
    unsorted_indices: Tensor | None


class PackedSequence(_Packed):
    """The steps of several sequences, one after another: ``batch_sizes[t]`` rows of ``data`` are step t.

    ``data`` is [sum of lengths, *], ``batch_sizes`` i64 [longest]. ``sorted_indices`` is the order, by
    falling length, in which the sequences lie, where they were given in another.
    """

    __slots__ = ()

    def __new__(
        cls, data: Tensor, batch_sizes: Tensor, sorted_indices: Tensor | None = None,
        unsorted_indices: Tensor | None = None,
    ) -> PackedSequence:  # fmt: skip
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """With ``data.to(...)``."""
        return PackedSequence(self.data.to(*args, **kwargs), *self[1:])

    def cpu(self) -> PackedSequence:
        return self.to("cpu")

    def double(self) -> PackedSequence:
        return PackedSequence(self.data.double(), *self[1:])

    def float(self) -> PackedSequence:
        return PackedSequence(self.data.float(), *self[1:])

    @property
    def is_cuda(self) -> bool:
        return self.data.is_cuda


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """The permutation that undoes this one; None for None."""
    return None if permutation is None else argsort(permutation)


def lengths_of(batch_sizes: Tensor) -> np.ndarray[Any, Any]:
    """The length of each sequence, in the order in which they lie."""
    sizes = batch_sizes.numpy()
    return (sizes[None, :] > np.arange(int(sizes[0]))[:, None]).sum(1)


def _rows(lengths: np.ndarray[Any, Any], total: int) -> np.ndarray[Any, Any]:
    """bool [total, batch]: the steps that each sequence has."""
    return np.arange(total)[:, None] < lengths[None, :]


def pack_padded_sequence(
    input: Tensor, lengths: Tensor | Sequence[int], batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Leave out the padding of ``input`` [time, batch, *] ([batch, time, *] with ``batch_first``).

    ``lengths`` are those of the sequences, falling unless ``enforce_sorted`` is False. RuntimeError for
    lengths that do not fit.

    >>> import weft
    >>> pack_padded_sequence(weft.tensor([[1, 2, 3], [4, 5, 0]]), [3, 2], batch_first=True).data
    tensor([1, 4, 2, 5, 3])
    """
    counts = as_tensor(lengths).to(dtype=int64)
    order = None
    if not enforce_sorted:
        counts, order = sort(counts, descending=True)
        input = index_select(input, 0 if batch_first else 1, order)
    sizes = counts.numpy()
    x = input.transpose(0, 1) if batch_first else input
    _check_lengths(sizes, x)
    keep = _rows(sizes, int(sizes[0]))
    flat = x.flatten(0, 1)[tensor(np.flatnonzero(keep.reshape(-1)))]
    return PackedSequence(flat, tensor(keep.sum(1)), order)


def _check_lengths(sizes: np.ndarray[Any, Any], x: Tensor) -> None:
    if sizes.ndim != 1 or len(sizes) != x.shape[1]:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {len(sizes)} "
            f"(batch_size={x.shape[1]})"
        )
    if len(sizes) == 0 or sizes.min() <= 0:
        raise RuntimeError("Length of all samples has to be greater than 0, but found an element in 'lengths'"
                           " that is <= 0")  # fmt: skip
    if (np.diff(sizes) > 0).any():
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass "
            "`enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this "
            "requirement if you do not need ONNX exportability."
        )
    if sizes[0] > x.shape[0]:
        raise RuntimeError(f"start (0) + length ({sizes[0]}) exceeds dimension size ({x.shape[0]}).")


def pad_packed_sequence(
    sequence: PackedSequence, batch_first: bool = False, padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The inverse of :func:`pack_padded_sequence`: the padded tensor and the i64 lengths.

    ValueError where ``total_length`` is less than the longest sequence.

    >>> import weft
    >>> x = weft.tensor([[1, 2], [3, 0]])
    >>> pad_packed_sequence(pack_padded_sequence(x, [2, 1], True), True)[0]
    tensor([[1, 2],
            [3, 0]])
    """
    if not isinstance(sequence, PackedSequence):
        raise TypeError(f"sequence must be a PackedSequence, not {type(sequence).__name__}")
    longest = len(sequence.batch_sizes)
    if total_length is not None and total_length < longest:
        raise ValueError(
            "Expected total_length to be at least the length of the longest sequence in input, but got "
            f"total_length={total_length} and max sequence length being {longest}"
        )
    lengths = lengths_of(sequence.batch_sizes)
    out = unpack(sequence, total_length or longest, padding_value)
    found = tensor(lengths)
    if sequence.unsorted_indices is not None:
        out = index_select(out, 1, sequence.unsorted_indices)
        found = found[sequence.unsorted_indices]
    return (out.transpose(0, 1) if batch_first else out), found


def unpack(sequence: PackedSequence, total: int, padding_value: float = 0.0) -> Tensor:
    """[total, batch, *] in the order in which the sequences lie."""
    data, lengths = sequence.data, lengths_of(sequence.batch_sizes)
    keep = _rows(lengths, total)
    shape = (keep.size, *data.shape[1:])
    out = full(shape, padding_value, dtype=data.dtype, device=data.device)
    places = tensor(np.flatnonzero(keep.reshape(-1)))
    return out.index_copy(0, places, data).unflatten(0, keep.shape)


def kept_steps(sequence: PackedSequence) -> Tensor:
    """bool [longest, batch]: the steps that each sequence has."""
    return tensor(_rows(lengths_of(sequence.batch_sizes), len(sequence.batch_sizes)))


def pad_sequence(
    sequences: Iterable[Tensor], batch_first: bool = False, padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:  # fmt: skip
    """Tensors [length_i, *] as one, padded: [longest, n, *], with ``batch_first`` [n, longest, *].

    >>> import weft
    >>> pad_sequence([weft.ones(3), weft.ones(1)], batch_first=True)
    tensor([[1., 1., 1.],
            [1., 0., 0.]])
    """
    if not isinstance(sequences, Iterable):
        raise RuntimeError(
            f"pad_sequence: Expected iterable for input sequences, but got arg of type: {type(sequences)}"
        )
    if padding_side not in ("left", "right"):
        raise RuntimeError(f"Expected padding_side to be one of left or right, but got {padding_side}")
    rows = tuple(sequences)
    if not rows:
        raise RuntimeError("received an empty list of sequences")
    longest = max(len(r) for r in rows)
    return stack([_padded(r, longest, padding_value, padding_side) for r in rows], 0 if batch_first else 1)


def _padded(x: Tensor, longest: int, value: float, side: str) -> Tensor:
    from weft.ops.padding import pad

    missing = longest - len(x)
    ends = (missing, 0) if side == "left" else (0, missing)
    return pad(x, (0, 0) * (x.ndim - 1) + ends, value=value)


def unpad_sequence(padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False) -> list[Tensor]:
    """The rows of a padded batch, each cut to its length."""
    x = padded_sequences if batch_first else padded_sequences.transpose(0, 1)
    return [row[: int(n)] for row, n in zip(x.unbind(0), lengths, strict=True)]


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Tensors [length_i, *], by falling length unless ``enforce_sorted`` is False, packed.

    >>> import weft
    >>> pack_sequence([weft.tensor([1, 2, 3]), weft.tensor([4])]).batch_sizes
    tensor([2, 1, 1])
    """
    lengths = [len(s) for s in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """The sequences, in the order in which they were given."""
    return unpad_sequence(*pad_packed_sequence(packed_sequences, batch_first=True), batch_first=True)
