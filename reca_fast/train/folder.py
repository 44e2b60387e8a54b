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
    """Creates a run folder and holds the lock in it. Used as a context, it gives the lock back afterwards.

    The lock is the system's own (POSIX, on the file run.lock): whatever ends the process gives it back, `kill -9` too,
    and file systems that several hosts share pass it on. The file says who holds it, and is emptied by a run that
    ends orderly. It is never removed: whoever locks a removed file owns nothing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None
        self._held = False

    def take(self) -> str:
        """Create the folder and take the lock. Where the file system knows no locks, a warning is printed instead.

        Returns:
            Why the folder cannot be used, in one sentence; empty when it can.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"The run folder {self.path} cannot be created ({error.strerror}); set --out to another folder."
        if os.path.lexists(self.path / LOCK_FILE) and not (self.path / LOCK_FILE).is_file():
            return f"{self.path / LOCK_FILE} is no file; remove it, or set --out to another folder."
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
            holder = self._read()
            self.close()
            who = _named(holder) if holder else "another run"
            return f"The run folder {self.path} is in use by {who}; wait, end that run, or name another --out."
        before = self._read()
        if before is not None and before["host"] != socket.gethostname():
            print(
                f"{self.path / LOCK_FILE} was left behind by {_named(before)}. Where locks do not reach other hosts "
                "(NFS mounted with nolock), make sure that it has ended.",
                file=sys.stderr,
            )
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._file.truncate(0)
        self._file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}) + "\n")
        self._file.flush()
        self._held = True
        return ""

    def _read(self) -> dict[str, str] | None:
        """What the lock file says, or None when it says nothing of that kind."""
        assert self._file is not None
        try:
            self._file.seek(0)
            values = json.loads(self._file.read(1000))
            return {name: f"{values[name]!s:.100}" for name in ("host", "pid", "since")}
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            if self._held:
                with suppress(OSError):
                    self._file.truncate(0)
            self._file.close()
            self._file, self._held = None, False


def _named(holder: dict[str, str]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
