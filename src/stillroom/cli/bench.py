"""The verbs that compare, look into and time models: ``ablate``, ``probe``, ``bench latency``."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from stillroom.bench.options import LatencyOptions
from stillroom.cli import parsing
from stillroom.cli.parsing import Folder
from stillroom.console import progress_bar

Suite = Annotated[Literal["table2", "table3", "slots"], tyro.conf.arg(metavar="SUITE")]
Checkpoint = Annotated[str, tyro.conf.arg(metavar="CHECKPOINT")]
Split = Literal["train", "val", "test", "shifted", "all"]


def ablate(words: Sequence[str]) -> int:
    """Train and compare arms."""

    def options(
        suite: Positional[Suite],
        /,
        *,
        scenes: Path,
        labels: Path,
        out: Path,
        seeds: int = 3,
        recipe: str = "mini_cpu_paper",
        steps: int | None = None,
        arms: tuple[str, ...] = (),
        eval_split: Split = "test",
        limit: int | None = None,
        processes: int | None = None,
        no_objects_encoder: str | None = None,
        plateau: float | Literal["auto"] | None = None,
        null_size: float = 0.03,
        arms_folder: Path | None = None,
        json: bool = False,
    ) -> dict[str, Any]:
        """Train the arms of a suite, each with every seed, and compare them (docs/ablations.md).

        The same command goes on where it stopped; more seeds or arms may be asked for later. Exit
        code 1 if an arm failed: the others are in the table, and the same command tries it again.

        Args:
            suite: table2 (what each term is worth), table3 (how many slots), slots (are they used).
            scenes: Scene store.
            labels: Label store of the teacher; it holds the scenes asked about too.
            out: Folder of the ablation: ABLATION.json, .md, .html and .png, and every run.
            seeds: Seeds of every arm; fewer than 3 claim nothing.
            recipe: Distillation recipe that the arms are made from.
            steps: Steps of every arm; none is the recipe's own.
            arms: Train these alone, and the base arm.
            eval_split: Scenes that are asked about.
            limit: At most so many of them.
            processes: Arms trained side by side, each in a process of its own; none is 2 where
                there are as many cores.
            no_objects_encoder: Of table2: the encoder that was pretrained without object targets.
            plateau: Score (0 to 1) of the base arm when it gains no more, which says whether a
                missing difference counts; auto trains it three times as long and measures it.
            null_size: The largest difference (0 to 1) that may be overlooked where none is said to
                be seen.
            arms_folder: Where arms and features lie that several suites share; none is OUT.
            json: Print what ABLATION.json holds.
        """
        return locals()

    from stillroom import api, recipes
    from stillroom.records import BadInputError

    given = parsing.parse(options, words, "ablate")
    as_json = given.pop("json")
    known = recipes.table("distill")
    if given["recipe"] not in known:
        raise BadInputError(parsing.unknown("recipe", given["recipe"], known))
    logging.getLogger("stillroom.bench").setLevel(logging.INFO)
    left: list[int] = []

    with progress_bar(f"arms of {given['suite']}") as progress:

        def watch(done: int, total: int) -> None:
            left.append(total - done)
            progress(done, total)

        record = api.ablate(
            given.pop("suite"), split=given.pop("eval_split"), progress=watch, **given
        )
    if as_json:
        parsing.say(json.dumps(record))
    else:
        from stillroom.bench.ablation_report import findings

        state = [] if left[0] else [f"{given['out']} was finished already"]
        parsing.say("\n".join([*state, *findings(record), str(given["out"] / "ABLATION.html")]))
    return 1 if record["failed"] else 0


def probe(words: Sequence[str]) -> int:
    """Look into slots."""

    def options(
        checkpoint: Positional[Checkpoint],
        scenes: Positional[Folder],
        /,
        *,
        out: Path,
        split: Literal["val", "test", "shifted"] = "test",
        limit: int = 300,
        seed: int = 0,
        json: bool = False,
    ) -> dict[str, Any]:
        """Fit linear probes to a student's slot states and draw where its slots look.

        Probes learn from the scenes of the split train. The same command goes on where it stopped.

        Args:
            checkpoint: student_mini, a student's folder, or a hub id; it has slots.
            scenes: Store of made rooms.
            out: Folder for PROBE.json, PROBE.html and the pictures.
            split: Scenes that the probes are scored on.
            limit: At most so many scenes to learn from, and as many to score.
            seed: Control targets, random slots and the scenes shown are drawn from it.
            json: Print what PROBE.json holds.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "probe")
    as_json = given.pop("json")
    finished = (given["out"] / "PROBE.json").is_file()
    with progress_bar("reading slots") as progress:
        record = api.probe(**given, progress=progress)
    if as_json:
        parsing.say(json.dumps(record))
    else:
        from stillroom.bench.probe_report import best_table

        if finished:
            parsing.say(f"{given['out']} was finished already")
        parsing.say(best_table(record).markdown())
        parsing.say(str(given["out"] / "PROBE.html"))
    return 0


def bench_latency(words: Sequence[str]) -> int:
    """Time teacher and student."""

    def options(
        *,
        student: str = "student_mini",
        teacher: str = "teacher_mini",
        scenes: Path | None = None,
        scene_count: int = 8,
        random_weights: bool = False,
        out: Path | None = None,
        json: bool = False,
        options: Annotated[LatencyOptions, tyro.conf.arg(name="")] = LatencyOptions(),  # noqa: B008
    ) -> dict[str, Any]:
        """Time teacher and student on the same scenes and questions, in turns: a scene's first
        question and later ones, stage by stage, beside what the machine can do at best. Ends with
        one line of JSON.

        Args:
            student: student_mini, a checkpoint folder or a hub id; with --random-weights a recipe.
            teacher: teacher_mini or llava3d:WHERE; with --random-weights llava3d-7b or a folder.
            scenes: Scene store; without one, rooms are made.
            scene_count: Scenes that are looked at.
            random_weights: Noise instead of weights, at the sizes named: nothing is fetched.
            out: Folder for latency.json and the figures.
            json: Print the line of JSON alone.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "bench latency")
    as_json = given.pop("json")
    had = given["out"] is not None and (given["out"] / "latency.json").is_file()
    with progress_bar("measuring") as progress:
        record = api.bench_latency(given.pop("options"), **given, progress=progress)
    if not as_json:
        from stillroom.bench.latency import lines

        state = [f"{given['out']} was finished already"] if had else []
        parsing.say("\n".join([*state, *lines(record)]))
    parsing.say(json.dumps(record))
    return 0
