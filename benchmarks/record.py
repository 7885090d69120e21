"""What every benchmark writes down beside its figures, and where it puts them."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stillroom.api.meta import command_line

#: Processes that ran or waited on this machine in the minute before the benchmark began.
LOAD_BEFORE = os.getloadavg()[0]
#: Above this, something else had a share of the machine.
QUIET = 0.5
RESULTS = Path(__file__).with_name("results")


def processor() -> str:
    """The processor's name as Linux gives it; its architecture elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def circumstances(
    packages: Sequence[str] = ("torch",), *, device: str | None = None, load: float | None = None
) -> dict[str, Any]:
    """Machine, command, date and versions of a measurement.

    ``device`` names the GPU where one was measured; ``load`` is what else ran when it began
    (processes, from ``os.getloadavg``), by default in the minute before this was imported.
    """
    found = {
        "machine": f"{device or processor()}, {os.cpu_count()} cores, {platform.system()}",
        "command": f"python benchmarks/{command_line()}",
        "date": datetime.date.today().isoformat(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in packages},
    }
    before = LOAD_BEFORE if load is None else load
    found["load_before"] = round(before, 2)
    if before > QUIET:
        found["load_note"] = (
            f"{before:.2f} processes ran on average in the minute before: times may be too long"
        )
    return found


def write(record: Mapping[str, Any], out: Path | None) -> None:
    """Print a record as the last line; put it into ``out`` too, readable, where one is named."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))
