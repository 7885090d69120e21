"""A LLaVA-3D teacher in use: folders, sessions, labels, bad input."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llava3d import CONFIG, tiny_model, tiny_teacher

from stillroom import registry
from stillroom.records import Answerer, BadInputError, Question, Scene, Teacher, asked
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_load import fill, load_llava3d, save_llava3d
from stillroom.teachers.llava3d_model import LLaVA3D
from stillroom.testing import tiny_questions, tiny_scene
from stillroom.text.tokenizer import load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved teacher in float32, three shards and more."""
    place = tmp_path / "teacher"
    save_llava3d(
        tiny_model(),
        place,
        tokenizer_file=load_tokenizer().file,
        dtype=torch.float32,
        shard_bytes=100_000,
    )
    return place


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# Folders. ---------------------------------------------------------------------------------------


def test_a_saved_teacher_comes_back_bit_for_bit(folder: Path) -> None:
    assert len(list(folder.glob("model-*-of-*.safetensors"))) >= 3
    saved, loaded = tiny_model(), load_llava3d(folder)
    assert loaded.settings == saved.settings
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_saved_teacher_answers_as_before(folder: Path) -> None:
    scene = tiny_scene(3)
    questions = tiny_questions(scene)
    said = LLaVA3DTeacher.from_folder(folder).label(scene, questions, ["topk_logits"])
    before = tiny_teacher().label(scene, questions, ["topk_logits"])
    for one, other in zip(said, before, strict=True):
        assert one.answer == other.answer
        # Loaded to answer, its weights are packed, which may round the last bit otherwise.
        np.testing.assert_allclose(one.topk_logits, other.topk_logits, rtol=1e-5)


def test_keys_are_the_release_s() -> None:
    keys = set(tiny_model().state_dict())
    clip = "model.vision_tower.vision_tower.vision_model"
    assert {
        "lm_head.weight",
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        f"{clip}.embeddings.class_embedding",
        f"{clip}.pre_layrnorm.weight",
        f"{clip}.encoder.layers.2.mlp.fc1.bias",
        "model.mm_projector.2.bias",
        "model.video_tower.video_tower.positional_embedding.position_embedding_head.3.weight",
        "model.video_tower.prompt_encoder.pos_emb3d.position_embedding_head.1.bias",
    } <= keys


def test_the_released_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = LLaVA3D(LLaVA3DConfig())
    assert sum(p.numel() for p in model.parameters()) == 7_080_764_416
    assert len(model.state_dict()) == 698


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    save_llava3d(tiny_model(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    # Small models compute in float32 whatever they are stored in.
    assert load_llava3d(tmp_path).dtype == torch.float32
    assert load_llava3d(tmp_path, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_clip_comes_from_its_own_page_where_a_checkpoint_lacks_it(tmp_path: Path) -> None:
    model = tiny_model(replace(CONFIG, mm_vision_tower=str(tmp_path / "clip")))
    model.model.vision_tower.vision_tower.vision_model.save_pretrained(tmp_path / "clip")
    state = model.state_dict()
    bare = {name: t for name, t in state.items() if "vision_tower" not in name}
    filled = LLaVA3D(model.settings)
    fill(filled, bare.items())
    for name, tensor in state.items():
        assert torch.equal(filled.state_dict()[name], tensor), name
    elsewhere = LLaVA3D(replace(CONFIG, mm_vision_tower=str(tmp_path / "nowhere")))
    with pytest.raises(BadInputError, match="has no CLIP weights"):
        fill(elsewhere, bare.items())


def test_saving_over_a_larger_save_leaves_nothing_of_it_to_be_read(folder: Path) -> None:
    other = tiny_model()
    torch.nn.init.constant_(other.lm_head.weight, 0.25)
    save_llava3d(other, folder, dtype=torch.float32)
    assert (load_llava3d(folder).lm_head.weight == 0.25).all()


def test_clip_keys_without_the_old_level_and_dead_buffers_are_accepted() -> None:
    state = tiny_model().state_dict()
    renamed = {name.replace(".vision_model.", "."): tensor for name, tensor in state.items()}
    renamed["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    renamed["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = torch.zeros(1)
    model = LLaVA3D(CONFIG)
    fill(model, renamed.items())
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])


def test_pickled_weights_are_read_without_running_them(folder: Path) -> None:
    state = tiny_model().state_dict()
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert torch.equal(load_llava3d(folder).lm_head.weight, state["lm_head.weight"])
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    with pytest.raises(BadInputError, match="not a readable weight file"):
        load_llava3d(folder)


def test_an_unexpected_key_is_named(folder: Path) -> None:
    file = sorted(folder.glob("model-*"))[0]
    save_file({**load_file(file), "model.surprise.weight": torch.zeros(1)}, file)
    with pytest.raises(BadInputError, match=r"has keys that LLaVA-3D lacks: model\.surprise"):
        load_llava3d(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    file = sorted(folder.glob("model-*"))[1]
    file.unlink()
    with pytest.raises(BadInputError, match=file.name):
        load_llava3d(folder)


def test_a_shard_that_is_cut_off_is_refused(folder: Path) -> None:
    file = sorted(folder.glob("model-*"))[0]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(BadInputError, match=r"not a readable safetensors file"):
        load_llava3d(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=40)
    with pytest.raises(BadInputError, match="has shape"):
        load_llava3d(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "gpt2"}, "describes a 'gpt2'"),
        ({"hidden_size": "wide"}, "hidden_size = 'wide'"),
        ({"mm_projector_type": "linear"}, "mm_projector_type = 'linear'"),
        ({"frame": "moon"}, "expected one of source, view0"),
        ({"mm_hidden_size": 7}, "mm_hidden_size 7"),
        ({"vision_config": None}, "without its sizes"),
        ({"voxel_size": 0.0}, "voxel_size = 0.0, expected more than 0"),
    ],
)
def test_a_config_that_cannot_work_is_refused(
    folder: Path, changes: dict[str, object], sentence: str
) -> None:
    edit_config(folder, **changes)
    with pytest.raises(BadInputError, match=sentence):
        load_llava3d(folder)


def test_an_empty_folder_and_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"config\.json not found"):
        load_llava3d(tmp_path)
    with pytest.raises(BadInputError, match="no folder and no hub id"):
        load_llava3d(tmp_path / "nowhere")


def test_the_released_config_is_read_without_our_fields() -> None:
    raw = LLaVA3DConfig().to_json(torch_dtype="bfloat16")
    for ours in ("vision_config", "voxel_size", "max_visual_tokens", "frame", "prompt", "clip"):
        raw.pop(ours, None)
    assert LLaVA3DConfig.from_json(raw) == LLaVA3DConfig()


# Sessions. --------------------------------------------------------------------------------------


def test_it_is_an_answerer_and_a_teacher() -> None:
    teacher = tiny_teacher()
    assert isinstance(teacher, Answerer)
    assert isinstance(teacher, Teacher)


@pytest.mark.parametrize("visibility", ["causal", "prefix"])
@pytest.mark.parametrize("prompt", ["mini", "llava_v1"])
def test_sharing_the_scene_changes_no_answer(visibility: str, prompt: str) -> None:
    teacher = tiny_teacher(replace(CONFIG, visibility=visibility, prompt=prompt))
    scene = tiny_scene(1)
    questions = tiny_questions(scene, count=4)
    together = teacher.open(scene).decode(questions, topk=8)
    for question, shared in zip(questions, together, strict=True):
        alone = teacher.open(scene).decode([question], topk=8)[0]
        assert alone.ids == shared.ids
        np.testing.assert_allclose(alone.logsumexp, shared.logsumexp, atol=1e-4)


@pytest.mark.parametrize("prompt", ["mini", "llava_v1"])
def test_sharing_the_scene_agrees_with_one_uncached_pass(prompt: str) -> None:
    teacher = tiny_teacher(replace(CONFIG, prompt=prompt))
    scene = tiny_scene(2)
    # Without options any text may be said.
    question = replace(tiny_questions(scene)[0], options=())
    session = teacher.open(scene)
    shared = session.decode([question], topk=4)[0]
    model, template = teacher.model, teacher.template
    with torch.no_grad():
        embeds = model.prefix_embeds(template.prefix_ids(teacher.tokenizer), session.tokens.tokens)
        ids = template.question_ids(teacher.tokenizer, question)
        for step, said in enumerate(shared.ids):
            words = model.get_input_embeddings()(torch.tensor([[*ids, *shared.ids[:step]]]))
            logits = model(inputs_embeds=torch.cat([embeds, words], dim=1)).logits[0, -1]
            assert int(logits.argmax()) == said
            np.testing.assert_allclose(
                logits.topk(4).values.numpy(), shared.topk_logits[step], atol=1e-4
            )


def test_labels_carry_the_logits_of_their_own_answer() -> None:
    teacher = tiny_teacher()
    scene = tiny_scene(0)
    # Without options any text may be said.
    questions = [replace(question, options=()) for question in tiny_questions(scene)]
    labels = teacher.label(scene, questions, ["answers", "topk_logits"])
    answers = teacher.open(scene).answer(questions)
    for label, answer, question in zip(labels, answers, questions, strict=True):
        assert (label.scene_id, label.question_id) == (scene.scene_id, question.question_id)
        assert label.answer == answer.text
        assert label.topk_ids.shape == (len(label.answer_ids), 32)
        np.testing.assert_array_equal(label.topk_ids[:, 0], label.answer_ids)
        assert (label.logsumexp > label.topk_logits[:, 0]).all()
    assert teacher.label(scene, questions, ["answers"])[0].topk_ids is None


def test_a_teacher_of_view0_does_not_see_how_the_room_lies_in_its_source() -> None:
    scene = tiny_scene(1)
    turn = np.eye(4)
    turn[:2, :2] = [[0.0, -1.0], [1.0, 0.0]]
    turn[:3, 3] = [3.0, -2.0, 0.7]
    moved = replace(
        scene,
        floor_z=scene.floor_z + 0.7,
        views=tuple(replace(view, c2w=turn @ view.c2w) for view in scene.views),
    )
    questions = tiny_questions(scene)
    tokens = [tiny_teacher().open(one).tokens.tokens for one in (scene, moved)]
    torch.testing.assert_close(*tokens, atol=1e-4, rtol=1e-4)
    source = tiny_teacher(replace(CONFIG, frame="source"))
    apart = [source.open(one).tokens.tokens for one in (scene, moved)]
    assert apart[0].shape != apart[1].shape or not torch.allclose(*apart, atol=1e-2)
    assert len(source.open(scene).answer(questions)) == len(questions)


def test_the_cap_keeps_the_same_voxels_in_every_run() -> None:
    teacher = tiny_teacher(replace(CONFIG, max_visual_tokens=5))
    first, again = (teacher.open(tiny_scene(1)) for _ in range(2))
    assert first.tokens.kept.tolist() == again.tokens.kept.tolist()
    assert len(first.tokens.tokens) == 5
    torch.testing.assert_close(
        first.tokens.tokens,
        teacher.model.model.mm_projector(first.tokens.pooled[first.tokens.kept]).detach(),
    )


def test_visual_tokens_pass_gradients_to_every_part_that_is_used() -> None:
    model = tiny_model()
    inputs = [torch.rand(1, 2, 3, 28, 28), torch.rand(1, 2, 28, 28) + 1]
    eyes = torch.eye(4).expand(1, 2, 4, 4)
    torch.cat(model.visual_tokens(*inputs, eyes, eyes)).square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    clip = "model.vision_tower.vision_tower.vision_model"
    assert f"{clip}.embeddings.patch_embedding.weight" in reached
    assert f"{clip}.encoder.layers.1.mlp.fc2.weight" in reached
    assert not any(name.startswith(f"{clip}.encoder.layers.2") for name in reached)
    assert "model.mm_projector.0.weight" in reached
    assert any("positional_embedding" in name for name in reached)


def without(scene: Scene, **nothing: None) -> Scene:
    return replace(scene, views=tuple(replace(view, **nothing) for view in scene.views))


@pytest.mark.parametrize(
    ("nothing", "sentence"),
    [
        ({"depth": None}, "none of its views has depth"),
        ({"c2w": None}, "none of its views has a pose"),
        ({"intrinsics": None}, "none of its views has intrinsics"),
    ],
)
def test_a_scene_without_what_it_needs_is_refused(nothing: dict[str, None], sentence: str) -> None:
    with pytest.raises(BadInputError, match=sentence):
        tiny_teacher().open(without(tiny_scene(0), **nothing))


def test_a_question_beyond_its_positions_is_refused() -> None:
    scene = tiny_scene(0)
    long = asked(scene.scene_id, "chair " * 300)
    with pytest.raises(BadInputError, match="shorten it"):
        tiny_teacher(replace(CONFIG, max_position_embeddings=128)).open(scene).answer([long])


def test_stand_ins_and_what_they_stand_for_must_match_in_number() -> None:
    model = tiny_model()
    with pytest.raises(BadInputError, match="hold 1 stand-ins -200, but 0 were given"):
        model.assemble(torch.tensor([[1, -200, 5]]), [])


def test_a_batch_may_mix_scenes_and_images_and_pad_on_the_left() -> None:
    model = tiny_model()
    blocks = [torch.rand(3, 32), torch.rand(5, 32)]
    ids = torch.tensor([[1, -200, 7], [1, -200, 7]])
    right = model.assemble(ids, blocks)
    left = model.assemble(ids, blocks, padding_side="left")
    assert right.mask.sum(dim=1).tolist() == left.mask.sum(dim=1).tolist() == [5, 7]
    torch.testing.assert_close(right.embeds[right.mask], left.embeds[left.mask])
    assert not left.mask[0, :2].any()
    assert not right.mask[0, -2:].any()


def question_of(text: str) -> Question:
    return asked("scene", text)


def test_a_placeholder_in_a_person_s_question_is_only_text() -> None:
    teacher = tiny_teacher()
    ids = teacher.template.question_ids(
        teacher.tokenizer, question_of("Where is <image> and <boxes> <eos>?")
    )
    assert min(ids) >= 0
    assert teacher.tokenizer.eos_id not in ids


def test_a_miniature_answers_with_one_of_the_options_and_labels_so() -> None:
    teacher = tiny_teacher()
    scene = tiny_scene(0)
    questions = tiny_questions(scene)
    labels = teacher.label(scene, questions, ["answers", "topk_logits"])
    for label, question in zip(labels, questions, strict=True):
        assert label.answer in question.options
        # Soft labels are those of the free model: what it would rather have said is kept.
        assert (np.diff(label.topk_logits, axis=1) <= 0).all()


def test_the_shipped_teacher_says_in_a_session_what_its_own_forward_says() -> None:
    teacher = LLaVA3DTeacher.from_folder(registry.locate("teacher_mini"))
    scene = tiny_scene(1, views=6, size=112)
    questions = tiny_questions(scene, count=8)
    session = teacher.open(scene)
    assert session.answer(questions) == session.plain_answer(questions)
    assert len({answer.text for answer in session.answer(questions)}) > 1
    assert session.nbytes > session.prefix.nbytes
