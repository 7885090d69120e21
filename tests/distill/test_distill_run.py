"""A whole distillation on tiny scenes: it runs, resumes after kill -9, refuses what is foreign."""

import subprocess
import sys
import time
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_world import TINY, run

from stillroom.distill import look as look_module
from stillroom.distill import run as run_module
from stillroom.distill.batches import Batches, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import LossConfig
from stillroom.distill.features import FeatureCache, cache_features
from stillroom.distill.prepare import text_alone
from stillroom.distill.run import distill
from stillroom.distill.step import count_labelled, distill_step
from stillroom.engine.naming import UNKNOWN
from stillroom.engine.packing import IGNORE_INDEX
from stillroom.geometry.poses import transform, view0_from_world
from stillroom.records import BadInputError
from stillroom.scenes.rooms import CATEGORIES, COLOURS
from stillroom.scenes.store import open_store
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_load import load_vggt
from stillroom.students.model import StillroomStudent
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_store import open_labels
from stillroom.testing import FixedTeacher, tiny_store
from stillroom.text.tokenizer import load_tokenizer
from stillroom.text.vocabulary import Vocabulary
from stillroom.training.runlog import read_log


def test_a_run_ends_with_a_student_that_answers(world: Path, tmp_path: Path) -> None:
    assert "after 6 steps" in run(world, tmp_path / "run")
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    depth = {"depth_ce", "depth_reg", "depth_kl"}
    assert set(rows[0]["terms"]) == {"text", *depth, "naming", "grounding"}
    assert rows[-1]["terms"]["grounding"] < rows[0]["terms"]["grounding"]
    assert rows[-1]["terms"]["text"] < rows[0]["terms"]["text"]
    store = open_store(world / "scenes")
    scene = next(store.iter_scenes("val"))
    questions = store.questions(scene.scene_id)
    session = StudentAnswerer.from_folder(tmp_path / "run" / "student").open(scene)
    said = session.answer(questions)
    assert [answer.question_id for answer in said] == [q.question_id for q in questions]
    geometry = session.geometry()
    assert geometry.depth is not None
    assert geometry.depth.shape == (2, 28, 28)


def test_losses_of_scenes_trained_on_stand_beside_the_held_out_ones(
    world: Path, tmp_path: Path
) -> None:
    said = run(world, tmp_path / "run", replace(TINY, training_scenes=2))
    rows = read_log(tmp_path / "run", kind="eval")
    held_out = {name for name in rows[0]["metrics"] if not name.startswith("train.")}
    assert {f"train.{name}" for name in held_out} == rows[0]["metrics"].keys() - held_out
    assert {"text", "answer_ce", "depth_ce", "grounding"} <= held_out
    # Other scenes, other numbers; the best is picked by the held-out ones.
    last = rows[-1]["metrics"]
    assert last["train.text"] != last["text"]
    assert "train." not in said
    # Six of eight scenes are trained on, two a step: 3 steps an epoch.
    epochs = read_log(tmp_path / "run", kind="epoch")
    assert [(row["epoch"], row["steps"]) for row in epochs] == [(1, 3), (2, 3)]
    assert epochs[0]["terms"].keys() == read_log(tmp_path / "run", kind="step")[0]["terms"].keys()
    # What is only looked at changes nothing: the same run, though nothing is looked at.
    run(world, tmp_path / "other", replace(TINY, training_scenes=0))
    assert "train.text" not in read_log(tmp_path / "other", kind="eval")[0]["metrics"]
    weights = [(tmp_path / name / "best.safetensors").read_bytes() for name in ("run", "other")]
    assert weights[0] == weights[1]


def test_labels_of_another_teacher_do_not_go_on_with_a_run(world: Path, tmp_path: Path) -> None:
    def labels(name: str) -> Path:
        folder = tmp_path / name
        label_scenes(
            world / "scenes",
            FixedTeacher,
            folder,
            teacher={"name": name},
            signals=("answers", "topk_logits"),
            vocabulary=load_tokenizer().vocabulary(),
        )
        return folder

    def learn(taught: Path) -> str:
        where = {"scenes": world / "scenes", "encoder": world / "encoder"}
        return distill(TINY, **where, labels=taught, out=tmp_path / "run")

    one, other = labels("one"), labels("other")
    assert "after 6 steps" in learn(one)
    files = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    sentence = r'other settings \(settings\.labels\.teacher\.name: "one" there, "other" now\)'
    with pytest.raises(BadInputError, match=sentence):
        learn(other)
    assert files == {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    # The same labelling in another place is the same.
    assert "after 6 steps" in learn(labels("one"))


def test_a_run_goes_on_from_a_student(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "first")
    student = tmp_path / "first" / "student"
    assert "after 6 steps" in run(
        world, tmp_path / "second", replace(TINY, start_from=str(student))
    )
    first, second = (
        read_log(tmp_path / name / "log.jsonl", kind="step") for name in ("first", "second")
    )
    assert second[0]["terms"]["text"] < first[0]["terms"]["text"]


def test_the_encoder_does_not_change_and_everything_else_does(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "run")
    short = replace(TINY, train=replace(TINY.train, steps=1, learning_rate=1e-12))
    run(world, tmp_path / "start", short)
    after = StudentAnswerer.from_folder(tmp_path / "run" / "student").student.state_dict()
    before = StudentAnswerer.from_folder(tmp_path / "start" / "student").student.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert not {name for name in moved if name.startswith("encoder.")}
    for part in ("connector.projector", "connector.depth_code", "slots", "depth_bins", "language"):
        assert any(name.startswith(part) for name in moved), part


def test_the_encoder_runs_once_per_scene(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(world, tmp_path / "run")

    def explode(*_: object, **__: object) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(VGGT, "encode", explode)
    for name in ("checkpoint.pt", "best.safetensors", "result.json", "log.jsonl"):
        (tmp_path / "run" / name).unlink()
    assert "after 6 steps" in run(world, tmp_path / "run")


def test_the_encoder_takes_no_memory_while_its_features_are_trained_on(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[int] = []

    def spied(student: StillroomStudent, *given: Any) -> Any:
        found.append(sum(value.numel() for value in student.encoder.parameters()))
        return distill_step(student, *given)

    # Where a step is taken and where it is evaluated; not where a run begins (reach.py).
    for module in (run_module, look_module):
        monkeypatch.setattr(module, "distill_step", spied)
    run(world, tmp_path / "run")
    # Six steps, and two evaluations of the two validation scenes and of some training scenes.
    assert len(found) >= 8
    assert set(found) == {0}
    # The student has it again, as it was.
    kept = load_vggt(world / "encoder", heads=("depth_head",)).state_dict()
    student = StudentAnswerer.from_folder(tmp_path / "run" / "student").student
    for name, value in student.encoder.state_dict().items():
        assert torch.equal(value, kept[name]), name
    # With a part of it in training it stays.
    found.clear()
    learns = replace(TINY, losses=LossConfig(depth_head=True))
    run(world, tmp_path / "head", learns)
    assert min(found) > 0


def test_scenes_of_a_pass_change_neither_the_run_nor_its_folder(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    encode = VGGT.encode

    def spied(self: VGGT, images: torch.Tensor, *given: Any, **more: Any) -> Any:
        sizes.append(len(images))
        return encode(self, images, *given, **more)

    monkeypatch.setattr(VGGT, "encode", spied)
    run(world, tmp_path / "one")
    assert set(sizes) == {1}
    sizes.clear()
    run(world, tmp_path / "many", replace(TINY, scenes_per_pass=3))
    assert sizes == [3, 3, 2]
    assert "after 6 steps" in run(world, tmp_path / "one", replace(TINY, scenes_per_pass=3))
    one, many = (read_log(tmp_path / name, kind="step") for name in ("one", "many"))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in many], abs=1e-2)


def test_other_settings_in_the_same_folder_are_refused(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path / "run")
    before = {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}
    with pytest.raises(BadInputError, match="other settings"):
        run(world, tmp_path / "run", replace(TINY, mask="causal"))
    assert before == {f: f.read_bytes() for f in (tmp_path / "run").rglob("*") if f.is_file()}


def test_labels_of_other_scenes_are_refused(world: Path, tmp_path: Path) -> None:
    other = tiny_store(tmp_path / "scenes", scenes=2, splits=("train", "val"))
    # Same ids need the same seeds: these are scenes 0 and 1, split otherwise.
    with pytest.raises(BadInputError, match="labels no scene"):
        distill(
            TINY,
            scenes=other,
            labels=world / "labels",
            out=tmp_path / "run",
            encoder=world / "encoder",
        )


def test_a_blind_run_sees_no_pictures(world: Path, tmp_path: Path) -> None:
    blind = replace(TINY, vision=False)
    run(world, tmp_path / "run", blind)
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert set(rows[0]["terms"]) == {"text"}
    # What it says hangs on the words alone, also after it was kept and loaded.
    blind_one = StudentAnswerer.from_folder(tmp_path / "run" / "student")
    store = open_store(world / "scenes")
    one, other = (store.scene(scene_id) for scene_id in store.scene_ids()[:2])
    assert not (one.views[0].rgb == other.views[0].rgb).all()
    asked = store.questions(one.scene_id)
    said = [[answer.text for answer in blind_one.open(s).answer(asked)] for s in (one, other)]
    assert said[0] == said[1]


def test_without_depth_and_grounding_only_text_is_left(world: Path, tmp_path: Path) -> None:
    only_text = replace(TINY, losses=LossConfig(depth=False, grounding=False))
    run(world, tmp_path / "run", only_text)
    rows = read_log(tmp_path / "run" / "log.jsonl", kind="step")
    assert set(rows[0]["terms"]) == {"text"}
    assert set(rows[0]["weights"]) == {"text"}


def some_batches(world: Path, *, silent: Container[str] = ()) -> Batches:
    """Two scenes without pictures worth looking at; no logits for ``silent`` question ids."""
    store, labels = open_store(world / "scenes"), open_labels(world / "labels")
    ids = store.scene_ids("train")[:2]
    questions = {scene_id: store.questions(scene_id) for scene_id in ids}
    prompts = {q.question_id: q.question for asked in questions.values() for q in asked}
    nothing = dict.fromkeys(("topk_ids", "topk_logits", "logsumexp"))
    said = {
        scene_id: [
            replace(label, **nothing) if label.question_id in silent else label
            for label in labels.labels(scene_id)
        ]
        for scene_id in ids
    }
    items = items_by_scene(questions, said, prompts, load_tokenizer())
    cache = FeatureCache(
        scene_ids=tuple(ids),
        tokens=np.zeros((2, 2, 4, 32), np.float16),
        own_depth=np.ones((2, 2, 2, 2), np.float16),
        true_depth=np.ones((2, 2, 2, 2), np.float16),
        cells=np.zeros((2, 2, 2, 2), np.float16),
        objects=np.zeros((2, 64, 8), np.float16),
    )
    return Batches(TINY, cache, items, prompts=prompts, tokenizer=load_tokenizer())


def test_answers_without_logits_join_those_that_have_them(world: Path) -> None:
    whole = some_batches(world).sample([0, 1])
    asked = [
        q.question_id
        for scene_id in open_store(world / "scenes").scene_ids("train")[:2]
        for q in open_store(world / "scenes").questions(scene_id)
    ]
    mixed = some_batches(world, silent=asked[::2]).sample([0, 1])
    assert torch.equal(mixed.packed.labels, whole.packed.labels)
    assert whole.has_logits is None
    has = mixed.has_logits
    assert has is not None
    # Every second answer, whole answers at a time.
    lengths = [len(item.answer_ids) for row in some_batches(world).items.values() for item in row]
    assert has.tolist() == [bool(i % 2) for i, n in enumerate(lengths) for _ in range(n)]
    for name in ("topk_ids", "topk_logits", "logsumexp"):
        assert torch.equal(getattr(mixed, name)[has], getattr(whole, name)[has])
    assert count_labelled(mixed)["topk_kl"] == int(has.sum())
    assert count_labelled(whole)["topk_kl"] == len(has)
    nobody = some_batches(world, silent=asked).sample([0, 1])
    assert nobody.topk_ids is None
    assert count_labelled(nobody)["topk_kl"] == 0


def test_teacher_logits_stand_at_the_labels(world: Path) -> None:
    batch = some_batches(world).at(0, 0)
    answers = batch.packed.labels[batch.packed.labels != IGNORE_INDEX]
    assert batch.topk_ids is not None
    # The fixed teacher's first candidate is its own answer.
    assert torch.equal(batch.topk_ids[:, 0], answers)
    # Nobody told which things are there, so that no cell is called nameless and no name has a box.
    assert (batch.cell_names == UNKNOWN).all()
    assert len(batch.mention_at) == 0


def test_names_stand_at_their_boxes_and_cells_at_their_things(world: Path, tmp_path: Path) -> None:
    store, tokenizer = open_store(world / "scenes"), load_tokenizer()
    scene = next(store.iter_scenes("val"))
    asked = store.questions(scene.scene_id)
    student, processor = build_student(TINY, world / "encoder")
    cache = cache_features(
        student,
        processor,
        store,
        [scene.scene_id],
        tmp_path / "features",
        encoder="x",
        scenes_per_pass=1,
    )
    labels = {scene.scene_id: open_labels(world / "labels").labels(scene.scene_id)}
    prompts = {q.question_id: q.prompt for q in asked}
    items = items_by_scene({scene.scene_id: asked}, labels, prompts, tokenizer)
    batches = Batches(TINY, cache, items, prompts=prompts, tokenizer=tokenizer)
    batch = batches.batch([0], [items[scene.scene_id]])
    said = batch.packed.ids[0, batch.packed.prefix_length :]
    words = [tokenizer.decode([int(said[place])]) for _, place in batch.mention_at.tolist()]
    assert set(words) == {"red", "table", "blue", "chair"}
    first = view0_from_world(scene.views[0].c2w, scene.floor_z)
    for word, box in zip(words, batch.mention_box, strict=True):
        thing = scene.objects[0 if word in ("red", "table") else 1]
        expected = [*transform(first, thing.box.center), *np.log(thing.box.size)]
        np.testing.assert_allclose(box, expected, atol=2e-3)
    table = (CATEGORIES.index("table") + 1, COLOURS.index("red") + 1)
    chair = (CATEGORIES.index("chair") + 1, COLOURS.index("blue") + 1)
    # Each photo shows the table at the top left, the chair at the bottom right, else a wall.
    assert batch.cell_names[0, 0].tolist() == [[*table], [0, 0], [0, 0], [*chair]]
    blind = Batches(
        replace(TINY, vision=False), cache, items, prompts=prompts, tokenizer=tokenizer
    ).batch([0], [items[scene.scene_id]])
    assert (blind.cell_names == UNKNOWN).all()
    assert len(blind.mention_at) == 0
    assert not blind.true_depth.any()


COMMAND = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import torch
torch.set_num_threads(1)
import tiny_world as t
config = replace(t.TINY, train=replace(t.TINY.train, steps=30, evaluate_every=10, save_every=4))
t.run(Path(sys.argv[1]), Path(sys.argv[2]), config)
"""


def test_killed_at_five_moments_it_ends_with_the_same_loss(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMMAND, str(world)]
    here = str(Path(__file__).parent)
    subprocess.run([*command, str(tmp_path / "calm"), here], check=True)
    log = tmp_path / "killed" / "log.jsonl"
    seen = []
    for rows_before in (3, 9, 15, 21, 27):
        process = subprocess.Popen([*command, str(tmp_path / "killed"), here])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if log.exists() and log.read_bytes().count(b"\n") >= rows_before:
                break
            time.sleep(0.001)
        process.kill()
        process.wait()
        seen.append(log.read_bytes().count(b"\n"))
    print(f"rows in the log at each kill: {seen}")
    # Steps, evaluations and epochs: no kill came after the end.
    assert seen[-1] < 30 + 3 + 10
    subprocess.run([*command, str(tmp_path / "killed"), here], check=True)

    def losses(folder: str) -> list[object]:
        rows = read_log(tmp_path / folder / "log.jsonl")
        return [(row["kind"], row["step"], row.get("loss"), row["metrics"]) for row in rows]

    assert losses("killed") == losses("calm")
    calm, killed = (
        (tmp_path / name / "student" / "model.safetensors").read_bytes()
        for name in ("calm", "killed")
    )
    assert calm == killed


OWN = load_tokenizer().vocabulary()


SWAPPED = (*OWN.tokens[:300], OWN.tokens[301], OWN.tokens[300], *OWN.tokens[302:])


def labelled_with(world: Path, out: Path, vocabulary: Vocabulary | None) -> None:
    label_scenes(
        world / "scenes",
        FixedTeacher,
        out,
        teacher={"name": "fixed"},
        signals=("answers", "topk_logits"),
        vocabulary=vocabulary,
    )


def run_on(world: Path, labels: Path, out: Path, *, kl_alpha: float) -> str:
    config = replace(
        TINY,
        train=replace(TINY.train, steps=1, evaluate_every=0),
        losses=replace(TINY.losses, kl_alpha=kl_alpha),
    )
    return distill(
        config, scenes=world / "scenes", labels=labels, out=out, encoder=world / "encoder"
    )


def test_padded_rows_of_the_teacher_are_no_other_vocabulary(world: Path, tmp_path: Path) -> None:
    labelled_with(world, tmp_path / "labels", replace(OWN, rows=1100))
    assert "after 1 steps" in run_on(world, tmp_path / "labels", tmp_path / "run", kl_alpha=0.5)


@pytest.mark.parametrize(
    ("vocabulary", "reason"),
    [
        (
            replace(OWN, tokens=(*OWN.tokens, "more"), rows=1025),
            r"are subset \(the student lacks 1",
        ),
        (replace(OWN, tokens=SWAPPED), r"are different \(id 300 is"),
        (None, "does not say what its teacher's ids mean"),
    ],
)
def test_logits_of_another_vocabulary_are_refused_and_text_alone_works(
    vocabulary: Vocabulary | None, reason: str, world: Path, tmp_path: Path
) -> None:
    labelled_with(world, tmp_path / "labels", vocabulary)
    with pytest.raises(BadInputError, match=reason) as refused:
        run_on(world, tmp_path / "labels", tmp_path / "run", kl_alpha=0.5)
    assert "--losses.kl-alpha 0" in str(refused.value)
    assert not (tmp_path / "run").exists()
    assert "after 1 steps" in run_on(world, tmp_path / "labels", tmp_path / "run", kl_alpha=0.0)


def test_a_label_read_as_text_is_tokenised_by_the_student(world: Path) -> None:
    store, tokenizer = open_store(world / "scenes"), load_tokenizer()
    scene_id = store.scene_ids()[0]
    asked = store.questions(scene_id)
    said = [text_alone(label) for label in open_labels(world / "labels").labels(scene_id)]
    prompts = {q.question_id: q.prompt for q in asked}
    items = items_by_scene({scene_id: asked}, {scene_id: said}, prompts, tokenizer)[scene_id]
    assert [item.answer_ids for item in items] == [
        tokenizer.encode_answer(q.options[0]) for q in asked
    ]
    assert all(item.label.topk_ids is None for item in items)
