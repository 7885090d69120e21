"""Is the miniature student as much faster than its teacher as it is smaller?

    python benchmarks/latency_mini.py [--threads N] [--dtype float32|bfloat16] [--out FILE]

Both shipped miniatures on made rooms, in one process, in turns, with the same engine and precision
and answers of the same length (``stillroom bench latency`` has the details and more options). Cold
is a scene's first question, photos and all; warm a later one. Prints a table for people, then one
JSON line with ``ratio`` (answers of so many tokens), ``ratio_as_asked`` (real questions, answers as
short as they are), ``answers_equal`` (every answer of a session is that of the models' own
``forward``, asked alone and together) and both parameter counts.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from record import circumstances, write


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an answer")
    parser.add_argument("--student-views", type=int, help="photos the student looks at")
    parser.add_argument("--student", default="student_mini")
    parser.add_argument("--rooms", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()

    from stillroom import api
    from stillroom.bench.latency import lines
    from stillroom.bench.options import LatencyOptions
    from stillroom.cli.memory import keep_freed_memory

    keep_freed_memory()  # as every verb of the command line does
    load_before = os.getloadavg()[0]
    options = LatencyOptions(
        device="cpu",
        dtype=chosen.dtype,
        tokens=chosen.tokens,
        student_views=chosen.student_views,
        threads=chosen.threads,
        repeats=chosen.repeats,
        sweep_views=(1, 2, 3, 4, 6),
        sweep_batch=(1, 8, 24),
    )
    record = api.bench_latency(options, student=chosen.student, scene_count=chosen.rooms)
    print("\n".join(lines(record)))
    record["benchmark"] = "latency_mini"
    write(record | circumstances(["torch", "transformers"], load=load_before), chosen.out)


if __name__ == "__main__":
    main()
