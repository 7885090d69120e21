"""Checkpoints: the public layout, our folders, and files that must be refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file

from stillroom.records import BadInputError
from stillroom.students.encoders.vggt import VGGT, VGGTConfig
from stillroom.students.encoders.vggt_load import (
    Checkpoint,
    encoder_config,
    load_state,
    load_vggt,
    read_settings,
    save_vggt,
)

CONFIG = VGGTConfig(
    width=16,
    heads=2,
    encoder_heads=4,
    encoder_depth=1,
    rounds=4,
    registers=2,
    image_size=56,
    levels=(0, 1, 2, 3),
    dpt_features=8,
    dpt_channels=(4, 4, 8, 12),
    camera_depth=1,
    camera_heads=4,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    save_vggt(VGGT(CONFIG, seed=1), tmp_path / "saved", dtype=torch.float32)
    return tmp_path / "saved"


def _rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    state: dict = load_file(folder / "model.safetensors") | change
    kept = {key: tensor for key, tensor in state.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")


def test_what_is_saved_comes_back(folder: Path) -> None:
    loaded, fresh = load_vggt(folder), VGGT(CONFIG, seed=1)
    assert loaded.config == CONFIG
    assert not loaded.training
    for (name, got), want in zip(
        loaded.state_dict().items(), fresh.state_dict().values(), strict=True
    ):
        assert torch.equal(got, want), name
    assert {n for n, p in loaded.named_parameters() if not p.requires_grad} == {
        "aggregator.patch_embed.mask_token"
    }


def test_bf16_on_disk_is_float32_in_memory_unless_asked(folder: Path) -> None:
    save_vggt(load_vggt(folder), folder)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert {p.dtype for p in load_vggt(folder).parameters()} == {torch.float32}
    half = load_vggt(folder, dtype=torch.bfloat16)
    assert half.aggregator.camera_token.dtype == torch.bfloat16
    assert half.depth_head.norm.weight.dtype == torch.float32
    images = torch.rand(1, 2, 3, 28, 28)
    with torch.no_grad():
        assert half(images).depth.isfinite().all()


def test_a_pt_state_dict_loads_by_weights_only(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "model.pt")
    assert torch.equal(load_vggt(folder).aggregator.camera_token, state["aggregator.camera_token"])


def test_the_track_head_is_skipped(folder: Path) -> None:
    _rewrite(folder, {"track_head.tracker.query_ref_token": torch.zeros(1, 2, 388)})
    assert not hasattr(load_vggt(folder), "track_head")


def test_heads_can_be_left_out(folder: Path) -> None:
    bare = load_vggt(folder, heads=("depth_head",))
    assert bare.config.heads_present == ("depth",)
    assert not any(key.startswith("point_head") for key in bare.state_dict())


def test_sizes_come_from_shapes_when_the_config_is_the_public_one(folder: Path) -> None:
    # The public config.json holds three names only; head counts are the code's defaults.
    public = {"img_size": 56, "patch_size": 14, "embed_dim": 16, "model_hub_mixin": 1}
    ours = {"encoder_heads": 4, "camera_heads": 4, "levels": [0, 1, 2, 3]}
    (folder / "config.json").write_text(json.dumps(public | ours))
    config = load_vggt(folder).config
    assert (config.rounds, config.heads, config.dpt_channels) == (4, 2, (4, 4, 8, 12))


@pytest.mark.parametrize(
    ("setting", "value"), [("rounds", 24), ("width", 1024), ("dpt_features", 256)]
)
def test_a_config_that_contradicts_the_shapes_is_refused(
    folder: Path, setting: str, value: int
) -> None:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**record, "model_type": "x", setting: value}))
    with pytest.raises(BadInputError, match=f"has {setting} .* by its shapes, config.json says"):
        load_vggt(folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"camera_head.token_norm.bias": None}, "lacks 1 keys, first camera_head.token_norm.bias"),
        ({"depth_head.extra": torch.zeros(1)}, "has unknown 1 keys, first depth_head.extra"),
        ({"language_head.weight": torch.zeros(1)}, "keys of no VGGT part: language_head"),
        ({"point_head.norm.weight": torch.zeros(5)}, r"must be \[32\], got \[5\]"),
        ({"aggregator.register_token": None}, "aggregator.register_token is missing"),
    ],
)
def test_keys_are_checked_one_by_one(folder: Path, change: dict, sentence: str) -> None:
    _rewrite(folder, change)
    with pytest.raises(BadInputError, match=sentence):
        load_vggt(folder)


def test_damaged_files_are_bad_input(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadInputError, match="truncated"):
        load_vggt(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInputError, match="holds no encoder weights"):
        load_vggt(tmp_path / "empty")
    torch_file = tmp_path / "model.pt"
    torch_file.write_bytes(b"not a pickle")
    with pytest.raises(BadInputError, match="state dict"):
        load_vggt(torch_file)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInputError, match="JSON"):
        load_vggt(folder)


def test_an_archive_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple:
            return (print, ("ran",))

    torch.save({"aggregator.camera_token": Harmful()}, tmp_path / "model.pt")
    with pytest.raises(BadInputError, match="state dict"):
        load_vggt(tmp_path / "model.pt")


# What is read, and from where. ---------------------------------------------------------------


def test_features_alone_need_the_aggregator_and_nothing_else_is_read(folder: Path) -> None:
    _rewrite(folder, {"track_head.tracker.query_ref_token": torch.zeros(1, 2, 388)})
    checkpoint = Checkpoint.open(folder / "model.safetensors")
    read = []

    def recording(key: str) -> torch.Tensor:
        read.append(key)
        return checkpoint.read(key)

    watched = Checkpoint(checkpoint.shapes, recording, checkpoint.path)
    bare = load_state(watched, read_settings(folder / "config.json"), heads=())
    assert {key.split(".")[0] for key in read} == {"aggregator"}
    assert len(read) == len(set(read)) == len(bare.state_dict())
    images = torch.rand(1, 2, 3, 28, 28)
    with torch.no_grad():
        want = load_vggt(folder).encode(images).tokens[3]
        assert torch.equal(bare.encode(images).tokens[3], want)


def test_features_alone_are_72_percent_of_the_public_weights() -> None:
    with torch.device("meta"):
        bare = VGGT(VGGTConfig(camera_head=False, depth_head=False, point_head=False))
    count = sum(p.numel() for p in bare.parameters())
    assert count == 909_112_320
    assert round(100 * count / 1_256_537_516) == 72


def test_the_commercial_file_is_found_by_its_name(folder: Path) -> None:
    state = load_file(folder / "model.safetensors") | {
        "track_head.tracker.query_ref_token": torch.zeros(1, 2, 388)
    }
    torch.save(state, folder / "vggt_1B_commercial.pt")
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_vggt(folder).aggregator.camera_token, state["aggregator.camera_token"])


@pytest.mark.parametrize("heads", [None, (), ("depth_head",)])
def test_a_config_is_told_without_a_weight_being_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, heads: tuple[str, ...] | None
) -> None:
    want = load_vggt(folder, heads=heads).config

    def explode(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr("stillroom.students.encoders.vggt_load.load_state", explode)
    assert encoder_config(folder, heads=heads) == want


def test_published_checkpoints_have_a_config_before_they_are_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("facebook/VGGT-1B", "facebook/VGGT-1B-Commercial"):
        assert encoder_config(name) == VGGTConfig()
        assert encoder_config(name, heads=("depth_head",)).heads_present == ("depth",)


@pytest.mark.parametrize("weights", ["model.safetensors", "vggt_1B_commercial.pt"])
def test_of_a_hub_model_one_file_of_weights_is_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    hub.mkdir()
    cache.mkdir()
    shutil.copy(folder / "config.json", hub)
    if weights.endswith(".pt"):
        torch.save(load_file(folder / "model.safetensors"), hub / weights)
    else:
        shutil.copy(folder / "model.safetensors", hub)
        (hub / "model.pt").write_bytes(b"the same again, not wanted")

    def download(hub_id: str, name: str) -> str:
        if not (hub / name).is_file():
            raise EntryNotFoundError(f"{hub_id} has no {name}")
        return shutil.copy(hub / name, cache / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_vggt("somebody/vggt").config == CONFIG
    assert {file.name for file in cache.iterdir()} == {"config.json", weights}
    (hub / weights).unlink()
    (hub / "model.pt").unlink(missing_ok=True)
    with pytest.raises(BadInputError, match="neither a folder nor a hub model"):
        load_vggt("somebody/vggt")
