"""Any vision-language model as a teacher, on random checkpoints of the hub's layouts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vlms import SAVERS, save_llava, save_qwen2_5
from transformers import AutoModelForImageTextToText

from stillroom.records import (
    SIGNALS,
    Answerer,
    BadInputError,
    FeatureTeacher,
    Question,
    Teacher,
    asked,
)
from stillroom.teachers.photos import chosen_views
from stillroom.teachers.vlm import VlmOptions, VlmTeacher
from stillroom.testing import tiny_questions, tiny_scene

OPTIONS = VlmOptions(
    max_new_tokens=5,
    topk=4,
    questions_at_once=3,
    attention_layers=("0-1", "2"),
    device="cpu",
)
SHARING = ("llava", "qwen2_5", "qwen3", "mobilevlm")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("vlms")
    return {name: save(base / name) for name, save in SAVERS.items()}


@pytest.fixture(scope="module")
def teachers(folders: dict[str, Path]) -> dict[str, VlmTeacher]:
    return {n: VlmTeacher.from_folder(folder, OPTIONS) for n, folder in folders.items()}


def questions_of(scene_seed: int) -> list[Question]:
    return tiny_questions(tiny_scene(scene_seed))


# What is said. ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVERS)
def test_it_says_what_transformers_generate_says(
    name: str, teachers: dict[str, VlmTeacher]
) -> None:
    teacher, scene = teachers[name], tiny_scene(1)
    session = teacher.open(scene)
    for question, label in zip(
        questions_of(1), teacher.label(scene, questions_of(1), ["answers"]), strict=True
    ):
        inputs = session.reader.prompts.whole(question)
        if name == "mobilevlm":
            ids = _by_repeated_passes(teacher, inputs)
        else:
            told = teacher.model.generate(
                **inputs,
                max_new_tokens=5,
                do_sample=False,
                eos_token_id=list(teacher.prompts.eos_ids),
            )
            ids = told[0, inputs["input_ids"].shape[1] :].tolist()
        assert label.answer_ids.tolist() == ids
        assert label.answer == teacher.prompts.decode(ids)


def _by_repeated_passes(teacher: VlmTeacher, inputs: dict[str, torch.Tensor]) -> list[int]:
    """Greedy ids without a cache."""
    said: list[int] = []
    while len(said) < 5 and said[-1:] != list(teacher.prompts.eos_ids):
        ids = torch.cat([inputs["input_ids"], torch.tensor([said], dtype=torch.long)], dim=1)
        with torch.no_grad():
            logits = teacher.model(input_ids=ids, pixel_values=inputs["pixel_values"]).logits
        said.append(int(logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("name", SAVERS)
def test_questions_share_a_scene_where_the_model_lets_them(
    name: str, teachers: dict[str, VlmTeacher]
) -> None:
    teachers[name].label(tiny_scene(1), questions_of(1)[:1], ["answers"])
    assert teachers[name].shares_scenes is (name in SHARING)


@pytest.mark.parametrize("name", SHARING)
def test_sharing_the_scene_changes_no_answer(name: str, folders: dict[str, Path]) -> None:
    shared = VlmTeacher.from_folder(folders[name], OPTIONS)
    alone = VlmTeacher.from_folder(folders[name], OPTIONS)
    alone.shares_scenes = False
    signals = [signal for signal in SIGNALS if signal != "scene_features"]
    both = [t.label(tiny_scene(2), questions_of(2), signals) for t in (shared, alone)]
    assert shared.shares_scenes is True
    assert alone.shares_scenes is False
    for one, other in zip(*both, strict=True):
        np.testing.assert_array_equal(one.answer_ids, other.answer_ids)
        np.testing.assert_array_equal(one.topk_ids, other.topk_ids)
        np.testing.assert_allclose(one.topk_logits, other.topk_logits, atol=2e-4)
        np.testing.assert_allclose(one.last_hidden, other.last_hidden, atol=2e-4)
        np.testing.assert_allclose(one.reference.logits, other.reference.logits, atol=2e-4)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-5)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_a_model_that_reads_a_cut_prompt_differently_is_not_shared(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = VlmTeacher.from_folder(folders["qwen3"], OPTIONS)
    # Without the shift of its positions behind pictures Qwen reads the question too far off.
    monkeypatch.setattr("stillroom.teachers.vlm_read._position_shift", lambda model: 40)
    labels = teacher.label(tiny_scene(1), questions_of(1), ["answers"])
    assert teacher.shares_scenes is False
    expected = VlmTeacher.from_folder(folders["qwen3"], OPTIONS)
    expected.shares_scenes = False
    for one, other in zip(
        labels, expected.label(tiny_scene(1), questions_of(1), ["answers"]), strict=True
    ):
        assert one.answer_ids.tolist() == other.answer_ids.tolist()


@pytest.mark.parametrize("name", SAVERS)
def test_what_is_seen_changes_what_is_said(name: str, teachers: dict[str, VlmTeacher]) -> None:
    question = questions_of(1)[0]
    logits = [
        teachers[name].label(tiny_scene(seed), [question], ["topk_logits"])[0].topk_logits
        for seed in (1, 2)
    ]
    assert logits[0].shape != logits[1].shape or not np.allclose(*logits, atol=1e-3)


# Signals. ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVERS)
def test_signals_agree_with_one_uncached_pass(name: str, teachers: dict[str, VlmTeacher]) -> None:
    teacher, scene = teachers[name], tiny_scene(3)
    signals = [signal for signal in SIGNALS if signal != "scene_features"]
    question = questions_of(3)[2]
    label = teacher.label(scene, questions_of(3), signals)[2]
    whole = teacher.open(scene).reader.prompts.whole(question)
    length = whole["input_ids"].shape[1]
    told = _pass(teacher, whole, label.answer_ids)
    count = len(label.answer_ids)
    logits = told.logits[0, length - 1 : -1].float()
    best = logits.topk(4)
    np.testing.assert_array_equal(label.topk_ids, best.indices)
    np.testing.assert_allclose(label.topk_logits, best.values, atol=5e-4)
    np.testing.assert_allclose(label.logsumexp, logits.logsumexp(-1), atol=5e-4)
    chosen = logits.log_softmax(-1)[torch.arange(count), torch.from_numpy(label.answer_ids)]
    assert label.logprob == pytest.approx(float(chosen.sum()), abs=2e-3)
    hidden = told.hidden_states[-1][0, length - 1 : -1]
    np.testing.assert_allclose(label.last_hidden, hidden, atol=5e-4)
    # Three layers in two groups: two and one, mean over heads, rows of the answer's own tokens.
    places = (whole["input_ids"][0] == teacher.prompts.image_token_id).nonzero()[:, 0]
    maps = torch.stack([layer[0, :, length:][..., places].mean(0) for layer in told.attentions])
    expected = torch.stack([maps[:2].mean(0), maps[2]])
    assert label.attention.shape == (2, count, len(places))
    np.testing.assert_allclose(label.attention, expected, atol=1e-5)
    np.testing.assert_allclose(label.attention_mass, expected.sum(-1), atol=1e-5)
    forced = _pass(teacher, whole, label.reference_ids).logits[0, length - 1 : -1].float()
    np.testing.assert_allclose(label.reference.logits, forced.topk(4).values, atol=5e-4)
    assert label.reference_ids[-1] == teacher.prompts.eos_ids[0]
    assert teacher.prompts.decode(label.reference_ids.tolist()) == question.answer


def _pass(teacher: VlmTeacher, whole: dict[str, torch.Tensor], ids: np.ndarray) -> object:
    """Prompt and answer in one pass, eager, without a cache."""
    answer = torch.from_numpy(ids)[None]
    inputs = dict(whole)
    for name, fill in (
        ("input_ids", answer),
        ("attention_mask", torch.ones_like(answer)),
        ("mm_token_type_ids", torch.zeros_like(answer)),
        ("token_type_ids", torch.ones_like(answer)),
    ):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], fill], dim=1)
    model = teacher.model
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(
                **inputs, use_cache=False, output_attentions=True, output_hidden_states=True
            )
    finally:
        model.set_attn_implementation("sdpa")


def test_attention_leaves_the_model_on_its_fast_path(teachers: dict[str, VlmTeacher]) -> None:
    teacher = teachers["llava"]
    before = teacher.model.config._attn_implementation
    teacher.label(tiny_scene(1), questions_of(1)[:1], ["attention"])
    assert before == "sdpa"
    assert teacher.model.config._attn_implementation == before


@pytest.mark.parametrize("name", SAVERS)
def test_features_stand_in_the_order_of_the_visual_tokens(
    name: str, teachers: dict[str, VlmTeacher]
) -> None:
    teacher, scene = teachers[name], tiny_scene(1)
    if name == "mobilevlm":
        # Its projector mixes neighbours in two directions: no row of patches is a token's own.
        with pytest.raises(BadInputError, match="makes 288 tokens of 1152 patches in a way not kn"):
            teacher.scene_features(scene)
        return
    features = teacher.scene_features(scene)
    question = questions_of(1)[0]
    whole = teacher.open(scene).reader.prompts.whole(question)
    count = int((whole["input_ids"] == teacher.prompts.image_token_id).sum())
    assert features.views == (0, 1)
    assert np.isfinite(features.pooled).all()
    assert len(features.pooled) == count
    # What the rest of the model makes of them is what the language model is given.
    base = teacher.model.base_model
    with torch.no_grad():
        given = torch.from_numpy(features.pooled)
        if hasattr(base, "visual"):
            merger = base.visual.merger
            made = merger(given.reshape(-1, 16))
            told = base.get_image_features(whole["pixel_values"], whole["image_grid_thw"])
            expected = torch.cat(told.pooler_output)
        else:
            made = base.multi_modal_projector(given)
            told = base.get_image_features(whole["pixel_values"]).pooler_output
            expected = torch.cat(list(told))
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    if name == "paligemma":
        assert features.semantics is None
    else:
        assert features.semantics.shape == (32,)


def test_semantics_is_the_mean_state_before_the_final_norm(
    teachers: dict[str, VlmTeacher],
) -> None:
    teacher, scene = teachers["llava"], tiny_scene(1)
    whole = teacher.open(scene).reader.prompts.whole(questions_of(1)[0])
    seen: list[torch.Tensor] = []
    hook = teacher.model.model.language_model.layers[-1].register_forward_hook(
        lambda _, given, made: seen.append(made)
    )
    with torch.no_grad():
        teacher.model(**whole)
    hook.remove()
    places = whole["input_ids"][0] == 3
    expected = seen[0][0, places].mean(dim=0)
    told = teacher.scene_features(scene).semantics
    np.testing.assert_allclose(told, expected, atol=1e-4)


# Views and options. -----------------------------------------------------------------------------


def test_at_most_so_many_views_are_looked_at_evenly_spaced(folders: dict[str, Path]) -> None:
    assert chosen_views(6, 8) == (0, 1, 2, 3, 4, 5)
    assert chosen_views(6, 3) == (0, 2, 4)
    assert chosen_views(7, 1) == (0,)
    scene = tiny_scene(1, views=5)
    options = replace(OPTIONS, views=2)
    teacher = VlmTeacher.from_folder(folders["llava"], options)
    session = teacher.open(scene)
    teacher.label(scene, questions_of(1)[:1], ["answers"])
    assert session.views == (0, 2)
    assert len(session.reader.prefix.visual) == 2 * 16


def test_photos_are_shrunk_when_asked(folders: dict[str, Path]) -> None:
    options = replace(OPTIONS, image_size=14)
    teacher = VlmTeacher.from_folder(folders["llava"], options)
    pictures = teacher.open(tiny_scene(1)).reader.prompts.images
    assert {picture.size for picture in pictures} == {(14, 14)}


def test_half_precision_is_kept_when_asked(folders: dict[str, Path]) -> None:
    teacher = VlmTeacher.from_folder(folders["llava"], replace(OPTIONS, dtype="bfloat16"))
    label = teacher.label(tiny_scene(1), questions_of(1)[:1], ["topk_logits"])[0]
    assert teacher.model.dtype == torch.bfloat16
    assert teacher.shares_scenes is True
    assert np.isfinite(label.topk_logits).all()


def test_an_instruction_stands_below_short_questions_only(teachers: dict[str, VlmTeacher]) -> None:
    prompts = teachers["qwen3"].prompts
    short = prompts.text(questions_of(1)[0], 1)
    own = prompts.text(asked("scene", "What is in the room?"), 1)
    assert "one word or one phrase" in short
    assert "one word or one phrase" not in own
    assert own.startswith("<|im_start|>user\n<|vision_start|><|image_pad|>")


def test_a_teacher_is_an_answerer_and_labels_with_what_it_answers(
    teachers: dict[str, VlmTeacher],
) -> None:
    teacher, scene = teachers["qwen2_5"], tiny_scene(1)
    assert isinstance(teacher, Answerer)
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher, FeatureTeacher)
    answers = teacher.open(scene).answer(questions_of(1))
    labels = teacher.label(scene, questions_of(1), ["answers"])
    assert [answer.text for answer in answers] == [label.answer for label in labels]
    assert labels[0].topk_ids is None
    assert teacher.open(scene).answer([]) == []


# Bad input. -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"views": 0}, "views must be at least 1"), ({"image_size": 3}, "image_size must be")],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        VlmOptions(**changes)


def test_a_question_with_a_control_token_is_refused(teachers: dict[str, VlmTeacher]) -> None:
    scene = tiny_scene(1)
    question = asked(scene.scene_id, "Is <image> a lamp?")
    with pytest.raises(BadInputError, match="'<image>', which this teacher reads as a command"):
        teachers["llava"].open(scene).answer([question])


def test_a_question_beyond_its_positions_is_refused(teachers: dict[str, VlmTeacher]) -> None:
    scene = tiny_scene(1)
    question = asked(scene.scene_id, "lamp " * 390)
    with pytest.raises(BadInputError, match="give it fewer views"):
        teachers["llava"].open(scene).answer([question])


def test_features_of_an_unknown_projector_are_refused(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = VlmTeacher.from_folder(folders["llava"], OPTIONS)
    monkeypatch.setattr("stillroom.teachers.vlm_read.projector_of", lambda model: None)
    with pytest.raises(BadInputError, match="projector of a 'llava' lies is not known"):
        teacher.scene_features(tiny_scene(1))


def test_a_checkpoint_that_lacks_a_key_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "llava")
    model = AutoModelForImageTextToText.from_pretrained(folder)
    state = {k: v for k, v in model.state_dict().items() if "linear_2" not in k}
    model.save_pretrained(folder, state_dict=state)
    with pytest.raises(BadInputError, match=r"lacks .*linear_2\.(bias|weight)"):
        VlmTeacher.from_folder(folder)


def test_a_truncated_or_missing_weight_file_is_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "llava")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInputError, match="cannot be read, fetch them again"):
        VlmTeacher.from_folder(folder)
    file.unlink()
    with pytest.raises(BadInputError, match="cannot be read, fetch them again"):
        VlmTeacher.from_folder(folder)


def test_sizes_that_contradict_the_config_are_refused(tmp_path: Path) -> None:
    folder = save_llava(tmp_path / "llava")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["text_config"]["intermediate_size"] = 40
    file.write_text(json.dumps(config))
    with pytest.raises(BadInputError, match=r"has other shapes|no model that transformers"):
        VlmTeacher.from_folder(folder)


@pytest.mark.parametrize(
    ("model_type", "sentence"),
    [
        ("llava_llama", "name it llava3d:"),
        ("gpt2", "no model that transformers takes photos and words for"),
        ("nobody_knows", "no model that transformers takes photos and words for"),
    ],
)
def test_another_kind_of_model_is_refused(tmp_path: Path, model_type: str, sentence: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(BadInputError, match=sentence):
        VlmTeacher.from_folder(tmp_path)


def test_a_checkpoint_without_its_processor_is_refused(tmp_path: Path) -> None:
    folder = save_qwen2_5(tmp_path / "qwen")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(BadInputError, match="no usable tokenizer and image processor"):
        VlmTeacher.from_folder(folder)


def test_no_folder_and_no_hub_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no folder and no hub id"):
        VlmTeacher.from_folder(tmp_path / "nowhere")
    with pytest.raises(BadInputError, match=r"config\.json not found"):
        VlmTeacher.from_folder(tmp_path)
