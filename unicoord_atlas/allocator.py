"""Freed memory: kept by the process while it trains, given back to the kernel between the phases of a job.

Gradients and activations of hundreds of MiB are freed and made again in every step; the tensors of one step are those
of the next.  By default the C library gives such blocks back to the kernel, which has to clear each of their pages when
they are asked for again: a tenth of a step on CPU.
"""

from __future__ import annotations

import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8  # malloc.h of glibc
_TRIM_BYTES, _PAD_BYTES = 2**31 - 1, 64 * 2**20


def share_one_heap() -> bool:
    """Tell glibc's allocator to serve all threads from one heap; False where the C library is another one.

    By default it makes one for each, up to eight times the cores: what one thread frees no other uses, and what is
    given back leaves gaps in all.  For jobs, whose threads work on large arrays and seldom ask for memory; before there
    are threads.  MALLOC_ARENA_MAX in the environment has the last word.
    """
    if platform.libc_ver()[0] != "glibc" or "MALLOC_ARENA_MAX" in os.environ:
        return False
    return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))


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
    import pyarrow as pa  # late: a command that only prints needs none of it

    pa.default_memory_pool().release_unused()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
