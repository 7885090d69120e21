"""The command line: one small function per verb. Only here are printing and progress bars at home.

Nothing heavy is imported before a verb runs, so that ``stillroom --help`` answers at once.
Exit codes: 0 done, 1 a check failed, 2 bad input (one sentence on standard error).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from stillroom import __version__, cli_bench
from stillroom.console import process_number, progress_bar
from stillroom.records import BadInputError
from stillroom.teachers.options import TeacherOptions

Layout = Literal["auto", "scannet", "tum", "transforms", "photos"]

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
    raise BadInputError(_unknown("verb", " ".join(words[:1]), VERBS, help_from="stillroom --help"))


def _unknown(what: str, given: str, known: Mapping[str, Any], *, help_from: str = "") -> str:
    close = difflib.get_close_matches(given, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(sorted(known))}"
    return f"unknown {what} {given!r}{hint}" + (f" See {help_from}" if help_from else "")


def _parse(cls: Any, words: Sequence[str], prog: str) -> Any:
    """Options of one verb as an object; the parser's complaint as one sentence."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(cls, args=list(words), prog=f"stillroom {prog}")
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise BadInputError(_one_sentence(complaint.getvalue(), prog)) from None


def _one_sentence(boxed: str, prog: str) -> str:
    """What the option parser drew as a box, as one line: the complaint without its help."""
    kept: list[str] = []
    # The first line is the box's title; frames are missing where the terminal has no UTF-8.
    for line in (line[1:].rstrip("│ ") for line in boxed.splitlines()[1:]):
        if kept and not line.strip(" ─-"):  # below the rule stands only where to find help
            break
        # Eight spaces in: the help text of an option that was named before.
        if line.strip(" ─-╰╯") and not line.startswith(9 * " "):
            kept.append(line.strip())
    text = re.sub(r"\s+", " ", " ".join(kept)).strip()
    return f"{text.rstrip('.:;')}; see stillroom {prog} --help"


def _say(text: str) -> None:
    if not process_number():  # under torchrun the first process speaks for all
        sys.stdout.write(text + "\n")


# Options of the verbs: the comment above a field is its help text. ------------------------------

ModelName = Annotated[str, tyro.conf.arg(metavar="MODEL")]
Photos = Annotated[Path, tyro.conf.arg(metavar="PHOTOS")]
Text = Annotated[str, tyro.conf.arg(metavar="QUESTION")]
Folder = Annotated[Path, tyro.conf.arg(metavar="DIR")]
RecipeName = Annotated[str, tyro.conf.arg(metavar="RECIPE")]


def scenes_make(words: Sequence[str]) -> int:
    """Make rooms."""

    def options(
        *,
        count: int,
        seed: int,
        out: Path,
        density: Literal["plain", "furnished"] = "plain",
        questions: int = 24,
        split: Literal["train", "val", "test", "shifted"] | None = None,
        workers: int | None = None,
    ) -> dict[str, Any]:
        """Make rooms with questions; the same command goes on where it stopped.

        Args:
            count: Rooms to make.
            seed: Room i is drawn from the pair (seed, i).
            out: Folder of the store.
            density: plain has 4 to 9 things, furnished 20 to 40.
            questions: Questions in all per room.
            split: Put every room into this split; default is 70/10/20 by room.
            workers: Processes; default is one per core.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "scenes make")
    with progress_bar("making rooms") as progress:
        made = api.make_scenes(**given, progress=progress)
    state = "was finished already" if not made else f"holds {given['count']} rooms"
    _say(f"{given['out']} {state}")
    return 0


def scenes_import(words: Sequence[str]) -> int:
    """Import a capture."""

    def options(
        source: Positional[Folder], /, *, out: Path, layout: Layout = "auto"
    ) -> dict[str, Any]:
        """Read a capture (posed RGB-D or plain photos) into a scene store.

        Args:
            source: Folder of the capture.
            out: Folder of the store.
            layout: What the folder is; auto looks and says what it took.
        """
        return locals()

    from stillroom import api

    notes = api.import_scenes(**_parse(options, words, "scenes import"))
    _say("\n".join(notes))
    return 0


def scenes_check(words: Sequence[str]) -> int:
    """Check a store or a capture."""

    def options(path: Positional[Folder], /, *, json: bool = False) -> dict[str, Any]:
        """Do poses, intrinsics and depth agree, and does geometry give the stored answers?

        Args:
            path: A scene store, or a capture's own folder.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "scenes check")
    with progress_bar("checking") as progress:
        report = api.check_scenes(given["path"], progress=progress)
    _say(json.dumps(report) if given["json"] else "\n".join(report["lines"]))
    return 0 if report["ok"] else 1


def scenes_audit(words: Sequence[str]) -> int:
    """Look for shortcuts."""

    def options(
        path: Positional[Folder], /, *, seed: int = 0, json: bool = False
    ) -> dict[str, Any]:
        """Can the questions be answered without looking? Exit code 1 if a guesser can.

        Guessers of words, of the kinds named and of frequencies answer each fifth of the scenes
        from the other four; each may be 3 points above chance.

        Args:
            path: A scene store.
            seed: Which scenes make a fifth.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "scenes audit")
    as_json = given.pop("json")
    with progress_bar("auditing") as progress:
        report, lines = api.audit_scenes(**given, progress=progress)
    _say(json.dumps(report) if as_json else "\n".join(lines))
    return 0 if report["ok"] else 1


def scenes_show(words: Sequence[str]) -> int:
    """Draw a contact sheet."""

    def options(
        path: Positional[Folder], /, *, scene: str = "0", out: Path = Path("contact_sheet.png")
    ) -> dict[str, Any]:
        """Draw views, depth, boxes, plan and three questions of one scene.

        Args:
            path: A scene store.
            scene: Scene id, or its number in the store.
            out: PNG to write.
        """
        return locals()

    from stillroom import api

    _say(str(api.show_scene(**_parse(options, words, "scenes show"))))
    return 0


SuiteName = Literal[
    "vsibench",
    "vsibench-debiased",
    "3dsrbench",
    "spatialbench",
    "scanqa",
    "sqa3d",
    "scan2cap",
    "blink",
    "cvbench",
    "mmvp",
    "vstar",
    "mmstar",
]
Prompt = Literal["official", "plain"]


def scenes_ask(words: Sequence[str]) -> int:
    """Join published questions with scenes."""

    def options(
        data: Positional[Folder], /, *, suite: SuiteName, out: Path, prompt: Prompt = "official"
    ) -> dict[str, Any]:
        """Join a benchmark's published questions with their scenes, for label or evaluate.

        Args:
            data: Folder with the published files and the scenes (docs/evaluate.md says which).
            suite: Which benchmark.
            out: Folder of the store.
            prompt: official asks in the benchmark's words, plain with question and options alone.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "scenes ask")
    with progress_bar("joining") as progress:
        lines = api.ask_scenes(**given, progress=progress)
    _say("\n".join(lines))
    return 0


def scenes_export(words: Sequence[str]) -> int:
    """Export scenes."""

    def options(
        scenes: Positional[Folder], /, *, out: Path, to: Literal["vsibench"] = "vsibench"
    ) -> dict[str, Any]:
        """Write a store's questions and frames in a benchmark's own format.

        Args:
            scenes: A scene store with questions of VSI-Bench's types.
            out: Folder to write.
            to: Whose format.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "scenes export")
    given.pop("to")
    with progress_bar("exporting") as progress:
        lines = api.export_scenes(**given, progress=progress)
    _say("\n".join(lines))
    return 0


def _recipe_options(words: Sequence[str], verb: str, extra: Mapping[str, Any]) -> tuple[str, Any]:
    """The recipe named first, and its options: every config field is a flag.

    A wrong recipe name is reported before anything else is.
    """
    from stillroom import recipes

    known = recipes.table(verb)
    if not words or words[0].startswith("-"):
        if "--help" in words or "-h" in words:
            names = "\n".join(f"  {name:24} {_first_line(make)}" for name, make in known.items())
            _say(f"usage: stillroom {verb} RECIPE [options]\n\nrecipes\n{names}")
            sys.exit(0)
        raise BadInputError(f"name a recipe first: stillroom {verb} {'|'.join(known)} ...")
    if words[0] not in known:
        raise BadInputError(_unknown("recipe", words[0], known))
    config = known[words[0]]()
    entries: list[Any] = []
    for name, (kind, default, text) in extra.items():
        annotated = Annotated[kind, tyro.conf.arg(help=text)]  # type: ignore[valid-type]
        entries.append((name, annotated, field(default=default, kw_only=True)))
    flat = Annotated[type(config), tyro.conf.arg(name="")]  # type: ignore[valid-type]
    entries.append(("config", flat, field(default=config, kw_only=True)))
    options = make_dataclass("Options", entries, frozen=True)
    options.__doc__ = _first_line(known[words[0]])
    return words[0], _parse(options, words[1:], f"{verb} {words[0]}")


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


_SCENES = (Path, MISSING, "Scene store to train on.")
_OUT = (Path, MISSING, "Run folder; the same command goes on where it stopped.")


def pretrain_encoder(words: Sequence[str]) -> int:
    """Train a miniature encoder."""
    return _train_verb("pretrain-encoder", words, {"scenes": _SCENES, "out": _OUT})


def teach(words: Sequence[str]) -> int:
    """Train a miniature teacher."""
    return _train_verb("teach", words, {"scenes": _SCENES, "out": _OUT})


def distill(words: Sequence[str]) -> int:
    """Train a student."""
    labels = (Path, MISSING, "Label store of the teacher.")
    return _train_verb("distill", words, {"scenes": _SCENES, "labels": labels, "out": _OUT})


def _train_verb(verb: str, words: Sequence[str], extra: Mapping[str, Any]) -> int:
    recipe, options = _recipe_options(words, verb, extra)
    from stillroom import api

    logging.getLogger("stillroom").setLevel(logging.INFO)
    runs: dict[str, Callable[..., str]] = {
        "pretrain-encoder": api.pretrain_encoder,
        "teach": api.teach,
        "distill": partial(api.distill, recipe=recipe),
    }
    folders = {name: getattr(options, name) for name in extra}
    from stillroom.training.handed import TrainingDiverged

    try:
        with progress_bar(verb) as progress:
            _say(runs[verb](options.config, **folders, progress=progress))
    except TrainingDiverged as error:
        if not process_number():
            sys.stderr.write(f"stillroom: {error}\n")
        return 1
    return 0


def label(words: Sequence[str]) -> int:
    """Label scenes with a teacher."""

    def options(
        scenes: Positional[Folder],
        /,
        *,
        teacher: str,
        out: Path | None = None,
        signals: tuple[
            Literal[
                "answers",
                "topk_logits",
                "reference_logits",
                "last_hidden",
                "attention",
                "scene_features",
            ],
            ...,
        ] = ("answers", "topk_logits"),
        workers: int | None = None,
        options: TeacherOptions = TeacherOptions(),  # noqa: B008  (it is frozen)
        ray: str | None = None,
        scenes_per_part: int | None = None,
        dry_run: bool = False,
        tflops: float = 100.0,
        json: bool = False,
        geometry: Literal["given", "predicted"] = "given",
        encoder: str = "encoder_mini",
    ) -> dict[str, Any]:
        """Let a teacher answer every question of every scene, once.

        Several commands may label one store at once: they share the work.

        Args:
            scenes: Scene store.
            teacher: teacher_mini, a folder, llava3d:WHERE, vlm:WHERE, http:ADDRESS#MODEL or truth.
            out: Folder of the label store.
            signals: What to keep.
            workers: Processes, or Ray actors, one teacher each. Default is 1; with --ray one per
                GPU, or per 8 CPUs of a machine where there is none.
            ray: Label with the Ray cluster at this address; without one, start it here.
            scenes_per_part: Scenes that a kill may cost; none is 5, of vlm: and http: 1.
            dry_run: Load nothing and write nothing: print sizes, operations, time and disk.
                Knows llava3d-7b, the released teacher, too.
            tflops: With --dry-run: TFLOP/s sustained by all devices together.
            json: With --dry-run: print one JSON object.
            options: How the teacher is loaded and asked. In brackets stand the kinds of teachers
                that know an option; teacher_mini is of kind llava3d.
            geometry: What a scene without depth and poses gets: nothing, or an encoder's.
            encoder: The encoder that predicts geometry.
        """
        return locals()

    from stillroom import api

    given = _parse(options, _with_address(words), "label")
    tflops, as_json = given.pop("tflops"), given.pop("json")
    if given.pop("dry_run"):
        wanted = {name: given[name] for name in ("scenes", "teacher", "signals", "options")}
        figures, lines = api.label_cost(**wanted, tflops=tflops)
        _say(json.dumps(figures) if as_json else "\n".join(lines))
        return 0
    if given["out"] is None:
        raise BadInputError("name the folder of the label store: --out DIR")
    with progress_bar("labelling scenes") as progress:
        done = api.label(**given, progress=progress)
    _say(f"{given['out']} " + (f"labelled {done} scenes" if done else "was finished already"))
    return 0


def _with_address(words: Sequence[str]) -> list[str]:
    """``--ray`` may stand alone: then the cluster is started here."""
    given = list(words)
    if "--ray" in given:
        place = given.index("--ray") + 1
        address = given[place] if place < len(given) else ""
        if not re.fullmatch(r"local|auto|ray://\S+|[\w.-]+:\d+", address):
            given.insert(place, "local")
    return given


def labels(words: Sequence[str]) -> int:
    """Look into label stores."""

    def options(
        action: Positional[Literal["status", "verify", "merge", "export"]],
        paths: Positional[tuple[Folder, ...]],
        /,
        *,
        scenes: tuple[Path, ...] = (),
        out: Path | None = None,
        student: str | None = None,
        json: bool = False,
    ) -> dict[str, Any]:
        """Say what a label store holds (status), whether every byte and row of it is as written
        (verify), join stores (merge), or write them for other trainers (export).

        Args:
            action: status, verify, merge or export.
            paths: Label stores; several for merge.
            scenes: With verify: the scene stores that were labelled, to see what changed in them.
            out: Folder that merge and export write.
            student: With export: whose tokenizer the rows are tokenised with.
            json: With status: print one JSON object.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "labels")
    action, paths, out = given["action"], given["paths"], given["out"]
    if action in ("merge", "export") and out is None:
        raise BadInputError(f"labels {action} needs --out DIR")
    if action == "merge":
        _say(f"{out} holds {api.merge_labels(paths, out=out)} rows")
        return 0
    if len(paths) != 1:
        raise BadInputError(f"labels {action} takes one label store, got {len(paths)}")
    if action == "export":
        rows = api.export_labels(paths[0], out=out, student=given["student"])
        _say(f"{out} holds {rows} rows for other trainers")
        return 0
    if action == "status" and given["json"]:
        from stillroom.teachers.label_check import status

        _say(json.dumps(status(paths[0])))
        return 0
    ok, lines = api.look_at_labels(action, paths[0], scenes=given["scenes"])
    _say("\n".join(lines))
    return 0 if ok else 1


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

    given = _parse(options, words, "evaluate")
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
        _say(json.dumps(results["rows"]))
    else:
        from stillroom.evaluate.report import print_table

        print_table(results)
        if suite is not None:
            from stillroom.evaluate.suites.report import lines

            _say("\n".join(lines(results)))
        _say(f"report: {given['out'] / 'report.html'}")
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

    given = _parse(options, words, "ask")
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
        _say(json.dumps(record | ({"depth": written} if depth else {})))
        return 0
    lines = [said.answer, *(asking.box_lines(said.geometry) if boxes else [])]
    lines += asking.diagnosis_lines(said.diagnosis) if said.diagnosis else []
    _say("\n".join([*lines, *asking.depth_lines(written)]))
    return 0


def params(words: Sequence[str]) -> int:
    """Count parameters."""
    from stillroom import api, recipes

    known = recipes.table("distill")
    if words and not words[0].startswith("-") and words[0] not in known:
        raise BadInputError(_unknown("recipe", words[0], known))

    def options(
        recipe: Positional[RecipeName],
        /,
        *,
        quant: Literal["int8", "int4"] | None = None,
        json: bool = False,
    ) -> dict[str, Any]:
        """Parameters of a recipe's student by part, counted without allocating.

        Args:
            recipe: Name of a distillation recipe.
            quant: Also the bytes of each part with weights of so many bits.
            json: Print one flat JSON object.
        """
        return locals()

    given = _parse(options, words, "params")
    table = api.params(given["recipe"], quant=given["quant"])
    if given["json"]:
        _say(json.dumps(table))
    else:
        _say("\n".join(f"{name:24} {count:>15,}" for name, count in table.items()))
    return 0


def export(words: Sequence[str]) -> int:
    """Write a student in another form."""

    def options(
        model: Positional[ModelName],
        /,
        *,
        to: Literal["int8", "int4", "onnx", "executorch"],
        out: Path,
        json: bool = False,
    ) -> dict[str, Any]:
        """Write a student in another form: weights of 8 or 4 bits (a folder like any other), ONNX
        graphs for ask --runtime onnx, or programs for ExecuTorch's runtime on a device.

        Args:
            model: student_mini, a checkpoint folder, or a hub id.
            to: The form.
            out: Folder to write.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api

    given = _parse(options, words, "export")
    had = given["out"].is_dir() and any(given["out"].iterdir())
    written = api.export(given["model"], to=given["to"], out=given["out"])
    if given["json"]:
        _say(json.dumps(written))
        return 0
    before, after = (written[name] / 1e6 for name in ("bytes_before", "bytes"))
    if had:
        _say(f"{given['out']} was finished already")
    _say(
        f"{given['out']} holds {given['model']} as {given['to']}: {after:,.2f} MB of {before:,.2f}"
    )
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

    given = _parse(options, words, "verify")
    ok, lines = api.verify(given["fixtures"], kind=given["kind"])
    _say("\n".join(lines))
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

    run_demo(_parse(options, words, "demo")["out"])
    return 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "scenes make": scenes_make,
    "scenes import": scenes_import,
    "scenes check": scenes_check,
    "scenes audit": scenes_audit,
    "scenes show": scenes_show,
    "scenes ask": scenes_ask,
    "scenes export": scenes_export,
    "pretrain-encoder": pretrain_encoder,
    "teach": teach,
    "label": label,
    "labels": labels,
    "distill": distill,
    "evaluate": evaluate,
    "ablate": cli_bench.ablate,
    "probe": cli_bench.probe,
    "ask": ask,
    "export": export,
    "bench latency": cli_bench.bench_latency,
    "params": params,
    "verify": verify,
    "demo": demo,
}
