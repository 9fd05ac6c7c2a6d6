"""``weft.backends``: switches that scripts set; what they ask for does not apply to weft."""

from __future__ import annotations


class _Switches:
    """Settings that are kept and have no effect."""

    enabled = False
    benchmark = False
    deterministic = True
    allow_tf32 = False

    @staticmethod
    def is_available() -> bool:
        """Whether the backend can be used: never here."""
        return False

    @staticmethod
    def is_built() -> bool:
        return False


class _Cuda(_Switches):
    matmul = _Switches()


cudnn, mps, cuda, mkl, openmp, mkldnn = (
    _Switches(),
    _Switches(),
    _Cuda(),
    _Switches(),
    _Switches(),
    _Switches(),
)
