"""Where a result comes from: commit, command and machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Told how many of how many are done.
Progress = Callable[[int, int], None]


def run_meta(started: float, **more: Any) -> dict[str, Any]:
    """Where a result comes from: commit, command, machine, seconds since ``started``."""
    return {
        "commit": _commit(),
        "command": command_line(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}",
        "seconds": round(time.monotonic() - started, 1),
        **more,
    }


def command_line() -> str:
    """What was typed; of an absolute path, which is this machine's own, the name alone."""
    program, *words = sys.argv
    place = Path(program)
    said = [place.parent.name if place.name == "__main__.py" else place.name]
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        said.append(f"{option}{equals}{Path(value).name if Path(value).is_absolute() else value}")
    return " ".join(said)


def _commit() -> str:
    """The checkout's commit, with "-dirty" where it was changed; "unknown" for an installed
    wheel."""
    here = Path(__file__).resolve().parent
    if not (here.parents[2] / "pyproject.toml").is_file():
        return "unknown"  # installed: the repository around it, if any, is another's
    # "-dirty" where tracked files were changed since; tags are no commits.
    command = ["git", "--no-optional-locks", "-C", str(here), "describe", "--always", "--dirty"]
    command += ["--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
