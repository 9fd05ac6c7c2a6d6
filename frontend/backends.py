"""``weft.backends``: the switches of ``torch.backends``.

``cuda.matmul.allow_tf32`` and ``cudnn.allow_tf32`` decide whether products and convolutions of float32 on a
GPU may round their factors to TF32, which tensor cores multiply. Other switches are kept and change nothing:
every kernel is deterministic, is chosen by a cost model, not by trial, and adds in float32.

>>> import weft
>>> weft.set_float32_matmul_precision("high")
>>> weft.backends.cuda.matmul.allow_tf32
True
>>> weft.set_float32_matmul_precision("highest")
"""

from __future__ import annotations

from typing import Any

from weft.runtime.precision import switches

_matmul_precision = "highest"
_deterministic = 0  # 1: warn only, 2: errors


class _Backend:
    """A backend that weft does not use: its settings are kept."""

    enabled = False

    def is_available(self) -> bool:
        """Whether the backend can be used: never here."""
        return False

    def is_built(self) -> bool:
        return False


def _checked(value: Any) -> bool:
    if not isinstance(value, bool):
        raise RuntimeError(f"set_allow_tf32 expects a bool, but got {type(value).__name__}")
    return value


def _tf32(value: str) -> bool:
    if value not in ("ieee", "tf32", "none"):
        raise RuntimeError(f"Invalid precision: {value}; it is one of 'ieee', 'tf32', 'none'")
    return value == "tf32"


class _Matmul:
    """Matrix products on GPUs."""

    allow_fp16_reduced_precision_reduction = True
    allow_bf16_reduced_precision_reduction = True
    allow_fp16_accumulation = False

    @property
    def allow_tf32(self) -> bool:
        """Whether factors in float32 may be rounded to TF32; False at first."""
        return switches.now.matmul_tf32

    @allow_tf32.setter
    def allow_tf32(self, value: bool) -> None:
        set_float32_matmul_precision("high" if _checked(value) else "highest")

    @property
    def fp32_precision(self) -> str:
        """The same as ``"ieee"`` or ``"tf32"``."""
        return "tf32" if self.allow_tf32 else "ieee"

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        self.allow_tf32 = _tf32(value)


class _Convolutions:
    """Convolutions on GPUs, and the settings of cuDNN."""

    enabled = True
    benchmark = False
    deterministic = False
    benchmark_limit = 10

    def is_available(self) -> bool:
        """Whether cuDNN can be used: never here, nor is it needed."""
        return False

    def version(self) -> None:
        """The version of cuDNN: there is none."""

    @property
    def allow_tf32(self) -> bool:
        """Whether factors in float32 may be rounded to TF32; True at first."""
        return switches.now.conv_tf32

    @allow_tf32.setter
    def allow_tf32(self, value: bool) -> None:
        switches.allow(conv_tf32=_checked(value))

    @property
    def fp32_precision(self) -> str:
        """The same as ``"ieee"`` or ``"tf32"``."""
        return "tf32" if self.allow_tf32 else "ieee"

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        self.allow_tf32 = _tf32(value)

    @property
    def conv(self) -> _Convolutions:
        return self


class _Cuda(_Backend):
    def __init__(self) -> None:
        self.matmul = _Matmul()

    def is_built(self) -> bool:
        """Code for GPUs can always be generated."""
        return True


def set_float32_matmul_precision(precision: str) -> None:
    """How exact products of float32 matrices on a GPU are: ``"highest"`` (float32), ``"high"`` or
    ``"medium"`` (factors rounded to TF32). On the CPU they are always exact. RuntimeError for other names."""
    global _matmul_precision
    if precision not in ("highest", "high", "medium"):
        raise RuntimeError(
            f"{precision} is not one of 'highest', 'high', or 'medium'; the current choice is "
            f"'{_matmul_precision}'"
        )
    _matmul_precision = precision
    switches.allow(matmul_tf32=precision != "highest")


def get_float32_matmul_precision() -> str:
    """What :func:`set_float32_matmul_precision` was given last; ``"highest"`` at first."""
    return _matmul_precision


def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
    """Ask for operations that give the same bits in every run. All of them do, on GPUs, too (scatters add in
    program order), so the choice is only kept."""
    global _deterministic
    _deterministic = 0 if not mode else 1 if warn_only else 2


def are_deterministic_algorithms_enabled() -> bool:
    """Whether :func:`use_deterministic_algorithms` was asked for."""
    return _deterministic > 0


def is_deterministic_algorithms_warn_only_enabled() -> bool:
    return _deterministic == 1


def set_deterministic_debug_mode(debug_mode: int | str) -> None:
    """The same by ``"default"``, ``"warn"`` or ``"error"``, or their numbers. RuntimeError for others."""
    global _deterministic
    names = ("default", "warn", "error")
    number = names.index(debug_mode) if debug_mode in names else debug_mode
    if number not in (0, 1, 2):
        raise RuntimeError(
            f"invalid value of debug_mode, expected one of `default`, `warn`, `error`, 0, 1, 2, but got "
            f"{debug_mode}"
        )
    _deterministic = int(number)


def get_deterministic_debug_mode() -> int:
    return _deterministic


cuda, cudnn = _Cuda(), _Convolutions()
mps, mkl, openmp, mkldnn, xeon = (_Backend() for _ in range(5))
