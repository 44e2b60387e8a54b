"""The checksums of a checkpoint's files, kept in a file that `xxhsum --check` understands too."""

import re
from collections.abc import Mapping
from pathlib import Path

import xxhash

CHECKSUMS_FILE = "checksums.xxh128"
READ_BYTES = 1 << 20
"""Read at once: little enough to be in the processor's cache still when it is hashed."""
_LINE = re.compile(r"([0-9a-f]{32})  ([\w.-]+)\n")


def checksum(path: Path) -> str:
    """The xxh3 checksum (128 bits, hex) of a file. It is computed as fast as a disk reads."""
    state, buffer = xxhash.xxh3_128(), bytearray(READ_BYTES)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            state.update(view[:count])
    return state.hexdigest()


def write_checksums(folder: Path, checksums: Mapping[str, str]) -> None:
    """Write CHECKSUMS_FILE into a folder. `checksums` has the checksum of each file by its name."""
    lines = [f"{value}  {name}\n" for name, value in sorted(checksums.items())]
    (folder / CHECKSUMS_FILE).write_text("".join(lines))


def read_checksums(folder: Path) -> dict[str, str]:
    """Name of a file -> its checksum, from CHECKSUMS_FILE in a folder.

    The result is empty when the file is missing, or differs in any byte from what `write_checksums` writes.
    """
    try:
        text = (folder / CHECKSUMS_FILE).read_bytes().decode("ascii")
    except (OSError, UnicodeDecodeError):
        return {}
    found = {name: value for value, name in _LINE.findall(text)}
    return found if text == "".join(f"{value}  {name}\n" for name, value in sorted(found.items())) else {}
