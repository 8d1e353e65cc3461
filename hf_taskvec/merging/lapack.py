"""Part of a symmetric matrix's spectrum by LAPACK's `dsyevr`, which computes no more eigenvectors than are wanted.

`scipy.linalg.eigh` calls the same routine and holds Python's lock meanwhile, so that threads with a matrix each wait
for one another. SciPy exports its LAPACK to Cython; from there ctypes calls it without the lock.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np

_WORK = 70  # float64 of workspace per row: 6, and 64 for blocks
_TYPES = "char char char int d int d d int int d int d d int int d int int int int"


def largest_eigenpairs(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The `rank` largest eigenvalues of a symmetric float64 matrix (n, n), ascending, and their vectors (n, rank).

    Raises:
        numpy.linalg.LinAlgError: If LAPACK does not converge.
    """
    routine = load()
    if routine is None:
        values, vectors = np.linalg.eigh(matrix)
        return values[-rank:], vectors[:, -rank:]
    size = len(matrix)
    destroyed = np.array(matrix, dtype=np.float64, order="C")  # the routine overwrites it
    values, vectors = np.empty(size), np.empty((rank, size))  # rows, which Fortran reads as columns
    support, integers, work = np.empty(2 * rank, np.intc), np.empty(10 * size, np.intc), np.empty(_WORK * size)
    n, first, unused, tolerance = _int(size), _int(size - rank + 1), np.zeros(1), np.zeros(1)
    count, info = _int(0), _int(0)
    inputs = [b"V", b"I", b"L", n, destroyed, n, unused, unused, first, n, tolerance]
    outputs = [count, values, vectors, n, support]
    routine(*inputs, *outputs, work, _int(work.size), integers, _int(integers.size), info)
    if info[0] != 0 or count[0] != rank:
        raise np.linalg.LinAlgError(f"dsyevr found {count[0]} of {rank} eigenvalues (info {info[0]})")
    return values[:rank], vectors.T


@functools.cache
def load() -> Callable[..., None] | None:
    """The routine, which takes bytes and arrays; `None` if this SciPy's has another signature.

    The first call loads SciPy's LAPACK: a limit on the threads of libraries reaches only those that are loaded by then.
    """
    from scipy.linalg import cython_lapack

    capsule = cython_lapack.__pyx_capi__["dsyevr"]
    name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))(capsule)
    address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )(capsule, name)
    types = name.decode().removeprefix("void (").removesuffix(")").split(", ")
    if " ".join(kind.removesuffix(" *").rpartition("_")[2] for kind in types) != _TYPES:
        return None
    pointers = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(types))(address)
    return lambda *values: pointers(*(v.ctypes if isinstance(v, np.ndarray) else v for v in values))


def _int(value: int) -> np.ndarray:
    return np.array([value], np.intc)
