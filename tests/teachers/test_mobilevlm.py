"""MobileVLM: the released key names and sizes, and projectors against numbers worked out anew."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_vlms import save_mobilevlm
from torch.nn.functional import gelu

from stillroom import registry
from stillroom.records import BadInputError
from stillroom.teachers.llava3d_config import ClipSize
from stillroom.teachers.mobilevlm import MobileVLM, MobileVLMConfig
from stillroom.teachers.mobilevlm_projector import light_projector
from stillroom.teachers.vlm import VlmOptions, VlmTeacher
from stillroom.testing import tiny_questions, tiny_scene

OPTIONS = VlmOptions(max_new_tokens=4, topk=4, device="cpu")


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Keys and sizes. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("projector", "keys"),
    [
        (
            "ldpnetv2",
            {
                "mlp.mlp.0.weight": (32, 16),
                "mlp.mlp.2.bias": (32,),
                "peg.peg.0.weight": (32, 1, 3, 3),
                "peg.peg.0.bias": (32,),
            },
        ),
        (
            "ldpnet",
            {
                "model.mlp.1.weight": (32, 16),
                "model.mlp.3.weight": (32, 32),
                "model.mb_block.1.block.0.0.weight": (32, 1, 3, 3),
                "model.mb_block.1.block.0.1.bias": (32,),
                "model.mb_block.2.block.1.fc1.weight": (8, 32, 1, 1),
                "model.mb_block.2.block.1.fc2.bias": (32,),
                "model.mb_block.2.block.2.0.weight": (32, 32, 1, 1),
                "model.mb_block.2.block.2.1.weight": (32,),
            },
        ),
    ],
)
def test_keys_are_the_release_s(
    tmp_path: Path, projector: str, keys: dict[str, tuple[int, ...]]
) -> None:
    state = load_file(save_mobilevlm(tmp_path, projector) / "model.safetensors")
    own = "model.mm_projector."
    assert keys.items() <= {k.removeprefix(own): tuple(v.shape) for k, v in state.items()}.items()
    clip = "model.vision_tower.vision_tower.vision_model."
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.2.mlp.down_proj.weight",
        f"{clip}embeddings.class_embedding",
        f"{clip}pre_layrnorm.weight",
        f"{clip}encoder.layers.2.mlp.fc1.bias",
        f"{clip}post_layernorm.weight",
    } <= set(state)
    biased = [k for k in state if ".block.0.0." in k or ".block.2.0." in k]
    assert all(key.endswith("weight") for key in biased)


@pytest.mark.parametrize(("kind", "count"), [("ldpnetv2", 6_316_032), ("ldpnet", 18_936_832)])
def test_projectors_of_the_1_7_b_have_their_sizes(kind: str, count: int) -> None:
    """6.32 M and 18.94 M, as we remember the ablation of the V2 paper."""
    with torch.device("meta"):
        projector = light_projector(kind, 1024, 2048)
    assert sum(p.numel() for p in projector.parameters()) == count
    assert projector.tokens(24) == 144


def test_the_1_7_b_is_built_from_what_its_config_says() -> None:
    config = MobileVLMConfig(
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        vocab_size=32000,
        mm_vision_tower="openai/clip-vit-large-patch14-336",
        mm_projector_type="ldpnetv2",
    )
    assert config.clip == ClipSize()
    assert config.clip_layers_run == 23
    with torch.device("meta"):
        model = MobileVLM(config)
    llama = [p.numel() for n, p in model.named_parameters() if "vision_tower" not in n]
    # MobileLLaMA-1.4B and the projector.
    assert sum(llama) == 1_364_297_728 + 6_316_032


# Projectors. ------------------------------------------------------------------------------------


def test_v2_is_two_linear_layers_a_mean_of_four_and_a_convolution() -> None:
    torch.manual_seed(0)
    projector = light_projector("ldpnetv2", 6, 8).double()
    patches = torch.randn(2, 576, 6, dtype=torch.float64)
    first, second = projector.mlp["mlp"][0], projector.mlp["mlp"][2]
    mapped = gelu(patches @ first.weight.T + first.bias) @ second.weight.T + second.bias
    grid = mapped.detach().numpy().reshape(2, 12, 2, 12, 2, 8).mean(axis=(2, 4))
    kernel, bias = (p.detach().numpy() for p in projector.peg["peg"][0].parameters())
    padded = np.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = sum(
        padded[:, y : y + 12, x : x + 12] * kernel[:, 0, y, x] for y in range(3) for x in range(3)
    )
    expected = (grid + around + bias).reshape(2, 144, 8)
    np.testing.assert_allclose(projector(patches).detach().numpy(), expected, atol=1e-10)


def test_v1_is_two_depthwise_blocks_of_which_the_second_halves_the_grid() -> None:
    torch.manual_seed(0)
    projector = light_projector("ldpnet", 6, 16).double()
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    patches = torch.randn(1, 16, 6, dtype=torch.float64)
    parts = projector.model
    first, second = parts["mlp"][1], parts["mlp"][3]
    mapped = gelu(patches @ first.weight.T + first.bias) @ second.weight.T + second.bias
    x = mapped.detach().numpy().reshape(4, 4, 16)
    x = x + _block_by_hand(x, parts["mb_block"][1], stride=1)
    expected = _block_by_hand(x, parts["mb_block"][2], stride=2).reshape(1, 4, 16)
    np.testing.assert_allclose(projector(patches).detach().numpy(), expected, atol=1e-10)
    assert projector.tokens(4) == 4


def _block_by_hand(x: np.ndarray, block: torch.nn.Module, *, stride: int) -> np.ndarray:
    """Depthwise 3 x 3, norm, hard swish; squeeze and excite; pointwise, norm. [h w c]"""
    state = {name: p.detach().numpy() for name, p in block.block.named_parameters()}

    def norm(y: np.ndarray, name: str) -> np.ndarray:
        y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        return y * state[f"{name}.weight"] + state[f"{name}.bias"]

    def squashed(y: np.ndarray) -> np.ndarray:
        return np.clip(y + 3, 0, 6) / 6

    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    kernel = state["0.0.weight"][:, 0]
    size = len(x)
    y = sum(
        padded[i : i + size : stride, j : j + size : stride] * kernel[:, i, j]
        for i in range(3)
        for j in range(3)
    )
    y = norm(y, "0.1")
    y = y * squashed(y)
    low = state["1.fc1.weight"][:, :, 0, 0] @ y.mean((0, 1)) + state["1.fc1.bias"]
    high = state["1.fc2.weight"][:, :, 0, 0] @ np.maximum(low, 0) + state["1.fc2.bias"]
    y = y * squashed(high)
    return norm(y @ state["2.0.weight"][:, :, 0, 0].T, "2.1")


def test_an_unknown_projector_is_refused() -> None:
    with pytest.raises(BadInputError, match="'linear' is not MobileVLM's"):
        light_projector("linear", 6, 8)


# The teacher. -----------------------------------------------------------------------------------


@pytest.mark.parametrize("projector", ["ldpnet", "ldpnetv2"])
def test_a_saved_model_comes_back_and_labels(tmp_path: Path, projector: str) -> None:
    folder = save_mobilevlm(tmp_path, projector)
    teacher = VlmTeacher.from_folder(folder, OPTIONS)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(teacher.model.state_dict()[name], tensor), name
    scene = tiny_scene(1)
    labels = teacher.label(scene, tiny_questions(scene), ["topk_logits"])
    assert all(np.isfinite(label.topk_logits).all() for label in labels)
    assert len(teacher.open(scene).reader.prefix.visual) == 2 * 144


def test_the_tower_reads_its_last_but_one_state_without_the_class_token(tmp_path: Path) -> None:
    teacher = VlmTeacher.from_folder(save_mobilevlm(tmp_path), OPTIONS)
    tower = teacher.model.model.vision_tower
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        states = tower.vision_tower["vision_model"](pixels, output_hidden_states=True).hidden_states
        torch.testing.assert_close(tower(pixels), states[-2][:, 1:])


def test_photos_are_filled_up_to_a_square_of_the_mean_colour(tmp_path: Path) -> None:
    teacher = VlmTeacher.from_folder(save_mobilevlm(tmp_path), OPTIONS)
    wide = Image.new("RGB", (96, 48), (255, 255, 255))
    pixels = teacher.prompts.pixels(wide)
    assert pixels.shape == (3, 48, 48)
    # Above and below the photo stands what normalises to nearly nothing.
    assert abs(pixels[:, :8]).max() < 0.02
    assert abs(pixels[:, -8:]).max() < 0.02
    assert pixels[:, 16:32].min() > 1.5
    teacher.prompts.pads = False
    assert teacher.prompts.pixels(wide).min() > 1.5


def test_the_prompt_is_the_release_s(tmp_path: Path) -> None:
    teacher = VlmTeacher.from_folder(save_mobilevlm(tmp_path), OPTIONS)
    scene = tiny_scene(1)
    question = tiny_questions(scene)[0]
    ids = teacher.open(scene).reader.prompts.whole(question)["input_ids"][0].tolist()
    places = [n for n, token in enumerate(ids) if token == -200]
    assert ids[0] == 1
    assert places == list(range(places[0], places[0] + 2 * 144))
    before, behind = ids[1 : places[0]], ids[places[-1] + 1 :]
    assert teacher.prompts.decode(before) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions. USER:"
    )
    assert teacher.prompts.decode(behind) == (
        f"{question.question}\nAnswer the question using one word or one phrase. ASSISTANT:"
    )


def test_clip_comes_from_its_own_page_where_a_checkpoint_lacks_it(tmp_path: Path) -> None:
    folder = save_mobilevlm(tmp_path / "model")
    before = VlmTeacher.from_folder(folder, OPTIONS).model
    clip = before.model.vision_tower.vision_tower["vision_model"]
    clip.save_pretrained(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if "vision_tower" not in name}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInputError, match="no CLIP weights and they cannot be had"):
        VlmTeacher.from_folder(folder, OPTIONS)
    edit_config(folder, mm_vision_tower=str(tmp_path / "clip"))
    after = VlmTeacher.from_folder(folder, OPTIONS).model
    pixels = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(after.visual_tokens(pixels), before.visual_tokens(pixels))


def test_clip_of_its_own_page_is_in_the_fingerprint(tmp_path: Path) -> None:
    folder = save_mobilevlm(tmp_path / "model")
    assert "tower" not in registry.describe(f"vlm:{folder}")
    model = VlmTeacher.from_folder(folder, OPTIONS).model
    page = tmp_path / "clip"
    model.model.vision_tower.vision_tower["vision_model"].save_pretrained(page)
    weights = load_file(folder / "model.safetensors")
    bare = {name: tensor for name, tensor in weights.items() if "vision_tower" not in name}
    save_file(bare, folder / "model.safetensors", metadata={"format": "pt"})
    edit_config(folder, mm_vision_tower=str(page))
    registry.weights_digest.cache_clear()
    first = registry.describe(f"vlm:{folder}")["tower"]
    clip = {name: tensor + 1 for name, tensor in load_file(page / "model.safetensors").items()}
    save_file(clip, page / "model.safetensors", metadata={"format": "pt"})
    registry.weights_digest.cache_clear()
    assert registry.describe(f"vlm:{folder}")["tower"] != first


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mm_projector_type": "mlp2x_gelu"}, "'mlp2x_gelu' is not MobileVLM's"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end = True is not known here"),
        ({"vision_config": None}, "without its sizes"),
        ({"mm_vision_select_layer": -9}, "is none of 3 layers"),
    ],
)
def test_a_config_that_cannot_work_is_refused(
    tmp_path: Path, changes: dict[str, object], sentence: str
) -> None:
    folder = save_mobilevlm(tmp_path)
    edit_config(folder, **changes)
    with pytest.raises(BadInputError, match=sentence):
        VlmTeacher.from_folder(folder, OPTIONS)


def test_the_defaults_of_the_tower_are_clip_large() -> None:
    assert asdict(MobileVLMConfig().clip)["image_size"] == 336
