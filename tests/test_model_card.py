"""The model card over a student's life: distilled, evaluated, distilled again."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stillroom import api, registry
from stillroom.distill.config import DistillConfig, SlotConfig, StudentSizes
from stillroom.records import BadInputError
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_load import save_vggt
from stillroom.testing import tiny_encoder_config, tiny_store
from stillroom.training.config import TrainConfig


@pytest.fixture
def config(tmp_path: Path) -> DistillConfig:
    torch.set_num_threads(1)
    encoder = tiny_encoder_config()
    save_vggt(VGGT(encoder, seed=0), tmp_path / "my_encoder")
    return DistillConfig(
        train=TrainConfig(steps=1, scenes_per_step=1, evaluate_every=0, seed=7),
        student=StudentSizes(
            hidden_size=16, layers=1, heads=2, intermediate_size=32, vision_grid=2
        ),
        slots=SlotConfig(count=2),
        questions_per_scene=4,
        encoder=str(tmp_path / "my_encoder"),
    )


def test_distil_writes_the_card_evaluate_its_scores_and_neither_is_lost(
    config: DistillConfig, tmp_path: Path
) -> None:
    scenes = tiny_store(tmp_path / "scenes", scenes=6, splits=("train", "val", "test"))
    api.label(scenes, teacher="truth", out=tmp_path / "labels", signals=("answers",))
    folders = {"scenes": scenes, "labels": tmp_path / "labels", "out": tmp_path / "run"}
    api.distill(config, **folders, recipe="tiny_one")
    student = tmp_path / "run" / "student"
    card = (student / "README.md").read_text()
    assert "distilled from truth" in card
    assert "Recipe `tiny_one`, seed 7, 1 steps of 1 scenes" in card
    assert "2 train, 2 val" in card
    assert "| encoder | my_encoder | not known to stillroom" in card
    assert str(tmp_path) not in card.replace(
        json.loads((student / "provenance.json").read_text())["command"], ""
    )
    assert "Not evaluated yet." in card
    assert {f.suffix for f in student.iterdir()} == {".json", ".safetensors", ".md"}

    before = registry.describe(str(student))
    results = api.evaluate(str(student), scenes, out=tmp_path / "results")
    scored = (student / "README.md").read_text()
    score = 100 * results["rows"][str(student)]["overall"]["score"]
    assert "Not evaluated yet." not in scored
    assert f"| overall | {score:.1f} (" in scored
    assert registry.describe(str(student)) == before, "a card changes nothing of what is said"

    assert "after 1 steps" in api.distill(config, **folders, recipe="tiny_one")
    assert (student / "README.md").read_text() == scored


def test_a_shipped_students_card_is_not_touched(tmp_path: Path) -> None:
    card = registry.MODELS / "student_mini" / "README.md"
    before = card.read_text()
    rows = {"student_mini": {"overall": {"score": 1.0, "low": 1.0, "high": 1.0, "n": 1}}}
    api.refresh_card("student_mini", {"rows": rows, "meta": {}}, row="student_mini")
    assert card.read_text() == before


def test_a_student_begun_from_another_names_that_ones_encoder_and_teacher(
    config: DistillConfig, tmp_path: Path
) -> None:
    scenes = tiny_store(tmp_path / "scenes", scenes=4, splits=("train", "val"))
    api.label(scenes, teacher="truth", out=tmp_path / "labels", signals=("answers",))
    folders = {"scenes": scenes, "labels": tmp_path / "labels"}
    api.distill(config, **folders, out=tmp_path / "first", recipe="first_one")
    student = tmp_path / "first" / "student"
    facts = json.loads((student / "provenance.json").read_text())
    facts |= {
        "teacher": {"name": "llava3d:ChaimZhu/LLaVA-3D-7B"},
        "encoder": "facebook/VGGT-1B",
    }
    (student / "provenance.json").write_text(json.dumps(facts))
    # The recipe's own encoder is of another name, and looked at by nobody.
    save_vggt(VGGT(tiny_encoder_config(), seed=1), tmp_path / "other_encoder")
    again = replace(config, start_from=str(student), encoder=str(tmp_path / "other_encoder"))
    api.distill(again, **folders, out=tmp_path / "second", recipe="second_one")
    found = json.loads((tmp_path / "second" / "student" / "provenance.json").read_text())
    assert found["encoder"] == "facebook/VGGT-1B"
    assert found["teacher"]["name"] == "truth"
    assert found["parent"] == facts
    card = (tmp_path / "second" / "student" / "README.md").read_text()
    assert "| encoder | facebook/VGGT-1B | CC BY-NC 4.0" in card
    assert "| its teacher | llava3d:ChaimZhu/LLaVA-3D-7B | readme CC BY-NC-SA" in card
    assert "other_encoder" not in card.replace(found["command"], "")
    assert "license: other" in card
    (student / "provenance.json").write_text("{")
    with pytest.raises(BadInputError, match=r"provenance\.json is damaged: restore it, or remove"):
        api.distill(again, **folders, out=tmp_path / "third", recipe="third_one")
