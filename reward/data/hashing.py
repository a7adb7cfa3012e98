"""Hashes that are the same on every machine: of texts, with numbers in [0, 1), and of files.

A hash of the text decides which split a pair belongs to, and which pairs exchange their answers. So
neither depends on the order of the rows, the seed, the number of processes, or rows that are added
later.
"""

import hashlib
from pathlib import Path

import numpy as np

# Each use of hash_fraction has a salt of its own. A change would move rows between splits.
TEST_SALT = 1
VALIDATION_SALT = 2
MISMATCH_SALT = 3

ENDS = 64 * 1024  # bytes at each end of a weights file


def text_key(*texts: str) -> int:
    """A signed 64-bit hash of the texts."""
    joined = "\x1e".join(texts).encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(joined, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def hash_fraction(keys: np.ndarray, salt: int) -> np.ndarray:
    """A number in [0, 1) for each key, by splitmix64.

    Args:
        keys: (n,) int64, of `text_key`.
        salt: Numbers of another salt have nothing to do with these.
    """
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2^64
        z = keys.astype(np.uint64) + np.uint64(salt) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (z ^ (z >> np.uint64(31))).astype(np.float64) / 2.0**64


def hash_of_model_files(folder: str | Path) -> str:
    """A hash of a folder's configs and weights that is quick also for large ones.

    Of a weights file its size, first and last 64 KB count.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.name.endswith((".safetensors", ".bin")):
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with open(path, "rb") as file:
                digest.update(file.read(ENDS))
                file.seek(max(0, size - ENDS))
                digest.update(file.read())
        elif path.name in ("config.json", "adapter_config.json"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sha256_of_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
