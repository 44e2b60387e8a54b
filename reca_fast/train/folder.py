"""The run folder belongs to one run at a time."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK_FILE = "run.lock"
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL}


class RunFolder:
    """Creates a run folder and holds the lock in it. A context: the lock is given back afterwards.

    The lock is the system's own (POSIX, on the file run.lock): whatever ends the process gives it back, `kill -9` too,
    and file systems that several hosts share pass it on. The file says who holds it. It is never removed: a run that
    waits for the lock of a removed file would own nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def take(self) -> str:
        """Take the lock; returns why that cannot be, or nothing. Says so where the file system does not lock."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"The run folder {self.path} cannot be created ({error.strerror}); set --out to another folder."
        try:
            self._file = open(self.path / LOCK_FILE, "a+")  # noqa: SIM115 (open as long as the run)
        except OSError as error:
            return f"The run folder {self.path} cannot be written ({error.strerror}); set --out to another folder."
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                print(
                    f"The file system of {self.path} does not lock files ({error.strerror}): take care yourself that "
                    "no other run writes to this folder.",
                    file=sys.stderr,
                )
                return ""
            holder = self._holder()
            self.close()
            return f"The run folder {self.path} is in use by {holder}; wait, end that run, or name another --out."
        self._file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
        self._file.flush()
        return ""

    def _holder(self) -> str:
        assert self._file is not None
        with suppress(OSError, ValueError, LookupError, TypeError):
            self._file.seek(0)
            lines = json.loads(self._file.read(1000))
            return f"process {int(lines['pid'])} on {lines['host']!s:.100} since {lines['since']!s:.40}"
        return "another run"

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
