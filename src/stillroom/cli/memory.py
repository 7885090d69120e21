"""What the C library does with memory that is given back."""

from __future__ import annotations

import ctypes
import os
import sys

#: glibc's ``mallopt``: its number, the variable that a child process reads it from, and a value.
#: Pieces up to the most that it allows come from the heap, which gives nothing back below 512 MB.
_KEPT = (
    (-3, "MALLOC_MMAP_THRESHOLD_", 32 << 20),
    (-1, "MALLOC_TRIM_THRESHOLD_", 512 << 20),
    (-2, "MALLOC_TOP_PAD_", 64 << 20),
)


def keep_freed_memory() -> None:
    """Let this process and its children use freed memory again instead of giving it back at once.

    A model's intermediate results come and go thousands of times a second; by its defaults glibc
    takes fresh, empty pages from the system for many of them, and these cost more than what is
    computed (docs/speed.md). A process may hold up to 512 MB more for it. What somebody has set in
    the environment stays; elsewhere than with glibc nothing is done.
    """
    told = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if told or not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return
    for number, variable, value in _KEPT:
        if variable not in os.environ:
            mallopt(number, value)
            os.environ[variable] = str(value)
