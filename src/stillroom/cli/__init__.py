"""The command line: one small function per verb. Only here are printing and progress bars at home.

Nothing heavy is imported before a verb runs, so that ``stillroom --help`` answers at once.
Exit codes: 0 done, 1 a check failed, 2 bad input (one sentence on standard error).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence

from stillroom import __version__
from stillroom.cli import bench, labels, models, parsing, results, scenes
from stillroom.cli.memory import keep_freed_memory
from stillroom.console import process_number
from stillroom.records import BadInputError

USAGE = """stillroom: distil the 3D spatial reasoning of a large vision-language model
into a small one

usage: stillroom VERB ...          stillroom VERB --help shows a verb's options

rooms and captures
  scenes make        make rooms with questions whose answers come from geometry
  scenes import      read a posed RGB-D capture or a folder of photos
  scenes check       are poses, depth and answers consistent?
  scenes audit       what words alone give away: guessers beside chance
  scenes show        a contact sheet: views, depth, boxes, plan, questions
  scenes ask         join a benchmark's published questions with their scenes
  scenes export      made rooms in a benchmark's own format
models
  pretrain-encoder   train a miniature geometry encoder (RECIPE)
  teach              train a miniature LLaVA-3D teacher from truth (RECIPE)
  label              let a teacher answer every question, once, resumably
  labels             status, verify, merge or export of label stores
  distill            train a student on a teacher's labels (RECIPE)
results
  evaluate           score a model against truth and teacher, with intervals
  ablate             train and compare the arms of table2, table3 or slots
  probe              what can be read from a student's slots, and where they look
  ask                ask a model about a folder of photos
  export             a student with weights of 8 or 4 bits, as ONNX graphs, or for ExecuTorch
  bench latency      time teacher and student side by side, stage by stage
  params             parameters of a recipe's student, counted without allocating
  verify             a port or a scorer against recorded outputs
  demo               the whole way on the embedded default: what `make demo` runs

exit codes: 0 done, 1 a check failed, 2 bad input
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one verb and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    keep_freed_memory()
    # Progress is shown by the bars of the verbs, not by those of the libraries below.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # transformers imports torchao where it is installed, and that tells of each GPU part it lacks.
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        sys.exit(_run(words))
    except BadInputError as error:
        whose = f" (process {process_number()})" if process_number() else ""
        sys.stderr.write(f"stillroom{whose}: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("stillroom: stopped; the same command goes on where it stopped\n")
        sys.exit(130)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"stillroom {__version__}\n")
        return 0
    for length in (2, 1):
        verb = VERBS.get(" ".join(words[:length]))
        if verb is not None and len(words) >= length:
            return verb(words[length:])
    raise BadInputError(
        parsing.unknown("verb", " ".join(words[:1]), VERBS, help_from="stillroom --help")
    )


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "scenes make": scenes.scenes_make,
    "scenes import": scenes.scenes_import,
    "scenes check": scenes.scenes_check,
    "scenes audit": scenes.scenes_audit,
    "scenes show": scenes.scenes_show,
    "scenes ask": scenes.scenes_ask,
    "scenes export": scenes.scenes_export,
    "pretrain-encoder": models.pretrain_encoder,
    "teach": models.teach,
    "label": labels.label,
    "labels": labels.labels,
    "distill": models.distill,
    "evaluate": results.evaluate,
    "ablate": bench.ablate,
    "probe": bench.probe,
    "ask": results.ask,
    "export": models.export,
    "bench latency": bench.bench_latency,
    "params": models.params,
    "verify": results.verify,
    "demo": results.demo,
}
