"""METEOR 1.5 and the Stanford tokenizer: the jars of pycocoevalcap, run by java.

Both are optional (extra ``[coco]`` and a ``java`` on the path); ``missing`` says what is not there.
The jars are driven directly: they are the scorers, and the package's own wrappers write into the
installed package and leave processes behind.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

METEOR_ID = "meteor-1.5"
PTB_JAVA_ID = "ptb/corenlp-3.4.1"

_METEOR = "meteor/meteor-1.5.jar"
_CORENLP = "tokenizer/stanford-corenlp-3.4.1.jar"
# What the jar parts its fields with.
_BAR = "|||"


def missing() -> str:
    """What METEOR lacks here, as a sentence; empty where nothing does."""
    if shutil.which("java") is None:
        return "no java on the path"
    if _jar(_METEOR) is None:
        return "pycocoevalcap is not installed: pip install 'stillroom[coco]'"
    return ""


def _jar(name: str) -> Path | None:
    found = find_spec("pycocoevalcap")
    for folder in (found.submodule_search_locations or []) if found else []:
        if (Path(folder) / name).is_file():
            return Path(folder) / name
    return None


def meteor(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, list[float]]:
    """METEOR 1.5, English, normalised text: of the corpus, and of each item (0..1).

    The corpus figure comes from summed statistics; it is not the mean over items.

    Raises:
        RuntimeError: java or the jar is missing, or the program fails.
    """
    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"{len(references)} lists of references for {len(predictions)} predictions"
        )
    jar = _required(_METEOR)
    command = ["java", "-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    # One line a question and one line an answer: errors go to a file, since nobody reads a pipe.
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            cwd=jar.parent,
        ) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None

        def ask(line: str) -> None:
            assert program.stdin is not None
            program.stdin.write(line + "\n")
            program.stdin.flush()

        def read() -> str:
            assert program.stdout is not None
            line = program.stdout.readline().strip()
            if not line:
                program.kill()
                errors.seek(0)
                raise RuntimeError(f"METEOR stopped: {errors.read().strip()[:300]}")
            return line

        statistics = []
        for said, known in zip(predictions, references, strict=True):
            ask(f" {_BAR} ".join(["SCORE", *map(_one_line, known), _one_line(said)]))
            statistics.append(read())
        ask(f" {_BAR} ".join(["EVAL", *statistics]))
        items = [float(read()) for _ in statistics]
        corpus = float(read())
        program.stdin.close()
    return corpus, items


def ptb_tokens(texts: Sequence[str]) -> list[list[str]]:
    """The tokens of each text by the Stanford tokenizer, lower case, punctuation included.

    Raises:
        RuntimeError: java or the jar is missing, or the program fails.
    """
    jar = _required(_CORENLP)
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    lines = "\n".join(_one_line(text) for text in texts)
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase"],
        input=lines,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    tokens = done.stdout.split("\n")[: len(texts)]
    if done.returncode or len(tokens) < len(texts):
        raise RuntimeError(f"the PTB tokenizer stopped: {done.stderr.strip()[:300]}")
    return [line.split() for line in tokens]


def _required(name: str) -> Path:
    jar = _jar(name)
    if missing() or jar is None:
        raise RuntimeError(f"METEOR and the PTB tokenizer are not there: {missing()}")
    return jar


def _one_line(text: str) -> str:
    """A text that cannot be taken for two lines or two fields."""
    return " ".join(text.replace(_BAR, " ").split())
