"""The port against the public release's recorded outputs, and recordings it must not accept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stillroom.records import BadInputError
from stillroom.students.encoders.verify_vggt import verify_vggt

FIXTURES = Path(__file__).parents[1] / "fixtures" / "vggt"


@pytest.mark.parametrize(
    ("name", "outputs"), [("tiny_a", 22), ("tiny_b", 23), ("preprocess", 22), ("geometry", 12)]
)
def test_every_recorded_output_is_reproduced(name: str, outputs: int) -> None:
    rows = verify_vggt(FIXTURES / name)
    assert len(rows) == outputs
    assert [row.name for row in rows if not row.ok] == []


@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_a_file_name_is_as_good_as_a_stem(suffix: str) -> None:
    assert verify_vggt(FIXTURES / f"geometry{suffix}") == verify_vggt(FIXTURES / "geometry")


def _changed(tmp_path: Path, name: str, change: dict[str, torch.Tensor]) -> Path:
    shutil.copy(FIXTURES / f"{name}.json", tmp_path)
    save_file(
        load_file(FIXTURES / f"{name}.safetensors") | change, tmp_path / f"{name}.safetensors"
    )
    return tmp_path / name


@pytest.mark.parametrize(
    "key",
    [
        "state.aggregator.patch_embed.register_tokens",
        "state.aggregator.global_blocks.1.attn.k_norm.weight",
        "state.camera_head.empty_pose_tokens",
        "state.depth_head.scratch.refinenet4.resConfUnit2.conv1.bias",
        "state.point_head.scratch.output_conv2.2.weight",
    ],
)
def test_one_changed_weight_is_noticed(tmp_path: Path, key: str) -> None:
    tensor = load_file(FIXTURES / "tiny_a.safetensors")[key]
    tensor.view(-1)[0] += 0.5
    rows = verify_vggt(_changed(tmp_path, "tiny_a", {key: tensor}))
    assert any(not row.ok for row in rows)


def test_a_changed_recording_names_the_output_that_differs(tmp_path: Path) -> None:
    want = load_file(FIXTURES / "tiny_b.safetensors")["out.depth"]
    want[0, 1, 3, 4] += 0.01
    rows = verify_vggt(_changed(tmp_path, "tiny_b", {"out.depth": want}))
    assert [row.name for row in rows if not row.ok] == ["out.depth"]
    assert next(row.worst for row in rows if row.name == "out.depth") == pytest.approx(0.01, 0.01)


@pytest.mark.parametrize("name", ["tiny_a", "geometry", "preprocess"])
def test_a_recorded_output_that_nobody_knows_is_an_error(tmp_path: Path, name: str) -> None:
    key = "out.surface_normals" if name == "tiny_a" else "surface_normals"
    stem = _changed(tmp_path, name, {key: torch.zeros(1)})
    with pytest.raises(BadInputError, match="surface_normals, which this stillroom does not"):
        verify_vggt(stem)


def test_not_a_number_is_not_agreement(tmp_path: Path) -> None:
    key = "state.depth_head.scratch.output_conv2.2.bias"
    rows = verify_vggt(_changed(tmp_path, "tiny_a", {key: torch.full((2,), torch.nan)}))
    assert not next(row for row in rows if row.name == "out.depth").ok


def test_missing_and_truncated_recordings_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="not found"):
        verify_vggt(tmp_path / "nothing")
    stem = _changed(tmp_path, "geometry", {})
    path = stem.with_suffix(".safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadInputError, match="truncated"):
        verify_vggt(stem)
