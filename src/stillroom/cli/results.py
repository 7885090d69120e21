"""The verbs that ask models and score them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from stillroom.cli import parsing
from stillroom.cli.parsing import Folder, ModelName, Photos, Prompt, SuiteName, Text
from stillroom.console import progress_bar
from stillroom.records import BadInputError


def evaluate(words: Sequence[str]) -> int:
    """Score a model."""

    def options(
        model: Positional[ModelName],
        scenes: Positional[Folder],
        /,
        *,
        out: Path,
        teacher: str | None = None,
        labels: Path | None = None,
        split: Literal["train", "val", "test", "shifted", "all"] = "test",
        limit: int | None = None,
        blind_student: str | None = None,
        no_slots_student: str | None = None,
        suite: SuiteName | None = None,
        prompt: Prompt = "official",
        json: bool = False,
    ) -> dict[str, Any]:
        """Score a model on the questions of a split, beside truth and the cheap baselines.

        Args:
            model: A shipped name, a folder, a hub id, or kind:where (shuffled:NAME,
                no_depth:NAME, blind, majority, truth).
            scenes: Scene store; with --suite the folder of the published files.
            out: Folder for results.json, items and report.html.
            teacher: Model whose retention is measured.
            labels: Label store that holds the teacher's answers already.
            split: Which scenes.
            limit: At most so many scenes.
            blind_student: A student that was trained without pictures, as the row blind_student:
                above blind is above the stronger of it and the guesser of words.
            no_slots_student: A student without slots, as the row student_no_slots.
            suite: Ask a published benchmark instead; scenes is then the folder of its files.
            prompt: With --suite: in the benchmark's words, or question and options alone.
            json: Print the rows as JSON.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "evaluate")
    as_json = given.pop("json")
    suite, prompt = given.pop("suite"), given.pop("prompt")
    if suite is not None and given["split"] != "test":
        raise BadInputError("--suite asks all published questions: leave --split out")
    for flag in ("blind_student", "no_slots_student"):
        if suite is not None and given[flag] is not None:
            raise BadInputError(
                f"--{flag.replace('_', '-')} stands beside a model in made rooms: leave it out "
                "with --suite"
            )
    with progress_bar("evaluating") as progress:
        if suite is None:
            results = api.evaluate(**given, progress=progress)
        else:
            taken = {name: given[name] for name in ("model", "out", "teacher", "labels", "limit")}
            results = api.evaluate_suite(
                data=given["scenes"], suite=suite, prompt=prompt, progress=progress, **taken
            )
    if as_json:
        parsing.say(json.dumps(results["rows"]))
    else:
        from stillroom.evaluate.report import print_table

        print_table(results)
        if suite is not None:
            from stillroom.evaluate.suites.report import lines

            parsing.say("\n".join(lines(results)))
        parsing.say(f"report: {given['out'] / 'report.html'}")
    return 0


def ask(words: Sequence[str]) -> int:
    """Ask about photos."""

    def options(
        model: Positional[ModelName],
        photos: Positional[Photos],
        question: Positional[Text],
        /,
        *,
        boxes: bool = False,
        depth: bool = False,
        diagnose: bool = False,
        control_photos: Path | None = None,
        runtime: Literal["torch", "onnx"] = "torch",
        out: Path = Path("depth"),
        json: bool = False,
    ) -> dict[str, Any]:
        """Ask a model one question about a folder of photos or a capture.

        Args:
            model: student_mini, a checkpoint folder, or a hub id.
            photos: Folder of photos, or a capture that scenes import reads.
            question: What to ask.
            boxes: Also list the things found, in metres right, forward and up from the floor below
                the first photo's camera.
            depth: Also write how deep each photo is: NAME.npy in metres (or a unit of the
                scene: the output says which), NAME.png to look at.
            diagnose: Also read the slots out: their likeliest token, beside random slots and other
                photos. A probe, not an explanation.
            control_photos: With --diagnose: the other photos; default is a made room.
            runtime: onnx asks what export --to onnx wrote, without torch.
            out: Folder for what --depth writes.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api, asking

    given = parsing.parse(options, words, "ask")
    as_json, out = given.pop("json"), given.pop("out")
    boxes, depth = given["boxes"], given["depth"]
    others = given.pop("control_photos")
    given["control"] = None if others is None else api.open_photos(others)
    reply: Callable[..., asking.Reply] = asking.reply
    if given.pop("runtime") == "onnx":
        from stillroom.asking_onnx import reply
    said = reply(given.pop("model"), api.open_photos(given.pop("photos")), **given)
    written = asking.write_depth(said, out) if depth else []
    if as_json:
        record: dict[str, Any] = {"question": said.question, "answer": said.answer}
        record |= {"boxes": asking.box_rows(said.geometry), "frame": "view0"} if boxes else {}
        record |= {"diagnosis": asking.diagnosis_record(said.diagnosis)} if said.diagnosis else {}
        parsing.say(json.dumps(record | ({"depth": written} if depth else {})))
        return 0
    lines = [said.answer, *(asking.box_lines(said.geometry) if boxes else [])]
    lines += asking.diagnosis_lines(said.diagnosis) if said.diagnosis else []
    parsing.say("\n".join([*lines, *asking.depth_lines(written)]))
    return 0


def verify(words: Sequence[str]) -> int:
    """Compare a port with recorded outputs."""

    def options(
        fixtures: Positional[tuple[Path, ...]],
        /,
        *,
        kind: Literal["llava3d", "metrics", "vggt"] | None = None,
    ) -> dict[str, Any]:
        """Compare a port or a scorer, figure by figure, with what the public release computed.

        Args:
            fixtures: Stems, .safetensors, .json files or folders.
            kind: Of what; default is the parent folder's name.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "verify")
    ok, lines = api.verify(given["fixtures"], kind=given["kind"])
    parsing.say("\n".join(lines))
    return 0 if ok else 1


def demo(words: Sequence[str]) -> int:
    """Run the whole way."""

    def options(*, out: Path = Path("runs/demo")) -> dict[str, Any]:
        """Rooms, a real capture, labels, a student, a table and a report: the embedded default.

        Args:
            out: Folder of the run; the same command goes on where it stopped.
        """
        return locals()

    from stillroom.demo import run_demo

    run_demo(parsing.parse(options, words, "demo")["out"])
    return 0
