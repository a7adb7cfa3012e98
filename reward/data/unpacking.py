"""Open a file of rows, plain or compressed: `with open_text("pairs.jsonl.gz") as file: ...`

Its content says how it is compressed and encoded. What unpacks to far more than its size is refused
while it is read. Imports no torch.
"""

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from reward.data.files import DataError

# How compressed files begin.
GZIP = b"\x1f\x8b"
BZIP2 = b"BZh"
XZ = b"\xfd7zXZ\x00"
ZSTANDARD = b"\x28\xb5\x2f\xfd"
ZIP = b"PK\x03\x04"

# What reading a compressed file raises that is cut off or damaged.
DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, zipfile.BadZipFile)

# A compressed file may unpack to UNPACKED_FREELY bytes, and to more as long as that is at most
# MOST_TIMES its size. Files of rows unpack to 3 to 30 times their size.
UNPACKED_FREELY = 100_000_000
MOST_TIMES = 200
BLOCK = 1 << 16  # bytes that are unpacked at once

# A byte order mark -> the encoding. UTF-32 comes first, because its mark starts with UTF-16's.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


@dataclass
class ReadingMeter:
    """How far the reading of a file has come."""

    rows: int | None = None  # of the whole file, where the file says it
    file: BinaryIO | None = None  # the file as it lies on the disk
    size: int = 0  # of the file, in bytes

    def watch(self, file: BinaryIO, path: str) -> None:
        """Watch a file that is read from now on."""
        self.file = file
        self.size = os.path.getsize(path)

    def estimated_rows(self, rows_read: int) -> int | None:
        """How many rows the file has, judged by the bytes that `rows_read` rows took."""
        if self.rows is not None or self.file is None:
            return self.rows
        if self.file.closed:
            return rows_read
        position = self.file.tell()
        if not position:
            return None
        return max(rows_read, round(rows_read * self.size / position))


def open_bytes(path: str, meter: ReadingMeter | None = None) -> BinaryIO:
    """Open a file, plain or compressed, for reading. Its content says how it is compressed."""
    compression = compression_of(path)
    file = open(path, "rb")
    if meter is not None:
        meter.watch(file, path)
    if not compression:
        return file
    return io.BufferedReader(_Unpacked(_unpacked(file, path, compression), path), BLOCK)


def _unpacked(file: BinaryIO, path: str, compression: bytes) -> BinaryIO:
    """The unpacked bytes of a compressed file."""
    if compression == GZIP:
        return gzip.open(file)
    if compression == BZIP2:
        return bz2.open(file)
    if compression == XZ:
        return lzma.open(file)
    if compression == ZSTANDARD:
        return _open_zst(file)
    return _open_zip(file, path)


class _Unpacked(io.RawIOBase):
    """Unpacked bytes, of which no more are given than a file of rows can have.

    Args:
        unpacked: The bytes.
        path: The compressed file.
    """

    def __init__(self, unpacked: BinaryIO, path: str):
        self.unpacked = unpacked
        self.path = path
        self.most = max(UNPACKED_FREELY, MOST_TIMES * os.path.getsize(path))
        self.given = 0  # bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:
        """Fill the buffer. Raises DataError once too much was unpacked."""
        count = self.unpacked.readinto(buffer)
        self.given += count
        if self.given > self.most:
            raise DataError(
                f"{self.path}: it unpacks to more than {self.most:,} bytes, which is over "
                f"{MOST_TIMES} times its size and no usual file of rows; if you trust it, unpack "
                "it yourself and name the unpacked file"
            )
        return count

    def close(self) -> None:
        self.unpacked.close()
        super().close()


def open_text(
    path: str,
    newline: str | None = None,
    errors: str = "strict",
    meter: ReadingMeter | None = None,
) -> TextIO:
    """Open a text file, plain or compressed, for reading.

    It is UTF-8, unless a byte order mark says UTF-16 or UTF-32.

    Args:
        path: The file.
        newline: As in `open`.
        errors: As in `open`.
        meter: It is told how far the reading has come.
    """
    encoding = _encoding_of(path)
    return io.TextIOWrapper(
        open_bytes(path, meter), encoding=encoding, newline=newline, errors=errors
    )


def compression_of(path: str) -> bytes:
    """How a compressed file begins, as the constants above have it; empty for a plain one."""
    with open(path, "rb") as file:
        start = file.read(6)
    for compression in (GZIP, BZIP2, XZ, ZSTANDARD, ZIP):
        if start.startswith(compression):
            return compression
    return b""


def _open_zst(file: BinaryIO) -> BinaryIO:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(file, compression="zstd"))


def _open_zip(file: BinaryIO, path: str) -> BinaryIO:
    archive = zipfile.ZipFile(file)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise DataError(f"{path}: holds {len(names)} files; unpack it, and name one of them")
    try:
        return archive.open(names[0])
    except (RuntimeError, NotImplementedError) as error:  # a password, an unusual compression
        raise DataError(f"{path}: cannot be unpacked ({error}); unpack it first") from None


def _encoding_of(path: str) -> str:
    with open_bytes(path) as file:
        start = file.read(4)
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    if b"\x00" in start:
        raise DataError(
            f"{path}: a text file with zero bytes, as UTF-16 has them; save the file as UTF-8"
        )
    return "utf-8-sig"  # a byte order mark is left out if there is one
