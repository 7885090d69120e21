"""Views to what LLaVA-3D reads, and the words around a question, against the release's."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from safetensors.torch import load_file, save_file

from stillroom.geometry.cameras import project, resize_intrinsics
from stillroom.records import BadInputError
from stillroom.teachers.llava3d_config import ClipSize, LLaVA3DConfig
from stillroom.teachers.preprocess import (
    CLIP_MEAN,
    CLIP_STD,
    crop_intrinsics,
    frame_indices,
    pixel_values,
    resized_wh,
    scene_inputs,
    whole_pixel_intrinsics,
)
from stillroom.teachers.prompts import TEMPLATES, name_objects, open_tokenizer, placeholder_ids
from stillroom.teachers.verify_llava3d import verify_llava3d
from stillroom.testing import tiny_questions, tiny_scene
from stillroom.text.tokenizer import load_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures" / "llava3d"
SIZES = LLaVA3DConfig(clip=ClipSize(image_size=28, patch_size=7), num_frames=3, frame="source")


@pytest.mark.parametrize("case", ["preprocess", "text"])
def test_everything_recorded_before_the_network_agrees(case: str) -> None:
    compared = verify_llava3d(FIXTURES / case)
    assert len(compared) == {"preprocess": 13, "text": 5}[case]
    assert [entry for entry in compared if not entry.ok or entry.skipped] == []


def test_a_depth_that_was_moved_is_noticed(tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / "preprocess.safetensors")
    name = "input.rscan_like.depth_mm"
    tensors[name] = tensors[name].roll(1, dims=1)
    shutil.copyfile(FIXTURES / "preprocess.json", tmp_path / "preprocess.json")
    save_file(tensors, tmp_path / "preprocess.safetensors")
    failed = [entry.name for entry in verify_llava3d(tmp_path / "preprocess") if not entry.ok]
    assert failed == ["out.rscan_like.depth"]


def test_an_unknown_recorded_output_is_an_error(tmp_path: Path) -> None:
    tensors = load_file(FIXTURES / "preprocess.safetensors")
    shutil.copyfile(FIXTURES / "preprocess.json", tmp_path / "preprocess.json")
    save_file(
        {**tensors, "out.square.normals": tensors["out.square.depth"].clone()},
        tmp_path / "preprocess.safetensors",
    )
    with pytest.raises(BadInputError, match=r"out\.square\.normals"):
        verify_llava3d(tmp_path / "preprocess")


def test_the_half_pixel_is_dropped_once() -> None:
    """A point at our pixel centre (u + 0.5) is at u for the release, after any resize."""
    intrinsics = np.array([[300.0, 0.0, 160.0], [0.0, 300.0, 120.0], [0.0, 0.0, 1.0]])
    point = np.array([[0.2, -0.1, 2.0]])
    cropped = crop_intrinsics(intrinsics, image_wh=(320, 240), resized_depth_wh=(149, 112))
    ours = resize_intrinsics(intrinsics, (240, 320), (112, 149))
    ours[0, 2] -= (149 - 112) / 2
    theirs = whole_pixel_intrinsics(cropped)
    np.testing.assert_allclose(
        project(point, theirs[:3, :3]), project(point, ours) - 0.5, atol=1e-4
    )


def test_a_portrait_loses_rows_and_so_moves_cy() -> None:
    intrinsics = np.eye(3) * [[100.0], [100.0], [1.0]]
    intrinsics[:2, 2] = (30.0, 50.0)
    cropped = crop_intrinsics(intrinsics, image_wh=(60, 100), resized_depth_wh=(60, 100))
    assert cropped[:2, 2].tolist() == [30.0, 30.0]


@pytest.mark.parametrize(("wh", "expected"), [((640, 480), (448, 336)), ((480, 640), (336, 448))])
def test_the_shorter_side_becomes_the_crop(wh: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_wh(*wh, 336) == expected


def test_a_grey_picture_stays_grey() -> None:
    values = pixel_values(np.full((40, 31, 3), 128, np.uint8), 28)
    assert values.shape == (3, 28, 28)
    expected = (np.float32(128 / 255) - CLIP_MEAN) / CLIP_STD
    np.testing.assert_allclose(values, np.broadcast_to(expected[:, None, None], (3, 28, 28)))


def test_few_views_are_repeated_and_many_are_thinned() -> None:
    assert frame_indices(2, 5) == [0, 1, 0, 1, 0]
    assert frame_indices(7, 3) == [0, 2, 4]


def test_views_without_a_finite_pose_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    scene = tiny_scene(0, views=4)
    lost = np.full((4, 4), np.inf)
    broken = replace(
        scene, views=(scene.views[0], replace(scene.views[1], c2w=lost), *scene.views[2:])
    )
    inputs = scene_inputs(broken, SIZES)
    assert inputs.views == (0, 2, 3)
    assert "1 of 4 views" in caplog.text
    assert np.isfinite(inputs.poses).all()


def test_view0_needs_the_first_view_s_pose() -> None:
    scene = tiny_scene(0, views=2)
    broken = replace(scene, views=(replace(scene.views[0], c2w=None), scene.views[1]))
    with pytest.raises(BadInputError, match="the first view has no pose"):
        scene_inputs(broken, replace(SIZES, frame="view0"))


def test_depth_holes_stay_zero() -> None:
    scene = tiny_scene(0)
    depth = scene.views[0].depth.copy()
    depth[:5] = 0.0
    depth[5, 0] = np.nan
    holed = replace(scene, views=(replace(scene.views[0], depth=depth), *scene.views[1:]))
    read = scene_inputs(holed, SIZES).depths[0]
    assert (read[:5] == 0).all()
    assert read[5, 0] == 0
    assert (read[6:] > 0).all()


# Words. -----------------------------------------------------------------------------------------


def test_the_miniature_reads_the_question_alone_and_starts_its_answer_with_bos() -> None:
    tokenizer = load_tokenizer()
    question = tiny_questions(tiny_scene(0))[0]
    assert TEMPLATES["mini"].prefix_ids(tokenizer) == []
    ids = TEMPLATES["mini"].question_ids(tokenizer, question)
    assert ids == [*tokenizer.encode(question.question), tokenizer.bos_id]


def test_the_7b_is_asked_for_few_words_but_not_in_a_description() -> None:
    tokenizer = load_tokenizer()
    question = tiny_questions(tiny_scene(0))[0]
    template = TEMPLATES["llava_v1"]
    said = tokenizer.decode(template.question_ids(tokenizer, question))
    assert said == (
        f"{question.question} Answer the question using one word or one phrase. ASSISTANT:"
    )
    described = replace(question, family="description", question="Describe the room.", options=())
    assert "one word" not in tokenizer.decode(template.question_ids(tokenizer, described))
    assert template.prefix_ids(tokenizer)[0] == tokenizer.bos_id


def test_boxes_stand_once_for_each_object() -> None:
    assert name_objects("Near <boxes>?", 2) == "Near <boxes>, <boxes>?"


@pytest.fixture
def llama_like(tmp_path: Path) -> Path:
    """A folder with a tokenizer that marks spaces as SentencePiece does, one id per sign."""
    signs = ["<unk>", "<s>", "</s>", "<0x0A>", "\u2581", *"abcdehlnorstw?AINST:/<>"]
    bpe = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {sign: i for i, sign in enumerate(signs)}, [], byte_fallback=True, unk_token="<unk>"
        )
    )
    bpe.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend("\u2581"),
            tokenizers.normalizers.Replace(" ", "\u2581"),
        ]
    )
    bpe.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("\u2581", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
        ]
    )
    bpe.add_special_tokens(["<unk>", "<s>", "</s>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"})
    )
    return tmp_path


def test_a_llama_tokenizer_marks_the_start_of_every_piece(llama_like: Path) -> None:
    tokenizer = open_tokenizer(llama_like, bos_id=1, eos_id=2, vocab_size=100)
    newline, space = 3, 4
    assert tokenizer.encode("\nwho")[:2] == [space, newline]
    ids = placeholder_ids("who<image>\nwho", tokenizer.encode, bos_id=tokenizer.bos_id)
    assert ids[:2] == [1, space]
    assert ids[ids.index(-200) + 1 :][:2] == [space, newline]
    assert tokenizer.decode([*tokenizer.encode("a chair"), 2]).startswith("a cha")


def test_a_person_cannot_end_the_prompt_of_the_7b(llama_like: Path) -> None:
    tokenizer = open_tokenizer(llama_like, bos_id=1, eos_id=2, vocab_size=100)
    assert tokenizer.eos_id not in tokenizer.encode("a </s> b")


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no usable tokenizer"):
        open_tokenizer(tmp_path, bos_id=1, eos_id=2, vocab_size=1024)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    shutil.copyfile(load_tokenizer().file, tmp_path / "tokenizer.json")
    with pytest.raises(BadInputError, match="belong to different checkpoints"):
        open_tokenizer(tmp_path, bos_id=1, eos_id=2, vocab_size=1000)
