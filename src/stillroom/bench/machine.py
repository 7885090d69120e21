"""What a device can do at best, and how much memory was needed: what a latency is held against."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

#: Bytes that are copied, and edge of the matrices that are multiplied, to see what is possible.
_COPIED = {"cpu": 256 << 20, "cuda": 1 << 30}
_EDGE = {"cpu": 2048, "cuda": 8192}
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Rates that were measured here, for as many threads and the precision that are used.

    ``copy_gb_s`` counts what is read and what is written; ``matmul_tflop_s`` a multiply-add as 2.
    """

    name: str
    device: str
    dtype: str
    threads: int
    copy_gb_s: float
    matmul_tflop_s: float


def measure_machine(device: torch.device, dtype: torch.dtype, *, repeats: int = 7) -> Machine:
    """Measure the device: a copy that no cache holds, and a product of large matrices."""
    here = device.type
    source = torch.ones(_COPIED[here] // 4, device=device)
    target = torch.zeros_like(source)
    copied = best_of(lambda: target.copy_(source), device, repeats)
    left = torch.randn(_EDGE[here], _EDGE[here], device=device).to(dtype)
    multiplied = best_of(lambda: left @ left, device, repeats)
    return Machine(
        name=torch.cuda.get_device_name(device) if here == "cuda" else processor(),
        device=here,
        dtype=str(dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        copy_gb_s=2 * source.nbytes / copied / 1e9,
        matmul_tflop_s=2 * _EDGE[here] ** 3 / multiplied / 1e12,
    )


def best_of(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Seconds of the fastest of so many runs, behind one that warms up."""
    run()
    taken = []
    for _ in range(repeats):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        taken.append(time.perf_counter() - began)
    return min(taken)


def synchronise(device: torch.device) -> None:
    """Wait for what has been started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def processor() -> str:
    """The processor's name as Linux gives it; its architecture elsewhere."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return f"{os.uname().machine}, {os.cpu_count()} cores"


class Peak:
    """The most memory at any time within ``peak_memory``; None where it cannot be told."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Watch the peak of the process (Linux), or of the allocator of a GPU, while a block runs."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # tells the kernel to count anew
            Path("/proc/self/clear_refs").write_text("5")
    yield peak
    if device.type == "cuda":
        peak.bytes = torch.cuda.max_memory_allocated(device)
    else:
        peak.bytes = _status("VmHWM")


def resident_bytes() -> int | None:
    """Memory that this process uses now; None where the system does not tell.

    What was freed and only kept for the next request goes back first, where glibc is the allocator.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _status("VmRSS")


def _status(name: str) -> int | None:
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None
