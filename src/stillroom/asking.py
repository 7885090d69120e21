"""What a model says of photos: its answer and, of a student, boxes and depth, for people and files.

Boxes are in view0: metres right, forward and up from the floor below the first photo's camera.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stillroom.geometry.poses import yaw_of
from stillroom.records import BadInputError, OrientedBox, Question, Scene, SceneGeometry, asked

if TYPE_CHECKING:
    from stillroom.engine.prefix import ScenePrefix
    from stillroom.students.session import StudentAnswerer, StudentSession


@dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer and the geometry behind it; ``views`` are the names of the photos looked at."""

    question: str
    answer: str
    geometry: SceneGeometry = field(default_factory=SceneGeometry)
    views: tuple[str, ...] = ()
    # What the output matrix makes of its slots; None if nobody asked.
    diagnosis: Diagnosis | None = None


@dataclass(frozen=True, kw_only=True)
class SlotText:
    """The likeliest token at one slot position; ``entropy_nats`` is over the whole vocabulary."""

    token: str
    probability: float
    entropy_nats: float


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """The read-out of every slot, beside two controls of the same student and question."""

    slots: tuple[SlotText, ...]
    # Random slots, each as long as the student's own.
    random_slots: tuple[SlotText, ...]
    # The student's own slots before other photos, and which those are.
    other_photos: tuple[SlotText, ...]
    other: str
    vocabulary: int


#: What is said below depth that has no scale.
NO_METRES = (
    "This student's encoder tells depth without a scale: in one scene 2 is twice as far as 1, but "
    "neither is metres."
)
#: Seed and number of the made room whose photos stand in for other ones, and of random slots.
SAMPLE_ROOM = (2026, 0)


def reply(
    model: str,
    scene: Scene,
    question: str,
    *,
    boxes: bool = False,
    depth: bool = False,
    diagnose: bool = False,
    control: Scene | None = None,
) -> Reply:
    """What ``model`` says about the photos of a scene.

    ``diagnose`` reads its slots out, beside random slots and the photos of ``control`` (default: a
    made room).

    Raises:
        BadInputError: the question is empty or too long, the model is none that looks at photos,
            or it cannot say what is asked for.
    """
    from stillroom import registry

    kind, where = registry.kind_of(model)
    if kind not in ("student", *registry.LOOKING_TEACHERS):
        raise BadInputError(f"{model!r} does not look at photos; ask a student or a teacher")
    # What is cheap to refuse comes before a model is loaded.
    wanted = asked(scene.scene_id, question)
    if kind != "student":
        if boxes or depth:
            raise BadInputError(
                f"{model!r} is a teacher and gives no boxes or depth; ask a student for them"
            )
        if diagnose:
            raise BadInputError(f"{model!r} is a teacher and has no slots; diagnose a student")
        teacher: Any = registry.teacher(model)
        return Reply(question=question, answer=str(teacher.open(scene).answer([wanted])[0].text))
    from stillroom.students.session import StudentAnswerer

    answerer = StudentAnswerer.from_folder(registry.locate(where))
    if boxes and answerer.student.detector is None:
        raise BadInputError(
            f"{model!r} has no detector and gives no boxes; distil a student with "
            "--losses.detection"
        )
    if diagnose:
        from stillroom.students.probe import require_slots

        require_slots(answerer.student, model)
    session: StudentSession = answerer.open(scene)
    answer = session.answer([wanted])[0].text
    geometry = session.geometry() if boxes or depth else SceneGeometry()
    if depth and geometry.depth is None:
        raise BadInputError(f"{model!r} has no depth head and gives no depth")
    return Reply(
        question=question,
        answer=answer,
        geometry=geometry,
        views=tuple(scene.views[number].name for number in session.views),
        diagnosis=_diagnosis(answerer, session, wanted, control) if diagnose else None,
    )


def _diagnosis(
    answerer: StudentAnswerer, session: StudentSession, question: Question, control: Scene | None
) -> Diagnosis:
    from stillroom.students.probe import SlotEdit, random_slots, read_out

    student, processor = answerer.student, answerer.processor
    ids = processor.question_ids(question.prompt)
    if control is None:
        from stillroom.scenes.rooms import make_room

        control = make_room(*SAMPLE_ROOM)
    drawn = SlotEdit(embeddings=random_slots(student, rng=np.random.default_rng(SAMPLE_ROOM)))
    elsewhere = answerer.open(control).prefix

    def read(prefix: ScenePrefix, edit: SlotEdit | None = None) -> tuple[SlotText, ...]:
        return tuple(
            SlotText(
                token=processor.tokenizer.token_text(word.token_id),
                probability=word.probability,
                entropy_nats=word.entropy,
            )
            for word in read_out(student, prefix, ids, edit=edit)
        )

    return Diagnosis(
        slots=read(session.prefix),
        random_slots=read(session.prefix, drawn),
        other_photos=read(elsewhere),
        other=control.source,
        vocabulary=student.get_output_embeddings().weight.shape[0],
    )


def diagnosis_record(found: Diagnosis) -> dict[str, Any]:
    """A diagnosis as plain numbers, with what it is worth."""
    from stillroom.students.probe import PROBE_NOTE

    return {
        "note": PROBE_NOTE,
        "no_idea_nats": round(math.log(found.vocabulary), 4),
        "control_photos": found.other,
        **{
            name: [
                {
                    "token": word.token,
                    "probability": round(word.probability, 6),
                    "entropy_nats": round(word.entropy_nats, 4),
                }
                for word in getattr(found, name)
            ]
            for name in ("slots", "random_slots", "other_photos")
        },
    }


def diagnosis_lines(found: Diagnosis) -> list[str]:
    """A diagnosis as a table to print, the note below it."""
    from stillroom.students.probe import PROBE_NOTE

    columns = (found.slots, found.random_slots, found.other_photos)
    names = ("its slots", "random slots", f"other photos ({found.other})")
    width = max(len(repr(word.token)) for column in columns for word in column)
    head = "slot  " + "  ".join(f"{name:<{width + 17}}" for name in names)
    lines = [head.rstrip()]
    for number, words in enumerate(zip(*columns, strict=True), start=1):
        cells = [
            f"{word.token!r:<{width}} p {word.probability:5.3f} {word.entropy_nats:5.2f} nats"
            for word in words
        ]
        lines.append(f"{number:>4}  " + "  ".join(cells))
    lines.append(f"no idea at all would be {math.log(found.vocabulary):.2f} nats")
    return [*lines, PROBE_NOTE]


def box_rows(geometry: SceneGeometry) -> list[dict[str, Any]]:
    """The boxes as plain numbers: metres in view0, yaw in degrees from above."""
    return [
        {"name": name, "score": round(score, 4), **_numbers(box)}
        for (name, box), score in zip(geometry.boxes, geometry.box_scores, strict=True)
    ]


def box_lines(geometry: SceneGeometry) -> list[str]:
    """The boxes as a table to print."""
    if not geometry.boxes:
        return ["no thing was found with enough certainty to be shown"]
    rows = box_rows(geometry)
    width = max(len(row["name"]) for row in rows)
    head = f"{'':{width}}  sure   right forward   up [m]   width  depth height [m]   turned"
    return [head, *(_line(row, width) for row in rows)]


def write_depth(said: Reply, folder: Path) -> list[dict[str, Any]]:
    """Depth of every photo in ``folder``: ``NAME.npy`` in the student's unit, ``NAME.png`` to look
    at.

    The maps are of the middle square of each photo, as the student sees it; all pictures share one
    scale of colours, near is red. Returns where they lie and how deep they go: names end in ``_m``
    where the unit is metres.
    """
    import matplotlib

    assert said.geometry.depth is not None
    maps, unit = said.geometry.depth, said.geometry.depth_unit
    suffix = "_m" if unit == "metre" else ""
    least, most = float(maps.min()), float(maps.max())
    colours = matplotlib.colormaps["turbo_r"]
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, stem, depth in zip(said.views, _stems(said.views), maps, strict=True):
        npy, png = folder / f"{stem}.npy", folder / f"{stem}.png"
        np.save(npy, depth)
        shown = (depth - least) / max(most - least, 1e-6)
        _save_picture(colours(shown, bytes=True)[..., :3], png)
        found.append(
            {
                "view": name,
                "npy": str(npy),
                "png": str(png),
                "unit": unit,
                f"near{suffix}": round(float(depth.min()), 3),
                f"median{suffix}": round(float(np.median(depth)), 3),
                f"far{suffix}": round(float(depth.max()), 3),
            }
        )
    return found


def depth_lines(written: Sequence[dict[str, Any]]) -> list[str]:
    """Where depth was written, a line per photo, and what it means where it is not in metres."""
    lines = []
    for row in written:
        metric = row["unit"] == "metre"
        near, far = (row[f"{end}_m" if metric else end] for end in ("near", "far"))
        reach = f"{near:.2f} to {far:.2f} {'m' if metric else 'units of the scene'}"
        lines.append(f"depth of {row['view']}: {reach}, {row['npy']} and {row['png']}")
    return [*lines, *([NO_METRES] if any(row["unit"] == "scene" for row in written) else [])]


def _numbers(box: OrientedBox) -> dict[str, Any]:
    return {
        "center_m": [round(float(value), 4) for value in box.center],
        "size_m": [round(float(value), 4) for value in box.size],
        "yaw_deg": round(math.degrees(float(yaw_of(box.rotation))), 2),
    }


def _line(row: dict[str, Any], width: int) -> str:
    center = " ".join(f"{value:7.2f}" for value in row["center_m"])
    size = " ".join(f"{value:6.2f}" for value in row["size_m"])
    turned = f"{row['yaw_deg']:4.0f} deg"
    return f"{row['name']:{width}}  {row['score']:.2f} {center}       {size}       {turned}"


def _stems(names: Sequence[str]) -> list[str]:
    """A file name for each photo, its own where no two photos share it."""
    stems = [Path(name).stem or f"view{index}" for index, name in enumerate(names)]
    return [
        stem if stems.count(stem) == 1 else f"{index:03d}_{stem}"
        for index, stem in enumerate(stems)
    ]


def _save_picture(rgb: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(rgb).save(path)
