"""What it brings that the questions of a scene share a row: one step of training, two ways.

    python benchmarks/scene_batching.py [--recipe mini_cpu] [--scenes 8] [--questions 8]

Both ways train the recipe's student on the same questions of the same made rooms, from cached
features, with every term of the recipe: batch, forward, backward and AdamW. ``shared`` has a row a
scene, ``single`` a row a question, as training without scene batching has it. Both are the
product's own code. The gradients of the two are compared before anything is timed. ``ratio`` is the
median over ``--repeats`` turns, in each of which both take one step, after a warm-up;
``ratio_processor`` is the same of processor time, which other work on the machine stretches less.
Prints a table for people, then one JSON line.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import circumstances, write

from stillroom import api, recipes, registry
from stillroom.distill.batches import Batches, Item, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig
from stillroom.distill.features import cache_features
from stillroom.distill.step import count_labelled, distill_step
from stillroom.distill.targets import cache_targets
from stillroom.records import FAMILIES
from stillroom.scenes.store import open_store
from stillroom.students.model import StillroomStudent
from stillroom.teachers.label_store import open_labels

SEED = 5


@dataclass(frozen=True)
class Work:
    """A student, and where its batches come from."""

    config: DistillConfig
    student: StillroomStudent
    batches: Batches
    #: The chosen questions of each scene.
    items: list[list[Item]]

    def shared(self) -> Any:
        """A row a scene."""
        return self.batches.batch(self.batches.rows, self.items)

    def single(self) -> Any:
        """A row a question."""
        rows = [row for row, asked in zip(self.batches.rows, self.items) for _ in asked]
        return self.batches.batch(rows, [[item] for asked in self.items for item in asked])

    def loss(self, batch: Any) -> torch.Tensor:
        """Every term's mean, all of weight 1."""
        sums, counts = distill_step(self.student, batch, self.config.losses), count_labelled(batch)
        means = [total / counts[name] for name, total in sums.terms.items() if counts[name]]
        return torch.stack(means).sum()


def prepare(options: argparse.Namespace, folder: Path) -> Work:
    """Rooms, labels, features and a fresh student."""
    config: DistillConfig = recipes.table("distill")[options.recipe]()
    scenes, labels = folder / "scenes", folder / "labels"
    api.make_scenes(scenes, count=options.scenes, seed=SEED, split="train")
    api.label(scenes, teacher="truth", out=labels, signals=("answers",))
    store, said = open_store(scenes), open_labels(labels)
    student, processor = build_student(config, registry.locate(config.encoder))
    ids = store.scene_ids("train")
    features = cache_features(
        student, processor, store, ids, folder / "features", encoder="mini", scenes_per_pass=8
    )
    questions = {
        scene_id: [q for q in store.questions(scene_id) if q.family in FAMILIES] for scene_id in ids
    }
    prompts = {q.question_id: q.prompt for asked in questions.values() for q in asked}
    items = items_by_scene(
        questions,
        {scene_id: said.labels(scene_id) for scene_id in ids},
        prompts,
        processor.tokenizer,
    )
    targets = cache_targets(
        store,
        ids,
        folder / "features",
        processor=processor,
        grid=student.config.vision_grid,
        losses=config.losses,
        teacher=None,  # truth has no features: the term is off
    )
    batches = Batches(
        config, features, items, prompts=prompts, tokenizer=processor.tokenizer, targets=targets
    )
    chosen = [list(items[scene_id][: options.questions]) for scene_id in ids]
    if any(len(asked) < options.questions for asked in chosen):
        sys.exit(f"a room has fewer than {options.questions} questions of the four families")
    return Work(config, student.train(), batches, chosen)


def gradients(work: Work, batch: Any) -> list[torch.Tensor]:
    """Of every trained parameter that has a part in the loss."""
    trained = [p for p in work.student.parameters() if p.requires_grad]
    found = torch.autograd.grad(work.loss(batch), trained, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


def difference(work: Work) -> float:
    """Largest difference of any gradient between the two ways, over the largest gradient."""
    one, other = gradients(work, work.shared()), gradients(work, work.single())
    largest = max(float(g.abs().max()) for g in one)
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True)) / largest


def seconds_of(work: Work, repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds on the clock and of the processor for a step in both ways, taking turns."""
    trained = [p for p in work.student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-6)
    ways: dict[str, Callable[[], Any]] = {"shared": work.shared, "single": work.single}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(repeats + 1):
        for name, make in ways.items():
            began, worked = time.perf_counter(), time.process_time()
            optimizer.zero_grad()
            work.loss(make()).backward()
            optimizer.step()
            if repeat:
                taken[name].append((time.perf_counter() - began, time.process_time() - worked))
    return taken


def main() -> None:
    """Read the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="mini_cpu", choices=("mini_cpu", "mini_cpu_paper"))
    parser.add_argument("--scenes", type=int, default=8, help="of one step")
    parser.add_argument("--questions", type=int, default=8, help="of each scene")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(options, Path(folder))
        off = difference(work)
        taken = seconds_of(work, options.repeats)
    questions = options.scenes * options.questions
    median = {name: statistics.median(on for on, _ in values) for name, values in taken.items()}
    turns = list(zip(taken["single"], taken["shared"], strict=True))
    clock, processor = (
        round(statistics.median(single[i] / shared[i] for single, shared in turns), 3)
        for i in (0, 1)
    )
    views = work.batches.features.tokens.shape[1]
    print(
        f"{options.recipe}, {options.scenes} scenes of {views} views, {options.questions} "
        "questions each, fp32"
    )
    print(f"{'':12}{'median [s]':>12}{'slowest [s]':>13}{'questions/s':>13}")
    for name, values in taken.items():
        slowest = max(on for on, _ in values)
        print(f"{name:12}{median[name]:12.3f}{slowest:13.3f}{questions / median[name]:13.1f}")
    print(f"gradients differ by {off:.1e} of the largest")
    record = {
        "benchmark": "scene_batching",
        "ratio": clock,
        "ratio_processor": processor,
        "gradient_difference": off,
        "questions_per_s": {name: round(questions / s, 2) for name, s in median.items()},
        **{name: getattr(options, name) for name in ("recipe", "scenes", "questions", "repeats")},
        "views": views,
    }
    write(record | circumstances(["torch", "transformers"], load=load), options.out)
    if not off <= 1e-5:
        sys.exit(f"the gradients differ by {off}, more than 1e-5 of the largest")


if __name__ == "__main__":
    main()
