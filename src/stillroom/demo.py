"""The whole way in one run: rooms and a real capture in, a distilled student and a report out.

Every stage is the verb of the same name with the embedded default, and goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillroom import api, recipes, registry
from stillroom.console import progress_bar
from stillroom.records import Answerer, BadInputError, Question
from stillroom.scenes.store import SceneStore, write_atomically

if TYPE_CHECKING:
    from stillroom.distill.config import DistillConfig
    from stillroom.evaluate.report_sections import Capture

#: Rooms of the demo and their seed: far from those that the shipped models were trained on.
ROOMS, SEED = 900, 2026
#: Test rooms that are asked about: enough for intervals of two points.
TEST_ROOMS = 150

#: The committed capture, beside the package in a checkout.
CAPTURE = Path(__file__).parents[2] / "tests" / "fixtures" / "captures" / "tum_fr3_cabinet"

#: Steps of the short distillation on the capture: enough to see the loss fall, no more.
CAPTURE_STEPS = 20

HONEST = (
    "teacher_mini and student_mini were trained on made rooms only. A photo of a real room is far "
    "outside what they know: they are not expected to be right here, and this section shows how "
    "wrong they are. It shows that a real capture goes through the same commands."
)


@dataclass
class _Console:
    """Where stages are announced: bars on a terminal, one line a stage elsewhere."""

    began: float
    times: dict[str, float]

    @contextlib.contextmanager
    def stage(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A named stage with a progress callback; its seconds are kept and shown."""
        started = time.monotonic()
        with progress_bar(title) as progress:
            yield progress
        self.times[title] = round(time.monotonic() - started, 1)
        if not sys.stderr.isatty():
            sys.stdout.write(f"{title:28} {self.times[title]:7.1f} s\n")
            sys.stdout.flush()


def run_demo(out: Path) -> dict[str, Any]:
    """Run or resume the demo in ``out``; its results, also in ``out/results.json``."""
    if not CAPTURE.is_dir():
        raise BadInputError(
            f"the committed capture is missing ({CAPTURE.name} under tests/fixtures/captures); run "
            "the demo from a checkout"
        )
    console = _Console(began=time.monotonic(), times={})
    config = recipes.table("distill")["mini_cpu"]()
    with console.stage("make rooms") as progress:
        api.make_scenes(out / "rooms", count=ROOMS, seed=SEED, progress=progress)
    with console.stage("label with teacher_mini") as progress:
        api.label(
            out / "rooms", teacher="teacher_mini", out=out / "labels", workers=2, progress=progress
        )
    with console.stage("distil mini_cpu") as progress:
        api.distill(
            config,
            scenes=out / "rooms",
            labels=out / "labels",
            out=out / "distill",
            recipe="mini_cpu",
            progress=progress,
        )
    with console.stage("evaluate") as progress:
        results = _evaluate(out, console, config, progress)
    with console.stage("a real capture"):
        capture = _capture(out, config)
    _finish(out, results, capture, console)
    return results


def _evaluate(
    out: Path, console: _Console, config: DistillConfig, progress: Callable[[int, int], None]
) -> dict[str, Any]:
    from stillroom.evaluate.run import evaluate
    from stillroom.scenes.store import open_store

    store, split = open_store(out / "rooms"), "test"
    student = str(out / "distill" / "student")

    def load(name: str) -> Callable[[], Any]:
        return lambda: registry.answerer(name, store, split=split)

    rows = {
        "truth": load("truth"),
        "teacher": api.teacher_answers(None, out / "labels", store, split),
        "student": load(student),
        "majority": load("majority"),
        "shuffled": load(f"shuffled:{student}"),
        "blind": load("blind"),
    }
    meta = api.run_meta(
        console.began,
        seeds={"rooms": SEED, "distill": config.train.seed},
        parameters={
            "teacher": registry.parameters("teacher_mini"),
            "student": registry.parameters(student),
        },
        stages=console.times,
        students=api.made_from({"student": student}),
    )
    return evaluate(
        rows,
        store,
        split=split,
        limit=TEST_ROOMS,
        out=out,
        teacher_row="teacher",
        student_row="student",
        meta=meta,
        progress=progress,
    )


def _capture(out: Path, config: DistillConfig) -> Capture:
    """Import, check, label, distil on and ask about the committed capture."""
    from stillroom.scenes.capture_questions import capture_questions
    from stillroom.scenes.importers import import_capture, write_import
    from stillroom.scenes.store import open_store
    from stillroom.students.session import StudentAnswerer
    from stillroom.teachers.label_store import open_labels

    folder = out / "capture"
    scenes = folder / "scenes"
    imported = import_capture(CAPTURE)
    asked = capture_questions(imported.scene, things=("cabinet",))
    write_import(imported, scenes, questions=asked)
    check = api.check_scenes(scenes)
    api.label(scenes, teacher="teacher_mini", out=folder / "labels")
    steps = replace(
        config.train,
        steps=CAPTURE_STEPS,
        scenes_per_step=1,
        micro_batches=1,
        workers=1,
        evaluate_every=0,
    )
    student = out / "distill" / "student"
    tuned = replace(
        config, train=steps, start_from=str(student), train_split="test", validation_split="test"
    )
    api.distill(tuned, scenes=scenes, labels=folder / "labels", out=folder / "distill")
    scene = next(open_store(scenes).iter_scenes())
    questions: list[Question] = open_store(scenes).questions()
    before = StudentAnswerer.from_folder(student).open(scene)
    after = StudentAnswerer.from_folder(folder / "distill" / "student").open(scene)
    teacher = open_labels(folder / "labels").answers()
    first, second = before.answer(questions), after.answer(questions)
    return {
        "title": f"tests/fixtures/captures/{CAPTURE.name}",
        "statement": HONEST,
        "check": check["lines"],
        "scene": before.seen(scene),
        "geometry": before.geometry(),
        "answers": [
            {
                "question": question.question,
                "teacher": teacher[question.question_id],
                "student": a.text,
                "student after distilling on it": b.text,
            }
            for question, a, b in zip(questions, first, second, strict=True)
        ],
        "log": folder / "distill" / "log.jsonl",
    }


def _finish(out: Path, results: dict[str, Any], capture: Capture, console: _Console) -> None:
    from stillroom.evaluate.report import print_table, write_report
    from stillroom.scenes.store import open_store

    if "demo_seconds" not in results["meta"]:  # a second run of a finished demo measures nothing
        seconds = round(time.monotonic() - console.began, 1)
        results["meta"] |= {"stages": console.times, "demo_seconds": seconds}
        text = json.dumps(results, indent=1) + "\n"
        write_atomically(out / "results.json", text.encode())
    api.refresh_card(str(out / "distill" / "student"), results, row="student")
    store = open_store(out / "rooms")
    student = registry.answerer(str(out / "distill" / "student"), store, split="test")
    _picture(out, store, student)
    report = write_report(
        results,
        out=out,
        store=store,
        log=out / "distill" / "log.jsonl",
        student=lambda: student,
        capture=capture,
    )
    print_table(results)
    sys.stdout.write(f"{out / 'picture.png'}\n{out / 'results.json'}\nreport: {report}\n")


def _picture(out: Path, store: SceneStore, student: Answerer) -> None:
    """The contact sheet of the first test room, with the student's answers beside the truth."""
    from stillroom.scenes.show import contact_sheet

    scene = store.scene(store.scene_ids("test")[0])
    questions = store.questions(scene.scene_id)
    said = {answer.question_id: answer.text for answer in student.open(scene).answer(questions)}
    contact_sheet(scene, questions, predictions=said).save(out / "picture.png")
