"""Options of a teacher: what they refuse, how a task words a question, how weights are held."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from released import write_released
from tiny_llava3d import CONFIG, lively_teacher, tiny_model, tiny_teacher

from stillroom.records import BadInputError, Question, View, asked
from stillroom.teachers import llava3d_place
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_place import place
from stillroom.teachers.options import Device, TeacherOptions, layer_range
from stillroom.teachers.preprocess import object_points, photo_inputs, pixel_values
from stillroom.teachers.prompts import COORDINATE_ID, SHORT_ANSWER, TASKS, TEMPLATES
from stillroom.testing import tiny_questions, tiny_scene
from stillroom.text.tokenizer import load_tokenizer

# Refusals. --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"topk": 0}, "topk must be between 1"),
        ({"frames": -3}, "frames must be between 1"),
        ({"max_new_tokens": 10**9}, "max_new_tokens must be between 1"),
        ({"attention_layers": ("8-3",)}, "such as 24-31, got '8-3'"),
        ({"attention_layers": ("all",)}, "such as 24-31, got 'all'"),
        ({"offload": True, "dtype": "int8"}, "choose one of both"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        TeacherOptions(**options)


def test_layers_that_the_model_lacks_are_refused() -> None:
    with pytest.raises(BadInputError, match="but the teacher has 2"):
        tiny_teacher(options=TeacherOptions(attention_layers=("0-2",)))
    assert layer_range("7") == range(7, 8)


def test_the_fingerprint_names_only_what_differs_and_matters() -> None:
    assert TeacherOptions().fingerprint() == {}
    chosen = TeacherOptions(dtype="int8", device="cpu", topk=5)
    assert chosen.fingerprint() == {"dtype": "int8", "topk": 5}
    json.dumps(chosen.fingerprint())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence() -> None:
    with pytest.raises(BadInputError, match="torch sees no GPU"):
        place(tiny_model(), TeacherOptions(device="cuda"))


@pytest.mark.parametrize(
    ("package", "options"),
    [
        ("torchao.quantization", {"dtype": "int8"}),
        ("accelerate", {"offload": True}),
    ],
)
def test_a_missing_package_is_one_sentence(
    package: str, options: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BadInputError, match=r"pip install 'stillroom\[teacher\]'"):
        place(tiny_model(), TeacherOptions(**options))


# How weights are held. --------------------------------------------------------------------------


def answers_of(teacher: LLaVA3DTeacher) -> list[np.ndarray]:
    scene = tiny_scene(1)
    labels = teacher.label(scene, tiny_questions(scene), ["topk_logits", "attention"])
    return [label.logsumexp for label in labels]


def test_offloaded_weights_give_the_same_labels() -> None:
    pytest.importorskip("accelerate")
    before = answers_of(lively_teacher())
    moved = lively_teacher(options=TeacherOptions(offload=True, device="cpu"))
    place(moved.model, moved.options)
    assert {parameter.device.type for parameter in moved.model.parameters()} == {"meta"}
    assert moved.model.device.type == "cpu"
    for one, other in zip(before, answers_of(moved), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("quantizer", "dtype", "tolerance"),
    [("torchao", "int8", 0.05), ("bitsandbytes", "int8", 0.05), ("bitsandbytes", "int4", 1.0)],
)
def test_quantised_weights_give_nearly_the_same_labels(
    quantizer: str, dtype: str, tolerance: float
) -> None:
    pytest.importorskip(quantizer)
    if quantizer == "bitsandbytes" and not torch.cuda.is_available():
        pytest.skip("bitsandbytes is refused without a GPU")
    device: Device = "cuda" if quantizer == "bitsandbytes" else "cpu"
    config = replace(CONFIG, hidden_size=64, intermediate_size=128)
    before = answers_of(tiny_teacher(config))
    small = tiny_teacher(config, TeacherOptions(dtype=dtype, quantizer=quantizer, device=device))
    plain = small.model.model.layers[0].mlp.up_proj.weight.detach().clone()
    place(small.model, small.options)
    held = small.model.model.layers[0].mlp.up_proj.weight
    assert type(held) is not type(small.model.lm_head.weight) or held.dtype != plain.dtype
    for one, other in zip(before, answers_of(small), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)
        assert not np.array_equal(one, other), "nothing was quantised"


def test_int4_needs_whole_groups_of_weights() -> None:
    with pytest.raises(BadInputError, match="int4 groups 128 weights"):
        llava3d_place._check_int4(tiny_model())


# Wording of tasks. ------------------------------------------------------------------------------


class Letters:
    """One id per sign, so that what is encoded can be read."""

    bos_id, eos_id, vocab_size = 1, 2, 0x11000

    def encode(self, text: str) -> list[int]:
        return [ord(sign) for sign in text]


def worded(question: Question, task: str = "auto", prompt: str = "llava_v1") -> str:
    ids = TEMPLATES[prompt].question_ids(Letters(), question, task=task)
    return "".join("<boxes>" if i == COORDINATE_ID else chr(i) for i in ids)


def test_every_task_words_a_question_as_the_release_does() -> None:
    question = replace(
        tiny_questions(tiny_scene(0))[0], question="What is it?", options=(), object_ids=(2,)
    )
    located = "The related object is located at <boxes>."
    expected = {
        "plain": "What is it?",
        "short": f"What is it? {SHORT_ANSWER}",
        "scanqa": f"What is it? {SHORT_ANSWER}",
        "sqa3d": f"What is it? {SHORT_ANSWER}",
        "object_qa": f"{located} What is it?",
        "object_caption": f"{located} Describe the object in detail.",
        "scan2cap": f"{located} Describe the object first: begin by detailing the visual aspects "
        "of this object before delving into its spatial context among other elements within the "
        "scene, and then localize the object in the 3D scene.",
        "localise": f"{located} Please output the 3D bounding box of the object and then describe "
        "the object.",
        "scene_caption": "Describe the scene concisely.",
        "grounding": '"What is it?" Which object best matches the given description? Please '
        "provide its coordinates.",
    }
    assert set(expected) == set(TASKS)
    assert {"auto", *TASKS} == set(get_args(get_type_hints(TeacherOptions)["task"]))
    for task, text in expected.items():
        assert worded(question, task) == f"\n{text} ASSISTANT:", task


def test_several_objects_stand_in_the_plural() -> None:
    question = replace(
        tiny_questions(tiny_scene(0))[0], question="Do they touch?", options=(), object_ids=(1, 2)
    )
    assert worded(question, "object_qa") == (
        "\nThe related objects are located at <boxes>, <boxes>. Do they touch? ASSISTANT:"
    )


def test_the_family_chooses_the_wording_unless_one_is_given() -> None:
    question = replace(tiny_questions(tiny_scene(0))[0], question="Q", options=(), object_ids=(1,))
    assert SHORT_ANSWER in worded(question)
    assert "localize the object" in worded(replace(question, family="scan2cap"))
    assert SHORT_ANSWER not in worded(replace(question, family="description"))
    assert SHORT_ANSWER not in worded(asked("scene", "Q"))
    assert worded(question, prompt="mini") == "Q\x01"


def test_a_question_s_own_text_is_never_a_placeholder() -> None:
    question = replace(
        tiny_questions(tiny_scene(0))[0], question="<boxes> {located}?", options=(), object_ids=(1,)
    )
    ids = TEMPLATES["llava_v1"].question_ids(Letters(), question, task="object_qa")
    assert ids.count(COORDINATE_ID) == 1


def test_a_task_about_an_object_needs_one() -> None:
    question = replace(tiny_questions(tiny_scene(0))[0], object_ids=())
    with pytest.raises(BadInputError, match="names no object"):
        worded(question, "scan2cap")


def test_coordinates_are_box_centres_in_the_teacher_s_frame() -> None:
    scene = tiny_scene(0)
    thing = replace(
        scene.objects[0], box=replace(scene.objects[0].box, center=np.array([0.12345, 2.0, 0.4]))
    )
    scene = replace(scene, objects=(thing, *scene.objects[1:]), floor_z=0.25)
    assert object_points(scene, (1,), replace(CONFIG, frame="source")) == [(0.123, 2.0, 0.4)]
    (x, y, z), _ = object_points(scene, (1, 2), replace(CONFIG, frame="view0"))
    assert z == pytest.approx(0.15)
    assert (x, y) != (0.123, 2.0) or scene.views[0].c2w[0, 3] == 0
    with pytest.raises(BadInputError, match="no box of object 9"):
        object_points(scene, (9,), CONFIG)


def test_a_coordinate_reaches_the_answer() -> None:
    options = TeacherOptions(task="object_qa")
    teacher = lively_teacher(replace(CONFIG, prompt="llava_v1"), options)
    with torch.no_grad():
        head = teacher.model.model.video_tower["prompt_encoder"]["pos_emb3d"]
        head.position_embedding_head[3].weight *= 20
    scene = tiny_scene(1)
    question = replace(tiny_questions(scene)[0], options=(), object_ids=(1,))
    one, other = (
        teacher.label(scene, [replace(question, object_ids=ids)], ["topk_logits"])[0]
        for ids in ((1,), (2,))
    )
    assert not np.allclose(one.topk_logits[0], other.topk_logits[0], atol=1e-3)
    session = teacher.open(scene)
    ids = teacher.template.question_ids(teacher.tokenizer, question, task="object_qa")
    embeds = teacher.model.embed_prompt(ids, object_points(scene, (1,), teacher.model.settings))
    click = torch.tensor(object_points(scene, (1,), teacher.model.settings))
    expected = teacher.model.coordinate_tokens(click)
    torch.testing.assert_close(embeds[ids.index(COORDINATE_ID)], expected[0])
    assert session.prefix.length > 0


# The 2D path. -----------------------------------------------------------------------------------


def test_a_single_photo_is_all_its_patches_without_any_position() -> None:
    scene = tiny_scene(1)
    teacher = lively_teacher(replace(CONFIG, prompt="llava_v1"), TeacherOptions(vision="2d"))
    session = teacher.open(scene)
    image = torch.from_numpy(pixel_values(scene.views[0].rgb, CONFIG.clip.image_size))[None]
    expected = teacher.model.image_tokens(image)[0]
    torch.testing.assert_close(session.prefix.embeds[0, session.visual], expected)
    features = session.features()
    assert features.points is None
    assert features.views == (0,)
    assert features.patch_token.tolist() == list(range(CONFIG.clip.grid**2))
    question = replace(tiny_questions(scene)[0], options=())
    label = teacher.label(scene, [question], ["answers", "attention"])[0]
    assert label.attention.shape[-1] == CONFIG.clip.grid**2


def test_a_single_photo_knows_no_places() -> None:
    scene = tiny_scene(1)
    options = TeacherOptions(vision="2d", task="object_qa")
    teacher = lively_teacher(replace(CONFIG, prompt="llava_v1"), options)
    with pytest.raises(BadInputError, match="points at places"):
        teacher.label(scene, tiny_questions(scene, count=1), ["answers"])


def test_a_padded_photo_keeps_its_edges() -> None:
    scene = tiny_scene(0)
    wide = np.full((28, 56, 3), 250, np.uint8)
    wide[:, :5] = 0
    scene = replace(scene, views=(View(name="wide", rgb=wide),))
    square, _ = photo_inputs(scene, CONFIG)
    padded, views = photo_inputs(scene, replace(CONFIG, image_aspect_ratio="pad"))
    assert views == (0,)
    assert square.min() > 0, "the middle of the picture is bright"
    assert padded[0, :, 14, 0].max() < 0, "the dark edge is still there"
    # CLIP's mean colour above and below is nearly zero.
    assert np.abs(padded[0, :, 1]).max() < 0.02


def test_a_scene_of_several_photos_says_that_one_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    photo_inputs(tiny_scene(0, views=3), CONFIG)
    assert "the first of 3" in caplog.text


# Options through a folder. ----------------------------------------------------------------------


def test_options_replace_the_checkpoint_s_habits(tmp_path: Path) -> None:
    write_released(tmp_path / "ck")
    options = TeacherOptions(frames=1, max_new_tokens=3, topk=7, template="v1")
    teacher = LLaVA3DTeacher.from_folder(tmp_path / "ck", options)
    scene = tiny_scene(1)
    label = teacher.label(scene, tiny_questions(scene, count=1), ["topk_logits"])[0]
    assert teacher.open(scene).views == (0,)
    assert len(label.answer_ids) <= 3
    assert label.topk_ids.shape[1] == 7
    assert load_tokenizer().vocab_size != teacher.tokenizer.vocab_size
