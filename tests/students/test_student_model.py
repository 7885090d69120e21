"""The student as transformers sees it: sizes, forward, generate, and its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    GenerationConfig,
)

from stillroom.engine.packing import IGNORE_INDEX
from stillroom.records import BadInputError
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.vggt import VGGTConfig
from stillroom.students.model import StillroomStudent
from stillroom.students.parameters import parameter_table
from stillroom.students.processor import StillroomProcessor

Make = Callable[..., Any]


def paper(width: int, layers: int) -> StillroomConfig:
    return StillroomConfig(
        encoder=VGGTConfig(camera_head=False, point_head=False).to_dict(),
        text_config=neox_config(
            hidden_size=width, layers=layers, heads=16, vocab_size=32_000, tie_embeddings=False
        ),
        image_size=518,
    )


def test_the_papers_student_has_the_papers_parameters() -> None:
    table = parameter_table(paper(2048, 24))
    assert table["language_model"] == 1_339_674_624
    assert table["aggregator"] == 909_112_320
    assert table["depth_head"] == 32_654_562
    assert table["projector"] == 4_196_352
    assert table["slots"] == 16_384
    assert 2_285_000_000 < table["total"] < 2_300_000_000
    assert sum(count for part, count in table.items() if part != "total") == table["total"]


def test_the_tiny_recipe_is_the_papers_1_16_billion() -> None:
    table = parameter_table(paper(1024, 12))
    parts = ("language_model", "aggregator", "depth_head", "projector")
    assert sum(table[part] for part in parts) == 1_160_557_794


def test_the_embedded_student_fits_four_megabytes_in_half_precision() -> None:
    table = parameter_table(StillroomConfig())
    assert table["language_model"] == 726_144
    assert 2 * table["total"] < 4_000_000


def test_the_encoder_is_frozen_and_all_else_is_trained(make_student: Make) -> None:
    student = make_student()
    trained = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert trained == {"connector", "slots", "depth_bins", "mention_boxes", "language_model"}
    free = make_student(freeze_encoder=False)
    assert any(p.requires_grad for p in free.encoder.parameters())


def test_features_of_a_frozen_encoder_carry_no_gradient(
    make_student: Make, make_images: Make
) -> None:
    features = make_student().features(make_images(scenes=2))
    assert not features.tokens.requires_grad
    assert features.tokens.shape == (2, 2, 4, 32)
    assert features.depth.shape == (2, 2, 2, 2)
    assert features.depth_map is not None
    assert features.depth_map.shape == (2, 2, 28, 28)
    trained = make_student(freeze_encoder=False).features(make_images())
    assert trained.tokens.requires_grad


def hf_inputs(rows: list[tuple[list[int], list[int]]]) -> dict[str, torch.Tensor]:
    """Questions with <bos> and answers as transformers hands them, padded at the end."""
    ids = [torch.tensor([*question, 1, *answer]) for question, answer in rows]
    said = [torch.tensor([IGNORE_INDEX] * (len(q) + 1) + a) for q, a in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad(said, batch_first=True, padding_value=IGNORE_INDEX),
    }


PAIRS = [([40, 41, 42], [50, 2]), ([43, 44], [51, 52, 2])]


@pytest.mark.parametrize("position", ["before", "after"])
@pytest.mark.parametrize("visibility", ["prefix", "full_prefix", "causal"])
@torch.no_grad()
def test_forward_is_the_loss_of_packed_rows(
    make_student: Make, make_rows: Make, make_images: Make, position: str, visibility: str
) -> None:
    student = make_student(slot_position=position, visibility=visibility)
    images = make_images().expand(2, -1, -1, -1, -1)
    out = student(pixel_values=images, **hf_inputs(PAIRS))
    vision = student.vision_tokens(student.features(images[:1]))
    losses = []
    for index, pair in enumerate(PAIRS):
        logits = student.forward_packed(vision, make_rows(student, [pair]))
        losses.append(F.cross_entropy(logits, torch.tensor(pair[1]), reduction="sum"))
        start = len(pair[0])
        torch.testing.assert_close(
            out.logits[index, start : start + len(pair[1])], logits, rtol=1e-4, atol=1e-4
        )
    torch.testing.assert_close(out.loss, sum(losses) / 5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("visibility", ["prefix", "full_prefix", "causal"])
@pytest.mark.parametrize("position", ["before", "after"])
@torch.no_grad()
def test_generate_says_what_forward_says_one_token_at_a_time(
    make_student: Make, make_images: Make, visibility: str, position: str
) -> None:
    student = make_student(visibility=visibility, slot_position=position)
    images = make_images(seed=3)
    said = student.generate(torch.tensor([[40, 41, 1]]), pixel_values=images)[0].tolist()
    assert said[:3] == [40, 41, 1]
    ids, answer = [40, 41, 1], said[3:]
    assert 1 <= len(answer) <= 6
    for token in answer:
        # The prompt alone fixes the row; what has been said since counts as answer.
        labels = [[IGNORE_INDEX] * 3 + ids[3:]]
        out = student(torch.tensor([ids]), pixel_values=images, labels=torch.tensor(labels))
        assert int(out.logits[0, -1].argmax()) == token
        ids.append(token)


@torch.no_grad()
def test_generate_never_returns_more_than_prompt_and_answer(
    make_student: Make, make_images: Make
) -> None:
    student = make_student()
    prompts = torch.tensor([[40, 41, 42, 1], [43, 1, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    images = make_images(scenes=2)
    together = student.generate(prompts, attention_mask=mask, pixel_values=images, max_new_tokens=4)
    assert together.shape[1] <= 4 + 4
    assert torch.equal(together[:, :4], prompts)
    alone = student.generate(prompts[1:, :2], pixel_values=images[1:], max_new_tokens=4)[0]
    assert together[1, 4 : 4 + len(alone) - 2].tolist() == alone[2:].tolist()


def test_generate_wants_photos_and_a_prompt_that_ends_with_bos(
    make_student: Make, make_images: Make
) -> None:
    student = make_student()
    with pytest.raises(BadInputError, match="give pixel_values or features"):
        student.generate(torch.tensor([[40, 1]]))
    with pytest.raises(BadInputError, match="must end with <bos>"):
        student.generate(torch.tensor([[40, 41]]), pixel_values=make_images())


def test_rows_of_another_number_of_views_are_an_error(
    make_student: Make, make_rows: Make, make_images: Make
) -> None:
    student = make_student()
    vision = student.vision_tokens(student.features(make_images(views=3)))
    with pytest.raises(ValueError, match="expect 8 vision tokens, got 12"):
        student.forward_packed(vision, make_rows(student))


# Its folder. ------------------------------------------------------------------------------------


@pytest.fixture
def folder(make_student: Make, processor: StillroomProcessor, tmp_path: Path) -> Path:
    home = tmp_path / "student"
    make_student().save_pretrained(home)
    processor.save_pretrained(home)
    return home


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["learned", "frozen_random", "filler", "none"])
def test_saved_and_loaded_it_is_bit_equal(
    make_student: Make, make_images: Make, tmp_path: Path, tied: bool, kind: str
) -> None:
    text = neox_config(hidden_size=32, layers=2, heads=4, tie_embeddings=tied)
    student = make_student(text_config=text, slot_kind=kind)
    student.save_pretrained(tmp_path / "student")
    loaded = StillroomStudent.from_pretrained(tmp_path / "student")
    mine, theirs = student.state_dict(), loaded.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    for name in set(StillroomConfig.__annotations__) - {"text_config"}:
        assert getattr(loaded.config, name) == getattr(student.config, name), name
    prompt, images = torch.tensor([[40, 41, 1]]), make_images()
    assert torch.equal(
        student.generate(prompt, pixel_values=images),
        loaded.eval().generate(prompt, pixel_values=images),
    )
    frozen = {name for name, p in student.named_parameters() if not p.requires_grad}
    assert {name for name, p in loaded.named_parameters() if not p.requires_grad} == frozen
    out = loaded.get_output_embeddings().weight
    assert (out is loaded.get_input_embeddings().weight) is tied


def test_half_precision_is_kept_and_widened_on_wish(make_student: Make, tmp_path: Path) -> None:
    make_student().to(torch.bfloat16).save_pretrained(tmp_path)
    assert StillroomStudent.from_pretrained(tmp_path).dtype == torch.bfloat16
    wide = StillroomStudent.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}


def test_the_auto_classes_know_it(folder: Path) -> None:
    assert isinstance(AutoConfig.from_pretrained(folder), StillroomConfig)
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
        assert isinstance(auto.from_pretrained(folder), StillroomStudent)
    assert isinstance(AutoProcessor.from_pretrained(folder), StillroomProcessor)


def test_a_folder_holds_safetensors_and_text_and_no_pickle(folder: Path) -> None:
    assert {file.suffix for file in folder.iterdir()} == {".json", ".safetensors"}
    for file in folder.glob("*.json"):
        json.loads(file.read_text())


def test_a_pickle_is_not_read_though_it_holds_the_right_weights(
    make_student: Make, folder: Path
) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(make_student().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BadInputError, match="holds no student that can be read"):
        StillroomStudent.from_pretrained(folder)
    with pytest.raises(BadInputError, match="holds no student that can be read"):
        AutoModel.from_pretrained(folder)


def test_a_truncated_checkpoint_is_an_error(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])
    with pytest.raises(BadInputError, match="holds no student that can be read"):
        StillroomStudent.from_pretrained(folder)


def test_a_checkpoint_of_another_size_is_an_error(make_student: Make, folder: Path) -> None:
    make_student(vision_grid=2, slot_count=5).config.save_pretrained(folder)
    with pytest.raises(BadInputError, match="holds no student that can be read"):
        StillroomStudent.from_pretrained(folder)


def test_a_checkpoint_with_a_part_missing_is_an_error(
    make_student: Make, folder: Path, tmp_path: Path
) -> None:
    make_student(slot_kind="none").save_pretrained(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(BadInputError, match=r"1 weights do not fit, first slots\.embeddings"):
        StillroomStudent.from_pretrained(folder)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="holds no student that can be read"):
        StillroomStudent.from_pretrained(tmp_path)


def test_another_models_folder_is_an_error(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(BadInputError, match="llama"):
        StillroomStudent.from_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"image_size": 30}, "image_size 30 is no multiple of patch_size 7"),
        ({"vision_grid": 0}, "vision_grid and max_views must be at least 1"),
        ({"vision_grid": 13}, "28 pixels cannot be cut into 13 x 13 cells.*for example 4"),
        ({"vision_grid": 29}, "28 pixels cannot be cut into 29 x 29"),
        ({"slot_count": -1}, "slot_count must not be negative, got -1"),
        ({"encoder_round": 4}, "encoder_round 4 is none of the 4 rounds"),
        ({"depth_near": 0.0}, "0 < depth_near < depth_far"),
        ({"text_config": {"model_type": "abacus"}}, "unknown language model type 'abacus'"),
    ],
)
def test_a_config_that_cannot_work_says_why(
    make_config: Make, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        make_config(**changes)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@torch.no_grad()
def test_any_causal_language_model_serves(
    make_student: Make, make_images: Make, family: str, tmp_path: Path
) -> None:
    text = {
        "model_type": family,
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    student = make_student(text_config=text)
    prompt, images = torch.tensor([[40, 41, 1]]), make_images()
    said = student.generate(prompt, pixel_values=images)
    student.save_pretrained(tmp_path)
    loaded = StillroomStudent.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.generate(prompt, pixel_values=images), said)


@torch.no_grad()
def test_generate_refuses_what_is_not_greedy(make_student: Make, make_images: Make) -> None:
    student, prompt = make_student(), torch.tensor([[40, 41, 1]])
    given = {"pixel_values": make_images()}
    plain = student.generate(prompt, **given)
    config = GenerationConfig(do_sample=False, num_beams=1)
    same = student.generate(prompt, **given, do_sample=False, num_beams=1, generation_config=config)
    assert torch.equal(same, plain)
    for asked, named in (
        ({"num_beams": 4, "do_sample": True}, "do_sample=True"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"num_return_sequences": 2}, "num_return_sequences=2"),
        ({"generation_config": GenerationConfig(do_sample=True)}, "do_sample=True"),
    ):
        with pytest.raises(BadInputError, match=f"answers greedily and has no {named}; leave"):
            student.generate(prompt, **given, **asked)
    with pytest.raises(BadInputError, match="knows no max_new_token; leave"):
        student.generate(prompt, **given, max_new_token=2)
    short = student.generate(prompt, **given, generation_config=GenerationConfig(max_new_tokens=2))
    assert torch.equal(short, student.generate(prompt, **given, max_new_tokens=2))
    assert short.shape[1] < plain.shape[1]
    student.generation_config.num_beams = 4
    with pytest.raises(BadInputError, match="has no num_beams=4"):
        student.generate(prompt, **given)
