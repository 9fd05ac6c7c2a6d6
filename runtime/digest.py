"""The hash that names cache entries and guards their contents: BLAKE2b, 256 bits.

``hashlib`` loads OpenSSL, half of a warm start of a small function; BLAKE2 is part of Python itself.
"""

from __future__ import annotations

try:
    from _blake2 import blake2b  # what hashlib.blake2b is
except ImportError:
    from hashlib import blake2b

SIZE = 32


def digest(data: bytes) -> bytes:
    """The hash of some bytes."""
    return blake2b(data, digest_size=SIZE).digest()
