"""A test's own file run by two processes that talk over gloo, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def both(file: str, *given: Path) -> None:
    """Run ``python FILE GIVEN...`` twice, as ranks 0 and 1, to the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = [
        subprocess.Popen(
            [sys.executable, file, *map(str, given)],
            env={
                **os.environ,
                **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"},
                **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"},
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=400)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(said)
