"""``weft.cuda``: what scripts ask before they choose a device. Eager tensors live on the CPU."""

from __future__ import annotations

from typing import Any


def is_available() -> bool:
    """False: eager tensors are held on the CPU."""
    return False


def device_count() -> int:
    """0: see :func:`is_available`."""
    return 0


def current_device() -> int:
    """RuntimeError: there is no current device."""
    raise RuntimeError("weft holds eager tensors on the CPU only; there is no current cuda device")


def synchronize(device: Any = None) -> None:
    """Nothing is pending on the CPU."""


def empty_cache() -> None:
    """No device memory is cached."""


def manual_seed(seed: int) -> None:
    """There is no device generator to seed."""


manual_seed_all = manual_seed


def is_bf16_supported() -> bool:
    return False


def is_initialized() -> bool:
    return False
