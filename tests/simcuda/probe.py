"""Talks to the simulated runtime from a program that runs on it."""

from __future__ import annotations

import ctypes
import math

_library = ctypes.CDLL(None)
_library.simcuda_get.restype = ctypes.c_double
_library.simcuda_set.argtypes = [ctypes.c_char_p, ctypes.c_double]
_library.simcuda_kernels.restype = ctypes.c_int64


def get(name: str) -> float:
    """Read a counter of this process, or a setting."""
    value = _library.simcuda_get(name.encode())
    if math.isnan(value):
        raise KeyError(name)
    return value


def put(name: str, value: float) -> None:
    """Change a setting."""
    if _library.simcuda_set(name.encode(), value):
        raise KeyError(name)


def kernels(part: str) -> int:
    """Launches so far of kernels whose mangled name holds `part`."""
    return _library.simcuda_kernels(part.encode())
