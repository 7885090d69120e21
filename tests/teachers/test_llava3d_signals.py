"""What a LLaVA-3D tells beside its answer, against one plain eager pass over each whole row."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tiny_llava3d import CONFIG, lively_teacher

from stillroom.engine.mask import Kind, attention_mask, for_attention
from stillroom.records import SIGNALS, FeatureTeacher, Question, Scene
from stillroom.teachers import llava3d_signals
from stillroom.teachers.llava3d import LLaVA3DSession, LLaVA3DTeacher
from stillroom.teachers.options import TeacherOptions
from stillroom.teachers.patches import attention_to_patches
from stillroom.testing import tiny_questions, tiny_scene

#: Three layers in two overlapping groups.
CONFIG = replace(CONFIG, num_hidden_layers=3)
OPTIONS = TeacherOptions(topk=6, attention_layers=("0-1", "1-2"))


@dataclass(frozen=True)
class Whole:
    """One plain eager pass over scene, question and answer."""

    hidden: torch.Tensor  # [l d], after the final norm
    attentions: torch.Tensor  # [layers heads l l]
    last_layer: torch.Tensor  # [l d], before the final norm
    start: int  # of the answer


def whole_pass(session: LLaVA3DSession, question: Question, answer: list[int]) -> Whole:
    teacher = session.teacher
    model = teacher.model
    ids = teacher.template.question_ids(teacher.tokenizer, question)
    words = model.get_input_embeddings()(torch.tensor([[*ids, *answer]]))
    embeds = torch.cat([session.prefix.embeds, words], dim=1)
    n = session.prefix.length
    kinds = [Kind.V] * n + [Kind.Q] * len(ids) + [Kind.A] * len(answer)
    kind = torch.tensor([[int(one) for one in kinds]])
    position = torch.arange(kind.shape[1])[None]
    visibility = model.settings.visibility
    mask = attention_mask(kind, (kind != Kind.V).long(), position, visibility=visibility)
    seen: list[torch.Tensor] = []
    hook = model.model.layers[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    model.model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model.model(
            inputs_embeds=embeds,
            attention_mask=for_attention(model, mask, embeds.dtype),
            position_ids=position,
            use_cache=False,
            output_attentions=True,
            output_hidden_states=True,
        )
    model.model.set_attn_implementation("sdpa")
    hook.remove()
    return Whole(
        hidden=out.last_hidden_state[0],
        attentions=torch.stack(out.attentions)[:, 0],
        last_layer=seen[0][0] if isinstance(seen[0], torch.Tensor) else seen[0][0][0],
        start=n + len(ids),
    )


@pytest.fixture(
    params=[("causal", "mini", 2560), ("prefix", "mini", 2560), ("causal", "llava_v1", 7)],
    ids=["causal", "prefix", "capped, with words around"],
)
def teacher(request: pytest.FixtureRequest) -> LLaVA3DTeacher:
    visibility, prompt, cap = request.param
    config = replace(CONFIG, visibility=visibility, prompt=prompt, max_visual_tokens=cap)
    return lively_teacher(config, OPTIONS)


def free(scene: Scene, count: int = 4) -> list[Question]:
    """Questions without options: any text may be said."""
    return [replace(q, options=()) for q in tiny_questions(scene, count=count)]


def test_every_signal_agrees_with_one_plain_eager_pass(teacher: LLaVA3DTeacher) -> None:
    scene = tiny_scene(1)
    questions = free(scene)
    labels = teacher.label(scene, questions, SIGNALS)
    session = teacher.open(scene)
    said = {tuple(label.answer_ids.tolist()) for label in labels}
    assert len(said) > 1, "the tiny teacher says the same to everything"
    for question, label in zip(questions, labels, strict=True):
        answer = label.answer_ids.tolist()
        own = whole_pass(session, question, answer)
        count, start = len(answer), own.start
        predicting = own.hidden[start - 1 : start - 1 + count]
        np.testing.assert_allclose(label.last_hidden, predicting.numpy(), atol=4e-3)
        logits = teacher.model.lm_head(predicting).detach()
        assert logits.argmax(dim=-1).tolist() == answer
        expected = logits.log_softmax(dim=-1)[torch.arange(count), answer].sum()
        assert label.logprob == pytest.approx(float(expected), abs=1e-3)
        assert label.logprob < 0
        mean = own.attentions[:, :, start : start + count, session.visual].mean(dim=1)
        groups = torch.stack([mean[0:2].mean(dim=0), mean[1:3].mean(dim=0)])
        np.testing.assert_allclose(label.attention, groups.numpy(), atol=1e-3)
        np.testing.assert_allclose(
            label.attention_mass, groups.sum(dim=-1).numpy(), atol=1e-5, rtol=1e-4
        )
        assert groups.std() > 1e-3, "attention is even, so that nothing is compared"


def test_the_reference_is_the_true_answer_led_through_the_model(teacher: LLaVA3DTeacher) -> None:
    scene = tiny_scene(2)
    questions = free(scene)
    labels = teacher.label(scene, questions, ["answers", "reference_logits"])
    session = teacher.open(scene)
    for question, label in zip(questions, labels, strict=True):
        truth = teacher.tokenizer.encode_answer(question.answer)[: CONFIG.max_new_tokens]
        assert label.reference_ids.tolist() == truth
        whole = whole_pass(session, question, truth)
        states = whole.hidden[whole.start - 1 : whole.start - 1 + len(truth)]
        logits = teacher.model.lm_head(states).detach()
        best = logits.topk(6)
        np.testing.assert_array_equal(label.reference.ids, best.indices.numpy())
        np.testing.assert_allclose(label.reference.logits, best.values.numpy(), atol=1e-3)
        np.testing.assert_allclose(
            label.reference.logsumexp, logits.logsumexp(dim=-1).numpy(), atol=1e-3
        )
        assert label.last_hidden is None
        assert label.attention is None


def test_scene_features_say_where_every_token_comes_from(teacher: LLaVA3DTeacher) -> None:
    assert isinstance(teacher, FeatureTeacher)
    scene = tiny_scene(1)
    features = teacher.scene_features(scene)
    session = teacher.open(scene)
    tokens = session.tokens
    assert features.views == (0, 1)
    assert len(features.pooled) == len(features.points) == len(tokens.tokens)
    assert features.pooled.dtype == np.float16
    # The projector of the kept features is what the language model reads.
    projected = teacher.model.model.mm_projector(torch.from_numpy(features.pooled).float())
    torch.testing.assert_close(projected.detach(), tokens.tokens, atol=5e-3, rtol=5e-3)
    capped = tokens.kept is not None
    assert (features.cap_seed is not None) == capped
    assert (features.patch_token < 0).any() == capped
    assert features.patch_token.shape == (2 * CONFIG.clip.grid**2,)
    # A patch's point lies within half a voxel of its token's centre.
    inputs = tokens.voxels.indices[tokens.voxels.of_patch].numpy() * CONFIG.voxel_size
    kept = features.patch_token >= 0
    np.testing.assert_allclose(features.points[features.patch_token[kept]], inputs[kept], atol=1e-5)
    assert set(features.patch_token[kept]) == set(range(len(features.points)))


def test_semantics_are_the_same_whatever_is_asked(teacher: LLaVA3DTeacher) -> None:
    scene = tiny_scene(3)
    semantics = teacher.scene_features(scene).semantics
    session = teacher.open(scene)
    for question in free(scene, count=2):
        whole = whole_pass(session, question, [])
        expected = whole.last_layer[session.visual].mean(dim=0)
        np.testing.assert_allclose(semantics, expected.numpy(), atol=1e-4, rtol=1e-3)
        normed = whole.hidden[session.visual].mean(dim=0)
        assert not np.allclose(semantics, normed.numpy(), atol=1e-2)


def test_reading_in_parts_changes_nothing(
    teacher: LLaVA3DTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = tiny_scene(1)
    questions = free(scene)
    together = teacher.label(scene, questions, SIGNALS)
    monkeypatch.setattr(llava3d_signals, "ANSWER_TOKENS", 1)
    apart = teacher.label(scene, questions, SIGNALS)
    for one, other in zip(together, apart, strict=True):
        np.testing.assert_allclose(one.last_hidden, other.last_hidden, atol=4e-3)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-3)
        np.testing.assert_allclose(one.reference.logits, other.reference.logits, atol=1e-3)


def test_signals_change_no_answer_and_leave_the_model_as_it_was() -> None:
    teacher = lively_teacher(CONFIG, OPTIONS)
    scene = tiny_scene(1)
    questions = tiny_questions(scene)
    plain = teacher.label(scene, questions, ["answers", "topk_logits"])
    full = teacher.label(scene, questions, SIGNALS)
    again = teacher.label(scene, questions, ["answers", "topk_logits"])
    assert teacher.model.config._attn_implementation == "sdpa"
    for one, other, third in zip(plain, full, again, strict=True):
        assert one.answer == other.answer == third.answer
        np.testing.assert_array_equal(one.topk_logits, other.topk_logits)
        np.testing.assert_array_equal(one.topk_logits, third.topk_logits)
        # An answer among options is scored over all words: what it kept from saying counts.
        assert one.logprob == other.logprob < 0


def test_without_truth_there_is_no_reference() -> None:
    teacher = lively_teacher(CONFIG, OPTIONS)
    scene = tiny_scene(0)
    first, second = free(scene, count=2)
    labels = teacher.label(scene, [replace(first, answer=""), second], ["reference_logits"])
    assert labels[0].reference is None
    assert labels[0].reference_ids is None
    assert labels[1].reference is not None


def test_labels_of_several_scenes_are_those_of_each() -> None:
    teacher = lively_teacher(CONFIG, OPTIONS)
    asked = [(scene, tiny_questions(scene)) for scene in map(tiny_scene, range(3))]
    together = teacher.label_scenes(iter(asked), SIGNALS)
    each = [label for one in asked for label in teacher.label(*one, SIGNALS)]
    assert [label.question_id for label in together] == [label.question_id for label in each]
    for one, other in zip(together, each, strict=True):
        np.testing.assert_array_equal(one.attention, other.attention)


@pytest.mark.parametrize("first", ["features", "labels"])
def test_a_scene_is_read_once_for_its_features_and_its_labels(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = lively_teacher(CONFIG, OPTIONS)
    scenes = [tiny_scene(0), tiny_scene(1)]
    expected = teacher.label_scenes([(s, tiny_questions(s)) for s in scenes], ["topk_logits"])
    read: list[str] = []
    opening = teacher.open

    def counted(one: Scene) -> LLaVA3DSession:
        read.append(one.scene_id)
        return opening(one)

    monkeypatch.setattr(teacher, "open", counted)
    features = []

    def asked() -> Iterator[tuple[Scene, list[Question]]]:
        for scene in scenes:
            if first == "features":
                features.append(teacher.scene_features(scene))
            yield scene, tiny_questions(scene)
            if first == "labels":
                features.append(teacher.scene_features(scene))

    labels = teacher.label_scenes(asked(), ["topk_logits"])
    for label, before in zip(labels, expected, strict=True):
        np.testing.assert_array_equal(label.topk_logits, before.topk_logits)
    assert read == [one.scene_id for one in scenes]
    assert [one.scene_id for one in features] == read


@pytest.mark.parametrize("prompt", ["mini", "llava_v1"])
def test_labels_without_a_shared_scene_are_the_same(prompt: str) -> None:
    config = replace(CONFIG, prompt=prompt)
    scene = tiny_scene(1)
    questions = free(scene)
    shared = lively_teacher(config, OPTIONS).label(scene, questions, SIGNALS)
    alone = lively_teacher(config, replace(OPTIONS, share_scene=False)).label(
        scene, questions, SIGNALS
    )
    for one, other in zip(shared, alone, strict=True):
        assert one.answer_ids.tolist() == other.answer_ids.tolist()
        np.testing.assert_allclose(one.topk_logits, other.topk_logits, atol=1e-3)
        np.testing.assert_allclose(one.attention, other.attention, atol=1e-3)


def test_four_groups_of_layers_are_the_default() -> None:
    groups = TeacherOptions().layer_groups(32)
    assert [(group.start, group.stop) for group in groups] == [(0, 8), (8, 16), (16, 24), (24, 32)]
    assert len(TeacherOptions().layer_groups(2)) == 2


# Back to patches. -------------------------------------------------------------------------------


def test_attention_goes_back_to_patches_in_equal_parts() -> None:
    attention = np.array([[0.6, 0.1, 0.3]], dtype=np.float16)
    patch_token = np.array([0, 0, -1, 2, 1, 0])
    patches = attention_to_patches(attention, patch_token)
    np.testing.assert_allclose(patches, [[0.2, 0.2, 0.0, 0.3, 0.1, 0.2]], atol=1e-3)
    assert patches.dtype == np.float32


def test_attention_carried_to_patches_keeps_its_sum() -> None:
    teacher = lively_teacher(replace(CONFIG, max_visual_tokens=9), OPTIONS)
    scene = tiny_scene(1)
    label = teacher.label(scene, free(scene, count=1), ["attention"])[0]
    patches = attention_to_patches(label.attention, teacher.scene_features(scene).patch_token)
    assert patches.shape[-1] == 2 * CONFIG.clip.grid**2
    np.testing.assert_allclose(patches.sum(axis=-1), label.attention_mass, atol=2e-3)
