"""Freed memory: kept by the process while it trains, given back to the kernel between the phases of a job.

Gradients and activations of hundreds of MiB are freed and made again in every step; the tensors of one step are those
of the next.  By default the C library gives such blocks back to the kernel, which has to clear each of their pages when
they are asked for again: a tenth of a step on CPU.
"""

from __future__ import annotations

import ctypes
import platform

import pyarrow as pa

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # malloc.h of glibc
_TRIM_BYTES, _PAD_BYTES = 2**31 - 1, 64 * 2**20


def keep_freed_memory() -> bool:
    """Tell glibc's allocator to reuse large blocks; False where the C library is another one."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all([mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES), mallopt(_M_TOP_PAD, _PAD_BYTES)])


def give_back_freed_memory() -> None:
    """Hand to the kernel what is free, between two phases of a job: each would keep what it took at its peak.

    Arrow's pool, and the C library's where that is glibc.
    """
    pa.default_memory_pool().release_unused()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
