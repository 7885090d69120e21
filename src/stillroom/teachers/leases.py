"""One writer per shard: a lock file that the system lets go of when its holder dies.

``flock`` holds between processes of one machine and, on NFS 4 and the common cluster file
systems, between machines. A killed holder leaves its file behind, unlocked: the next one takes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillroom.records import BadInputError

#: How often a lease that is waited for is tried [s].
WAIT_S = 0.01

_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lease; ``since`` in seconds of the epoch."""

    host: str
    pid: int
    since: float


@contextlib.contextmanager
def lease(path: Path) -> Iterator[bool]:
    """Hold ``path`` while inside; the value is False, at once, if another process holds it.

    Raises:
        BadInputError: the file system knows no locks.
    """
    descriptor = _take(path)
    if descriptor is None:
        yield False
        return
    try:
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        with contextlib.suppress(OSError):  # a full disk: nobody can read who it is, no more
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        yield True
    finally:
        # Unlinked while still locked: whoever opened it before finds it gone and opens anew.
        path.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def waited_for(path: Path) -> Iterator[None]:
    """Hold ``path`` while inside, as soon as it is free: for what takes a moment only."""
    while True:
        with lease(path) as mine:
            if mine:
                yield
                return
        time.sleep(WAIT_S)


def _take(path: Path) -> int | None:
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue  # another command, done, has just removed the empty folder
        except OSError as error:
            raise BadInputError(
                f"cannot write to {path.parent} ({error.strerror}); make room there, or choose "
                "another --out"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in _BUSY:
                return None
            raise _no_locks(path, error) from None
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file that was locked is the one that stands there now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def holder(path: Path) -> Holder | None:
    """Who holds a lease; None if nobody does. One who has only just come has no name yet."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            raise _no_locks(path, error) from None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = json.loads(os.pread(descriptor, 4096, 0))
            return Holder(host=record["host"], pid=record["pid"], since=record["since"])
        return Holder(host="?", pid=0, since=time.time())
    else:
        return None
    finally:
        os.close(descriptor)


def _no_locks(path: Path, error: OSError) -> BadInputError:
    return BadInputError(
        f"{path.parent} lies on a file system without locks ({error.strerror}); put --out on one "
        "that has them: a local disk, NFS 4, Lustre mounted with flock"
    )
