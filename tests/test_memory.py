"""Memory that is freed is used again: no fresh pages for every large intermediate result."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

#: Counts the pages that a process takes while two large arrays come and go.
FAULTS = """
import resource, sys
if "keep" in sys.argv:
    from stillroom.cli.memory import keep_freed_memory
    keep_freed_memory()
import numpy as np
def once():
    one = np.ones(1 << 18); two = one + one; del one; return float(two[0])
for _ in range(3): once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50): once()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")


def faults(*words: str, **more: str) -> int:
    kept = {name: value for name, value in os.environ.items() if "MALLOC" not in name.upper()}
    command = [sys.executable, "-c", FAULTS, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=kept | more)
    return int(done.stdout)


@GLIBC
def test_freed_memory_is_not_given_back_between_two_results() -> None:
    assert faults("keep") < 100


@GLIBC
def test_what_the_environment_says_stays() -> None:
    # 100 results of 2 MB, all by pages of their own.
    assert faults("keep", MALLOC_MMAP_THRESHOLD_="65536") > 10_000


@GLIBC
def test_what_glibcs_own_variable_says_stays() -> None:
    said = "glibc.malloc.mmap_threshold=65536"
    assert faults("keep", GLIBC_TUNABLES=said) > 10_000
