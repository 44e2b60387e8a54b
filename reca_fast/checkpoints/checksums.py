"""Checksums of a checkpoint's files, in a file that `xxhsum --check` reads too."""

import re
from collections.abc import Mapping
from pathlib import Path

import xxhash

CHECKSUMS_FILE = "checksums.xxh128"
READ_BYTES = 1 << 20  # stays in the cache between reading and hashing
_LINE = re.compile(r"([0-9a-f]{32})  ([\w.-]+)\n")


def checksum(path: Path) -> str:
    """xxh3 with 128 bits of a file, hex; reads at the speed of the disk."""
    state, buffer = xxhash.xxh3_128(), bytearray(READ_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(view[:count])
    return state.hexdigest()


def write_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    """Note the checksum of each file, by its name."""
    lines = [f"{value}  {name}\n" for name, value in sorted(checksums.items())]
    (folder / CHECKSUMS_FILE).write_text("".join(lines))


def read_checksums(folder: Path) -> dict[str, str]:
    """Name -> checksum; empty when the file is not, to the byte, one that `write_checksums` writes."""
    try:
        text = (folder / CHECKSUMS_FILE).read_bytes().decode("ascii")
    except (OSError, UnicodeDecodeError):
        return {}
    found = {name: value for value, name in _LINE.findall(text)}
    return found if text == "".join(f"{value}  {name}\n" for name, value in sorted(found.items())) else {}
