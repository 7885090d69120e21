"""Depth Anything 3's trunk: its computation done plainly, its views, its checkpoints, a student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from stillroom.engine.packed import pack
from stillroom.records import BadInputError
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.depth_anything import (
    PUBLISHED,
    DepthAnything,
    DepthAnythingConfig,
)
from stillroom.students.encoders.load import config_of, encoder_config, load_encoder
from stillroom.students.encoders.vggt import VGGT, VGGTConfig
from stillroom.students.encoders.vggt_load import save_vggt
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer

CONFIG = DepthAnythingConfig(
    width=16, heads=2, depth=6, alternate_from=2, patch_size=7, image_size=28, layer_scale=0.7
)
PREFIX = "model.backbone.pretrained."


def trunk(seed: int = 1) -> DepthAnything:
    """Weights large enough that attention is far from even."""
    model = DepthAnything(CONFIG, seed=seed).eval()
    torch.manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.normal_(std=0.4)
            block.attn.proj.weight.normal_(std=0.3)
            block.norm1.bias.normal_(std=0.1)
        model.norm.weight.uniform_(0.5, 1.5)
        model.cls_token.normal_()
    return model


def images(views: int = 3, size: int = 28, seed: int = 0) -> Tensor:
    return torch.rand(1, views, 3, size, size, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, model: DepthAnything, prefix: str = PREFIX, **more: Tensor) -> Path:
    """A checkpoint with a head beside the trunk, as the hub has them."""
    state = {prefix + name: value.clone() for name, value in model.state_dict().items()}
    state[prefix + "mask_token"] = torch.zeros(1, CONFIG.width)
    state["model.head.norm.weight"] = torch.ones(3)
    state["model.cam_dec.fc_t.weight"] = torch.ones(3, 3)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state | more, folder / "model.safetensors")
    return folder


def plainly(model: DepthAnything, photos: Tensor, last: int) -> Tensor:
    """The same by hand, view by view and token by token: nothing is shared but the weights."""
    config, weights = model.config, dict(model.named_parameters())
    views, side = photos.shape[1], photos.shape[-1] // config.patch_size
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (photos[0] - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    cut = pixels.unfold(2, 7, 7).unfold(3, 7, 7).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    kernel = weights["patch_embed.proj.weight"].flatten(1)
    patches = cut @ kernel.T + weights["patch_embed.proj.bias"]
    table = weights["pos_embed"][0]
    start = (weights["cls_token"][0] + table[:1]).expand(views, 1, -1)
    x = torch.cat([start, patches + table[1:]], dim=1)  # [v t d]
    places = [(0, 0), *((r + 1, c + 1) for r in range(side) for c in range(side))]

    def turned(vector: Tensor, place: tuple[int, int]) -> Tensor:
        out = vector.clone()
        quarter = len(vector) // 4
        for half, count in enumerate(place):
            for j in range(quarter):
                angle = count * 100.0 ** (-j / quarter)
                a, b = vector[2 * half * quarter + j], vector[(2 * half + 1) * quarter + j]
                out[2 * half * quarter + j] = a * math.cos(angle) - b * math.sin(angle)
                out[(2 * half + 1) * quarter + j] = b * math.cos(angle) + a * math.sin(angle)
        return out

    def attend(block: Any, rows: Tensor, where: list[tuple[int, int]] | None) -> Tensor:
        count, width = rows.shape
        heads = config.heads
        normed = F.layer_norm(rows, (width,), block.norm1.weight, block.norm1.bias, 1e-6)
        parts = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).view(count, 3, heads, -1)
        q, k, v = parts.unbind(1)
        if where is not None:
            a = block.attn
            q = F.layer_norm(q, q.shape[-1:], a.q_norm.weight, a.q_norm.bias, 1e-5)
            k = F.layer_norm(k, k.shape[-1:], a.k_norm.weight, a.k_norm.bias, 1e-5)
            q = torch.stack([torch.stack([turned(h, p) for h in row]) for row, p in zip(q, where)])
            k = torch.stack([torch.stack([turned(h, p) for h in row]) for row, p in zip(k, where)])
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)
        y = rows + (mixed @ block.attn.proj.weight.T + block.attn.proj.bias) * block.ls1.gamma
        inner = F.layer_norm(y, (width,), block.norm2.weight, block.norm2.bias, 1e-6)
        inner = F.gelu(inner @ block.mlp.fc1.weight.T + block.mlp.fc1.bias)
        return y + (inner @ block.mlp.fc2.weight.T + block.mlp.fc2.bias) * block.ls2.gamma

    within = x
    for index, block in enumerate(model.blocks[: last + 1]):
        if index == config.alternate_from:
            for view in range(views):
                x[view, 0] = weights["camera_token"][0, min(view, 1)]
        if index >= config.alternate_from and index % 2:
            flat = [(min(r, 1), min(c, 1)) for r, c in places] * views
            x = attend(block, x.flatten(0, 1), flat).view_as(x)
        else:
            where = places if index >= config.alternate_from else None
            x = within = torch.stack([attend(block, view, where) for view in x])
    normed = F.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6)
    return torch.cat([within, normed], dim=-1)[:, 1:]


@pytest.mark.parametrize("last", [1, 3, 5])
def test_the_trunk_computes_what_is_written_down(last: int) -> None:
    model = trunk()
    with torch.no_grad():
        got = model.encode(images(), [last]).tokens[last][0]
        want = plainly(model, images(), last)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_views_see_each_other_from_the_alternating_blocks_on() -> None:
    model = trunk()
    photos, other = images(), images()
    other[:, 2] = 1 - other[:, 2]
    with torch.no_grad():
        one, two = (model.encode(p, [1, 3]).tokens for p in (photos, other))
    assert torch.equal(one[1][:, :2], two[1][:, :2])
    assert (one[3][:, :2] - two[3][:, :2]).abs().max() > 1e-3


def test_the_first_view_is_special_and_the_others_have_no_order() -> None:
    model = trunk()
    photos = images(views=4)
    order = [0, 3, 1, 2]
    with torch.no_grad():
        tokens = model.encode(photos).tokens[5]
        turned = model.encode(photos[:, order]).tokens[5]
        swapped = model.encode(photos[:, [1, 0, 2, 3]]).tokens[5]
    torch.testing.assert_close(turned, tokens[:, order], rtol=1e-4, atol=1e-4)
    assert (swapped[:, [1, 0, 2, 3]] - tokens).abs().max() > 1e-3


@pytest.mark.parametrize("views", [1, 2])
def test_several_scenes_are_computed_as_each_alone(views: int) -> None:
    model = trunk()
    a, b = images(views, seed=1), images(views, seed=2)
    with torch.no_grad():
        both = model.encode(torch.cat([a, b])).tokens[5]
        alone = [model.encode(one).tokens[5] for one in (a, b)]
    assert both.shape == (2, views, 16, 32)
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_other_image_sizes_are_cut_from_the_same_table() -> None:
    model = trunk()
    with torch.no_grad():
        tokens = model.encode(images(size=42)).tokens[5]
        every = model.encode(images(size=42), tokens="all").tokens[5]
    assert tokens.shape == (1, 3, 36, 32)
    assert every.shape == (1, 3, 37, 32)
    assert torch.equal(every[:, :, 1:], tokens)
    for size in (21, 35, 49, 56):
        assert model.position_table(size // 7, size // 7).shape == (1, 1 + (size // 7) ** 2, 16)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda m: m.encode(images(size=30)), "multiples of 7 pixels, got 30 x 30"),
        (lambda m: m.encode(images(), [6]), r"rounds must lie in 0\.\.5, got \[6\]"),
        (lambda m: m.encode(images(), heads=("depth",)), "has no heads, asked for depth"),
        (lambda m: DepthAnythingConfig(width=20, heads=2), "times a multiple of 4"),
        (lambda m: DepthAnythingConfig(image_size=500), "no multiple of patch_size 14"),
        (lambda m: DepthAnythingConfig(alternate_from=12), "none of the 12 blocks"),
        (lambda m: DepthAnythingConfig.from_dict({"levels": 1}), "unknown settings levels"),
    ],
)
def test_what_it_cannot_do_is_said(call: Any, complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        call(trunk())


# Checkpoints. ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [PREFIX, "", "backbone."])
def test_a_trunk_is_loaded_by_its_keys_whatever_stands_before_them(
    prefix: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "da3", trunk(), prefix)
    loaded = load_encoder(folder)
    assert isinstance(loaded, DepthAnything)
    assert not loaded.training
    # LayerScale's start value is not in a file.
    assert loaded.config.to_dict() | {"layer_scale": 0.7} == CONFIG.to_dict()
    assert encoder_config(folder) == loaded.config == encoder_config(folder / "model.safetensors")
    with torch.no_grad():
        got, want = (m.encode(images()).tokens[5] for m in (loaded, trunk()))
    assert torch.equal(got, want)


def test_the_config_comes_back_from_plain_values() -> None:
    assert config_of(CONFIG.to_dict()) == CONFIG
    assert config_of(VGGTConfig().to_dict()) == VGGTConfig()


def test_a_vggt_is_still_a_vggt(tmp_path: Path) -> None:
    from stillroom.testing import tiny_encoder_config

    save_vggt(VGGT(tiny_encoder_config(), seed=0), tmp_path)
    assert isinstance(load_encoder(tmp_path), VGGT)
    assert encoder_config(tmp_path, heads=("depth_head",)) == tiny_encoder_config()


def test_published_sizes_need_no_download() -> None:
    for name, config in PUBLISHED.items():
        assert encoder_config(name) == config


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"blocks.5.ls2.gamma": None}, "lacks 1 keys of the trunk, first blocks.5.ls2.gamma"),
        ({"blocks.1.own": torch.ones(2)}, "has unknown 1 keys of the trunk, first blocks.1.own"),
        ({"norm.weight": torch.ones(3)}, r"norm.weight must be \[16\], got \[3\]"),
        ({"blocks.3.attn.q_norm.weight": None}, "normalised from one block on"),
        ({"pos_embed": None}, "pos_embed is missing"),
    ],
)
def test_a_damaged_trunk_is_refused(
    change: dict[str, Tensor | None], complaint: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "da3", trunk())
    from safetensors.torch import load_file

    state: dict[str, Any] = load_file(folder / "model.safetensors")
    state |= {PREFIX + name: value for name, value in change.items()}
    save_file(
        {name: value for name, value in state.items() if value is not None},
        folder / "model.safetensors",
    )
    with pytest.raises(BadInputError, match=complaint):
        load_encoder(folder)


# A student. --------------------------------------------------------------------------------------


def student() -> StillroomStudent:
    torch.manual_seed(0)
    text = neox_config(hidden_size=32, layers=2, heads=4)
    text.initializer_range = 0.3
    config = StillroomConfig(
        encoder=CONFIG.to_dict(),
        text_config=text,
        vision_grid=2,
        image_size=42,
        slot_count=3,
        max_answer_tokens=5,
    )
    return StillroomStudent(config).eval()


def test_a_student_sees_with_it_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    made = student()
    assert not any(p.requires_grad for p in made.encoder.parameters())
    processor = StillroomProcessor(image_size=42, max_views=4)
    made.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    answerer = StudentAnswerer.from_folder(tmp_path)
    assert answerer.student.config.encoder_sizes == CONFIG
    photos = list((255 * images(size=42)[0]).permute(0, 2, 3, 1).byte().numpy())
    session = answerer.open_scene(photos)
    assert session.geometry().depth is None
    fresh = StudentAnswerer(made, processor).open_scene(photos)
    for text in ("Is the lamp on the table?", "Why?"):
        assert session.ask(text) == fresh.ask(text)


def test_packed_weights_change_nothing_but_the_last_bits() -> None:
    model, packed = trunk(), trunk()
    pack(packed)
    with torch.no_grad():
        torch.testing.assert_close(
            packed.encode(images()).tokens[5],
            model.encode(images()).tokens[5],
            rtol=1e-4,
            atol=1e-4,
        )


def test_depth_losses_on_its_own_head_are_refused() -> None:
    with pytest.raises(BadInputError, match="train_depth_head needs an encoder with a depth head"):
        StillroomConfig(encoder=CONFIG.to_dict(), image_size=42, train_depth_head=True)
