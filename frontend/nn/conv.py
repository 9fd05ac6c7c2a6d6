"""Convolution layers."""

from __future__ import annotations

import math
from typing import Any

from weft.creation import empty
from weft.nn import functional as F
from weft.nn import init
from weft.nn.module import Module
from weft.nn.parameter import Parameter
from weft.tensor import Tensor

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


def ntuple(value: Any, n: int) -> tuple[int, ...]:
    """An int, or a sequence of ``n``, as a tuple of ``n``."""
    if isinstance(value, (tuple, list)):
        return tuple(int(v) for v in value)
    return (int(value),) * n


class _Conv(Module):
    """What all convolution layers share. ``weight`` is [out, in / groups, *kernel] ([in, out / groups,
    *kernel] if transposed), uniform within 1 / sqrt(fan_in), as the bias.
    """

    rank = 2
    transposed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
        output_padding: Any = 0,
    ) -> None:
        super().__init__()
        n = self.rank
        self._check(in_channels, out_channels, groups, padding, stride, padding_mode)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = ntuple(kernel_size, n), ntuple(stride, n)
        self.padding = padding if isinstance(padding, str) else ntuple(padding, n)
        self.dilation, self.output_padding = ntuple(dilation, n), ntuple(output_padding, n)
        self.padding_mode = padding_mode
        channels = (
            (in_channels, out_channels // groups)
            if self.transposed
            else (out_channels, in_channels // groups)
        )
        self.weight = Parameter(empty(*channels, *self.kernel_size, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(empty(out_channels, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    @staticmethod
    def _check(in_: int, out: int, groups: int, padding: Any, stride: Any, mode: str) -> None:
        if groups <= 0:
            raise ValueError("groups must be a positive integer")
        if in_ % groups:
            raise ValueError("in_channels must be divisible by groups")
        if out % groups:
            raise ValueError("out_channels must be divisible by groups")
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f"Invalid padding string {padding!r}, should be one of {{'same', 'valid'}}")
        if padding == "same" and any(s != 1 for s in ntuple(stride, 1)):
            raise ValueError("padding='same' is not supported for strided convolutions")
        if mode not in PADDING_MODES:
            raise ValueError(
                f"padding_mode must be one of {set(PADDING_MODES)}, but got padding_mode='{mode}'"
            )

    def reset_parameters(self) -> None:
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = init.bound_of(self.weight)
            if bound:
                init.uniform_(self.bias, -bound, bound)

    def _convolve(self, input: Tensor, padding: Any) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.rank - 1]
        return conv(input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def forward(self, input: Tensor) -> Tensor:
        if self.padding_mode == "zeros":
            return self._convolve(input, self.padding)
        padded = F.pad(input, self._edges(), mode=self.padding_mode)
        return self._convolve(padded, (0,) * self.rank)

    def _edges(self) -> tuple[int, ...]:
        """The padding as ``F.pad`` takes it: last dimension first."""
        out: list[int] = []
        for i in reversed(range(self.rank)):
            if self.padding == "same":
                total = self.dilation[i] * (self.kernel_size[i] - 1)
                out += [total // 2, total - total // 2]
            else:
                p = 0 if self.padding == "valid" else int(self.padding[i])
                out += [p, p]
        return tuple(out)

    def extra_repr(self) -> str:
        zero, one = (0,) * self.rank, (1,) * self.rank
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        for name, default in (("padding", zero), ("dilation", one), ("output_padding", zero), ("groups", 1)):
            value = getattr(self, name)
            if value != default:
                parts.append(f"{name}={value}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join(parts)


class Conv1d(_Conv):
    """[N, C, L] (or [C, L]) -> [N, O, L']."""

    rank = 1


class Conv2d(_Conv):
    """[N, C, H, W] (or [C, H, W]) -> [N, O, H', W'].

    H' = (H + 2 padding - dilation (kernel - 1) - 1) // stride + 1.

    >>> import weft
    >>> Conv2d(1, 8, 3, padding=1)(weft.zeros(2, 1, 28, 28)).shape
    weft.Size([2, 8, 28, 28])
    """

    rank = 2


class Conv3d(_Conv):
    """[N, C, D, H, W] -> [N, O, D', H', W']."""

    rank = 3


class _ConvTranspose(_Conv):
    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ValueError(f'Only "zeros" padding mode is supported for {type(self).__name__}')
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,
            device,
            dtype,
            output_padding,
        )

    def forward(self, input: Tensor, output_size: Any = None) -> Tensor:
        extra = self.output_padding if output_size is None else self._output_padding(input, output_size)
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[self.rank - 1]
        return conv(
            input, self.weight, self.bias, self.stride, self.padding, extra, self.groups, self.dilation
        )

    def _output_padding(self, input: Tensor, output_size: Any) -> tuple[int, ...]:
        """The output padding that gives ``output_size`` (spatial)."""
        wanted = tuple(output_size)[-self.rank :]
        out = []
        for i, n in enumerate(input.shape[-self.rank :]):
            least = (n - 1) * self.stride[i] - 2 * int(self.padding[i])
            least += self.dilation[i] * (self.kernel_size[i] - 1) + 1
            if not least <= wanted[i] < least + self.stride[i]:
                raise ValueError(f"requested an output size of {list(wanted)}, which is out of range")
            out.append(wanted[i] - least)
        return tuple(out)


class ConvTranspose1d(_ConvTranspose):
    rank = 1


class ConvTranspose2d(_ConvTranspose):
    """[N, C, H, W] -> [N, O, H', W']: the gradient of a convolution with respect to its input."""

    rank = 2


class ConvTranspose3d(_ConvTranspose):
    rank = 3
