"""One shard on disk, as Zarr v3's sharding codec has it: encoded inner chunks, then an index and its crc32c.

The index is a pair (offset, bytes) a chunk; a chunk that was never written has both at 2**64 - 1 and reads as zeros.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

from unicoord_atlas.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

MISSING = np.iinfo(np.uint64).max
_CRC_BYTES = 4


def index_bytes(num_chunks: int) -> int:
    """Size of the index with its checksum."""
    return 16 * num_chunks + _CRC_BYTES


def encode_index(chunks_c2: NDArray[np.uint64]) -> bytes:
    """Index of a shard: (chunks, 2) offsets and lengths, then the checksum."""
    body = np.ascontiguousarray(chunks_c2, dtype="<u8").tobytes()
    checksum: int = google_crc32c.value(body)
    return body + checksum.to_bytes(_CRC_BYTES, "little")


def decode_index(tail: bytes, file_bytes: int, where: str) -> NDArray[np.uint64]:
    """(chunks, 2) offsets and lengths, checked; DataError begins with `where`."""
    body, checksum = tail[:-_CRC_BYTES], int.from_bytes(tail[-_CRC_BYTES:], "little")
    if google_crc32c.value(body) != checksum:
        raise DataError(f"{where}: the shard index has a wrong checksum; restore the file or ingest again")
    chunks_c2 = np.frombuffer(body, dtype="<u8").reshape(-1, 2)
    written = chunks_c2[chunks_c2[:, 0] != MISSING]
    if len(written) and int(written.sum(axis=1).max()) > file_bytes - len(tail):
        raise DataError(f"{where}: the shard index points past the end of the file; restore it or ingest again")
    return chunks_c2


def read_index(path: Path, num_chunks: int, where: str) -> NDArray[np.uint64]:
    """Read and check the index of a shard file; DataError begins with `where`, which names the shard and its rows."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            tail_bytes = index_bytes(num_chunks)
            if size < tail_bytes:
                raise DataError(f"{where}: the file is cut off at {size} bytes; restore it or ingest again")
            file.seek(size - tail_bytes)
            return decode_index(file.read(tail_bytes), size, where)
    except FileNotFoundError:
        raise DataError(f"{where}: the file is missing; restore it or ingest again") from None
