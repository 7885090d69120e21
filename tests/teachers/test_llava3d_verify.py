"""The LLaVA-3D port against outputs recorded from the public release."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillroom.records import BadInputError
from stillroom.teachers.verify_llava3d import verify_llava3d

FIXTURES = Path(__file__).parents[1] / "fixtures" / "llava3d"


def copied(folder: Path, case: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """A writable copy of a fixture's JSON, and its tensors."""
    shutil.copyfile(FIXTURES / f"{case}.json", folder / f"{case}.json")
    return folder / case, load_file(FIXTURES / f"{case}.safetensors")


@pytest.mark.parametrize("case", ["tiny_a", "tiny_b", "tiny_c", "tiny_d"])
def test_every_recorded_stage_agrees_with_the_release(case: str) -> None:
    recorded = {
        name for name in load_file(FIXTURES / f"{case}.safetensors") if name.startswith("out.")
    }
    compared = verify_llava3d(FIXTURES / case)
    assert {entry.name for entry in compared} == recorded
    assert [entry for entry in compared if not entry.ok or entry.skipped] == []


@pytest.mark.parametrize(
    ("case", "weight"),
    [
        ("tiny_a", "model.layers.1.mlp.up_proj.weight"),
        ("tiny_b", "model.mm_projector.0.bias"),
        (
            "tiny_d",
            "model.video_tower.video_tower.positional_embedding.position_embedding_head.0.bias",
        ),
    ],
)
def test_one_changed_weight_is_noticed(tmp_path: Path, case: str, weight: str) -> None:
    stem, tensors = copied(tmp_path, case)
    tensors[f"state.{weight}"].view(-1)[3] += 0.5
    save_file(tensors, f"{stem}.safetensors")
    assert not all(entry.ok for entry in verify_llava3d(stem))


def test_an_unknown_recorded_output_is_an_error(tmp_path: Path) -> None:
    stem, tensors = copied(tmp_path, "tiny_a")
    save_file({**tensors, "out.surprise": torch.zeros(1)}, f"{stem}.safetensors")
    with pytest.raises(BadInputError, match=r"out\.surprise"):
        verify_llava3d(stem)


def test_a_fixture_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    stem, _ = copied(tmp_path, "tiny_a")
    whole = (FIXTURES / "tiny_a.safetensors").read_bytes()
    Path(f"{stem}.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match="not a readable safetensors file"):
        verify_llava3d(stem)


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    stem, tensors = copied(tmp_path, "tiny_a")
    del tensors["state.model.norm.weight"]
    save_file(tensors, f"{stem}.safetensors")
    with pytest.raises(BadInputError, match=r"lacks keys of LLaVA-3D: model\.norm\.weight"):
        verify_llava3d(stem)


def test_a_json_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text(json.dumps({"case": "odd"}))
    with pytest.raises(BadInputError, match="no LLaVA-3D fixture"):
        verify_llava3d(tmp_path / "odd")
