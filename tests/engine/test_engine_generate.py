"""Prefix, packed rows and greedy decoding agree with the plain computation, for three families."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from stillroom.engine import generate, graphs
from stillroom.engine.choosing import Chooser
from stillroom.engine.decoder import LeanDecoder, decoder_of, forget_weights
from stillroom.engine.generate import (
    PIECE_TOKENS,
    _Ends,
    _pieces,
    _Row,
    greedy,
    greedy_scenes,
)
from stillroom.engine.mask import Kind, Visibility, attention_mask
from stillroom.engine.packing import Packed, pack_questions, stack_rows
from stillroom.engine.prefix import decoder_states, prefill

ALL: tuple[Visibility, ...] = ("prefix", "full_prefix", "causal")
EOS = 2
WIDTH = 32


def language_model(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    shared = {
        "vocab_size": 40,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        # Large, so that a tiny random model says different things to different questions.
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": EOS,
    }
    if family == "neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(use_parallel_residual=False, **shared)).eval()
    if family == "llama":
        return LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, **shared)).eval()
    return Qwen2ForCausalLM(Qwen2Config(num_key_value_heads=2, **shared)).eval()


@pytest.fixture(params=["neox", "llama", "qwen2"])
def lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    return language_model(request.param)


def vision(n: int = 6) -> Tensor:
    return torch.randn(1, n, WIDTH, generator=torch.Generator().manual_seed(1))


def prompts_of(lm: PreTrainedModel, questions: list[list[int]]) -> list[Tensor]:
    return [lm.get_input_embeddings()(torch.tensor(q)).detach() for q in questions]


QUESTIONS = [[7, 8, 9, 1], [5, 19], [11, 12, 13, 14, 15, 1], [3, 3, 31]]


def plain_states(lm: PreTrainedModel, row: Packed, v: Tensor, visibility: Visibility) -> Tensor:
    """Every position of single rows or a batch of them, no cache, ``[b l d]``."""
    if row.kind.ndim == 1:
        row = stack_rows([row])
    embeds = lm.get_input_embeddings()(row.ids).detach()
    embeds[:, : v.shape[1]] = v
    mask = attention_mask(row.kind, row.segment, row.position, visibility=visibility)
    return decoder_states(lm, embeds, mask=mask, position=row.position)


def plain_greedy(
    lm: PreTrainedModel, v: Tensor, question: list[int], visibility: Visibility, steps: int
) -> list[int]:
    """The answer by reading the whole row again for every token."""
    answer: list[int] = []
    for _ in range(steps):
        row = pack_questions([(question, answer)], prefix_length=v.shape[1])
        with torch.no_grad():
            states = plain_states(lm, row, v, visibility)
            answer.append(int(lm.get_output_embeddings()(states[0, -1]).argmax()))
    return answer


@pytest.mark.parametrize("visibility", ALL)
def test_with_and_without_cache_one_by_one_and_together_say_the_same(
    lm: PreTrainedModel, visibility: Visibility
) -> None:
    v = vision()
    prefix = prefill(lm, v, visibility=visibility)
    prompts = prompts_of(lm, QUESTIONS)
    settings = {"visibility": visibility, "max_new_tokens": 7, "eos_id": -1}
    together = [d.ids for d in greedy(lm, prefix, prompts, **settings)]
    alone = [greedy(lm, prefix, [p], **settings)[0].ids for p in prompts]
    by_twos = [d.ids for d in greedy(lm, prefix, prompts, chunk=2, **settings)]
    assert together == alone == by_twos
    assert together == [plain_greedy(lm, v, q, visibility, 7) for q in QUESTIONS]
    assert len({tuple(ids) for ids in together}) > 1  # else the test could not fail


@pytest.mark.parametrize("visibility", ["prefix", "causal"])
def test_more_questions_than_are_read_at_once_say_the_same(
    lm: PreTrainedModel, visibility: Visibility
) -> None:
    rng = np.random.default_rng(0)
    questions = [rng.integers(3, 40, length).tolist() for length in (130, 130, 3, 300, 40, 40, 7)]
    prompts = prompts_of(lm, questions)
    assert [len(part) for part in _pieces(prompts, PIECE_TOKENS)] == [1, 2, 1, 3]
    v = vision()
    prefix = prefill(lm, v, visibility=visibility)
    said = greedy(lm, prefix, prompts, visibility=visibility, max_new_tokens=4, eos_id=-1)
    expected = [plain_greedy(lm, v, question, visibility, 4) for question in questions]
    assert [answer.ids for answer in said] == expected


def test_an_ended_question_stops_and_the_others_go_on(lm: PreTrainedModel) -> None:
    prefix = prefill(lm, vision(), visibility="prefix")
    prompts = prompts_of(lm, QUESTIONS)
    free = greedy(lm, prefix, prompts, visibility="prefix", max_new_tokens=6, eos_id=-1)
    # What the first question says second ends answers from here on.
    eos = free[0].ids[1]
    ended = greedy(lm, prefix, prompts, visibility="prefix", max_new_tokens=6, eos_id=eos)
    for full, cut in zip(free, ended, strict=True):
        expected = full.ids[: full.ids.index(eos) + 1] if eos in full.ids else full.ids
        assert cut.ids == expected


def test_what_has_ended_is_forgotten_once_it_is_most_of_a_row() -> None:
    lm = language_model("neox")
    prompts = prompts_of(lm, [QUESTIONS[0], *QUESTIONS[:1] * 6, QUESTIONS[2]])
    ends = _Ends(most=4, eos_id=-1, topk=0, scored=False)
    n = vision().shape[1]
    with torch.no_grad():
        row = _Row(lm, prefill(lm, vision(), visibility="prefix"), prompts, [()] * 8, ends)
        whole = row.cache.length
        row.keep(torch.arange(7))
        assert row.cache.length == whole  # little would be saved
        row.keep(torch.tensor([3]))
        assert row.cache.length == n + len(prompts[3])
        assert row.mask is None
        assert row.next.tolist() == [n + len(prompts[3])]
        # What is left goes on as it would have alone.
        prefix = prefill(lm, vision(), visibility="prefix")
        alone = _Row(lm, prefix, prompts[3:4], [()], ends)
        token = torch.tensor([9])
        torch.testing.assert_close(row.extend(token), alone.extend(token))


@pytest.mark.parametrize("visibility", ALL)
def test_the_models_own_forward_says_the_same(lm: PreTrainedModel, visibility: Visibility) -> None:
    prompts = prompts_of(lm, QUESTIONS)
    said = []
    for plain in (True, False):
        prefix = prefill(lm, vision(), visibility=visibility, plain=plain)
        settings = {"visibility": visibility, "max_new_tokens": 7, "eos_id": -1, "topk": 5}
        said.append(greedy(lm, prefix, prompts, plain=plain, **settings))
    for one, other in zip(*said, strict=True):
        assert one.ids == other.ids
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        np.testing.assert_allclose(one.topk_logits, other.topk_logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(one.topk_ids, other.topk_ids)


@pytest.mark.parametrize("visibility", ALL)
@pytest.mark.parametrize("scenes", [1, 2])
def test_steps_that_know_no_length_on_the_host_say_the_same(
    lm: PreTrainedModel, visibility: Visibility, scenes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is recorded as a CUDA graph runs here unrecorded, with all its tensors in their places.
    views = [vision(), 2 * vision()[:, :3]][:scenes]
    choices = [(), [[20, 21, EOS], [20, 22, EOS], [25, EOS]], (), [[30, 31, EOS], [30, EOS]]]
    for allowed, eos in (([()] * len(QUESTIONS), -1), (choices, EOS)):
        said = []
        for recorded in (False, True):
            monkeypatch.setattr(generate, "_recordable", lambda row, ends, on=recorded: on)
            asked = [
                (prefill(lm, v, visibility=visibility), prompts_of(lm, QUESTIONS), allowed)
                for v in views
            ]
            together = greedy_scenes(
                lm,
                asked,
                visibility=visibility,
                max_new_tokens=11,
                eos_id=eos,
                scored=False,
            )
            said.append([[answer.ids for answer in scene] for scene in together])
        assert said[0] == said[1]
        assert len({tuple(ids) for scene in said[0] for ids in scene}) > 2


def test_a_recorded_step_reads_no_table_that_a_longer_row_replaces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = language_model("neox")
    settings = {"visibility": "prefix", "max_new_tokens": 5, "eos_id": -1}
    prompts = prompts_of(lm, QUESTIONS)
    plain = prefill(lm, vision(), visibility="prefix", plain=True)
    expected = greedy(lm, plain, prompts, plain=True, **settings)
    monkeypatch.setattr(generate, "_recordable", lambda row, ends: True)
    advance = graphs.StepGraph.advance

    def alone(self: graphs.StepGraph, steps: int) -> None:
        # A graph replays addresses: what lies elsewhere by now is not what it reads.
        with mock.patch.object(LeanDecoder, "_table", side_effect=AssertionError("shared")):
            advance(self, steps)

    monkeypatch.setattr(graphs.StepGraph, "advance", alone)
    prefix = prefill(lm, vision(), visibility="prefix")
    said = greedy(lm, prefix, prompts, scored=False, **settings)
    assert [one.ids for one in said] == [one.ids for one in expected]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_steps_on_a_gpu_say_what_the_models_own_forward_says(lm: PreTrainedModel) -> None:
    lm.cuda()
    settings = {"visibility": "prefix", "max_new_tokens": 9, "eos_id": -1}
    prompts = [prompt.cuda() for prompt in prompts_of(lm, QUESTIONS)]
    # The third scene is longer than the table of angles, which is replaced; then the first again.
    for n in (6, 9, 2_500, 6):
        seen = vision(n).cuda()
        said = [
            greedy(
                lm,
                prefill(lm, seen, visibility="prefix", plain=plain),
                prompts,
                plain=plain,
                scored=False,
                **settings,
            )
            for plain in (True, False)
        ]
        assert [one.ids for one in said[0]] == [one.ids for one in said[1]]
    decoder = decoder_of(lm)
    assert isinstance(decoder, LeanDecoder)
    assert any(step.graph is not None for step in decoder.graphs.values())


def test_recorded_steps_of_the_same_shape_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = language_model("neox")
    monkeypatch.setattr(generate, "_recordable", lambda row, ends: True)
    settings = {"visibility": "prefix", "max_new_tokens": 5, "eos_id": EOS, "scored": False}
    with mock.patch.object(graphs, "StepGraph", wraps=graphs.StepGraph) as made:
        for questions in (QUESTIONS[:1], QUESTIONS[1:2], QUESTIONS[:1]):
            prefix = prefill(lm, vision(), visibility="prefix")
            greedy(lm, prefix, prompts_of(lm, questions), **settings)
    assert made.call_count == 1


@torch.no_grad()
def test_what_watches_a_layer_is_heard_and_idle_hooks_of_transformers_are_not(
    lm: PreTrainedModel,
) -> None:
    lm.base_model(inputs_embeds=vision(), output_hidden_states=True)
    assert lm.base_model.layers[0]._forward_hooks
    assert isinstance(decoder_of(lm), LeanDecoder)
    handle = lm.base_model.layers[0].register_forward_hook(lambda *_: None)
    assert not isinstance(decoder_of(lm), LeanDecoder)
    handle.remove()
    assert isinstance(decoder_of(lm), LeanDecoder)


def test_nothing_is_read_for_an_answer_that_one_choice_is_left_to(lm: PreTrainedModel) -> None:
    prompts = prompts_of(lm, QUESTIONS[:1])
    long = list(range(3, 20))
    settings = {"visibility": "prefix", "max_new_tokens": 30, "eos_id": EOS}
    for choices, reads in (([[long[0], *long, EOS], [25, EOS]], 1), ([[25, EOS]] * 2, 1)):
        prefix = prefill(lm, vision(), visibility="prefix")
        slow = greedy(lm, prefix, prompts, choices=[choices], **settings)
        with mock.patch.object(
            LeanDecoder, "read", autospec=True, side_effect=LeanDecoder.read
        ) as read:
            fast = greedy(lm, prefix, prompts, choices=[choices], scored=False, **settings)
        assert fast[0].ids == slow[0].ids
        assert read.call_count == reads
    cut = greedy(
        lm,
        prefix,
        prompts,
        choices=[[[25, 26, 27, EOS]]],
        scored=False,
        **settings | {"max_new_tokens": 2},
    )
    assert cut[0].ids == [25, 26]


def test_of_equally_likely_choices_the_one_with_the_least_id_is_said() -> None:
    chooser = Chooser([[[9, 2], [4, 2], [7, 2]], (), [[5, 6], [5, 8]]], "cpu")
    assert chooser.pick(torch.zeros(3, 12), 0).tolist() == [4, 0, 5]
    logits = torch.zeros(3, 12)
    logits[:, 6] = -1.0
    assert chooser.pick(logits, torch.tensor([1])).tolist() == [2, 0, 8]


def test_rows_of_a_prefix_share_its_memory_one_at_a_time() -> None:
    lm = language_model("neox")
    prefix = prefill(lm, vision(), visibility="prefix")
    first = prefix.row(10)
    second = prefix.row(10)
    here = prefix.layers[0][0].data_ptr()
    assert first.layers()[0][0].data_ptr() == here
    assert second.layers()[0][0].data_ptr() != here
    del first
    assert prefix.row(20).layers()[0][0].data_ptr() == here
    # What many questions need besides is not the scene's to keep.
    held = prefix.nbytes
    assert prefix.row(1_000).room >= 1_006
    assert prefix.nbytes == held


def test_two_decodings_of_one_prefix_at_once_do_not_touch_each_other() -> None:
    lm = language_model("neox")
    prefix = prefill(lm, vision(), visibility="prefix")
    prompts = prompts_of(lm, QUESTIONS)
    settings = {"visibility": "prefix", "max_new_tokens": 5, "eos_id": -1}
    alone = [answer.ids for answer in greedy(lm, prefix, prompts, **settings)]
    # Chunks of one: four rows of the same prefix are decoded side by side.
    asked = [(prefix, prompts, ())]
    together = greedy_scenes(lm, asked, chunk=1, joined_tokens=10_000, **settings)[0]
    assert [answer.ids for answer in together] == alone


def test_weights_that_change_are_read_anew(lm: PreTrainedModel) -> None:
    prompts = prompts_of(lm, QUESTIONS)
    settings = {"visibility": "prefix", "max_new_tokens": 6, "eos_id": -1}

    def said(plain: bool) -> list[list[int]]:
        prefix = prefill(lm, vision(), visibility="prefix", plain=plain)
        return [answer.ids for answer in greedy(lm, prefix, prompts, plain=plain, **settings)]

    before = said(plain=False)
    with torch.no_grad():
        for parameter in lm.base_model.layers.parameters():
            parameter.mul_(-1.3)
    assert said(plain=False) == said(plain=True) != before
    # Exchanged behind the parameters' backs, as a move to another device does it.
    for parameter in lm.base_model.layers.parameters():
        parameter.data = parameter.data * -0.8
    again = said(plain=True)
    assert said(plain=False) == again != before
    # Written through .data: nobody can see that, it has to be said.
    for parameter in lm.base_model.layers.parameters():
        parameter.data.mul_(-1.3)
    forget_weights(lm)
    assert said(plain=False) == said(plain=True) != again


@pytest.mark.parametrize("visibility", ["prefix", "causal"])
def test_a_prefix_is_not_changed_by_its_questions(visibility: Visibility) -> None:
    lm = language_model("neox")
    prefix = prefill(lm, vision(), visibility=visibility)
    before = [(k.clone(), v.clone()) for k, v in prefix.layers]
    for question in QUESTIONS[:2]:
        greedy(
            lm,
            prefix,
            prompts_of(lm, [question]),
            visibility=visibility,
            max_new_tokens=3,
            eos_id=EOS,
        )
    for (k0, v0), (k1, v1) in zip(before, prefix.layers, strict=True):
        assert torch.equal(k0, k1)
        assert torch.equal(v0, v1)


def keys_and_values(
    lm: PreTrainedModel, row: Packed, v: Tensor, visibility: Visibility
) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of V when a question is read along with it."""
    from transformers import DynamicCache

    cache = DynamicCache()
    embeds = lm.get_input_embeddings()(row.ids[None]).detach()
    embeds[:, : v.shape[1]] = v
    mask = attention_mask(
        row.kind[None], row.segment[None], row.position[None], visibility=visibility
    )
    with torch.no_grad():
        decoder_states(lm, embeds, mask=mask, position=row.position[None], cache=cache)
    n = v.shape[1]
    return [(layer.keys[:, :, :n], layer.values[:, :, :n]) for layer in cache.layers]


@pytest.mark.parametrize("visibility", ["prefix", "causal"])
def test_keys_and_values_of_vision_are_bit_equal_under_two_questions(
    lm: PreTrainedModel, visibility: Visibility
) -> None:
    v = vision()
    first, second = (
        keys_and_values(
            lm, pack_questions([(q, [4, 2])], prefix_length=6, slots=2, pad_to=16), v, visibility
        )
        for q in ([7, 8, 9], [20, 21])
    )
    for (k0, v0), (k1, v1) in zip(first, second, strict=True):
        assert torch.equal(k0, k1)
        assert torch.equal(v0, v1)


def test_vision_knows_the_question_under_full_prefix() -> None:
    lm, v = language_model("neox"), vision()
    first, second = (
        keys_and_values(lm, pack_questions([(q, [2])], prefix_length=6), v, "full_prefix")
        for q in ([7, 8, 9], [20, 21, 9])
    )
    assert not torch.equal(first[-1][0], second[-1][0])


@pytest.mark.parametrize(
    ("visibility", "slot_position", "knows"),
    [
        ("prefix", "before", True),
        ("full_prefix", "before", True),
        ("causal", "before", False),
        ("causal", "after", True),
    ],
)
def test_thinking_slots_know_the_question_unless_causal_and_before_it(
    lm: PreTrainedModel, visibility: Visibility, slot_position: str, knows: bool
) -> None:
    v = vision()
    states = []
    for question in ([7, 8, 9], [20, 21, 9]):
        row = pack_questions(
            [(question, [2])],
            prefix_length=6,
            slots=2,
            slot_position=slot_position,  # type: ignore[arg-type]
        )
        with torch.no_grad():
            states.append(plain_states(lm, row, v, visibility)[0, row.kind == Kind.T])
    assert torch.equal(states[0], states[1]) is not knows


@pytest.mark.parametrize("visibility", ["prefix", "causal"])
def test_a_packed_question_is_computed_as_if_alone(
    lm: PreTrainedModel, visibility: Visibility
) -> None:
    v, pairs = vision(), [(q, [9, 10, 2]) for q in QUESTIONS]
    packed = pack_questions(pairs, prefix_length=6, slots=2, pad_to=64)
    with torch.no_grad():
        together = plain_states(lm, packed, v, visibility)[0]
        for index, pair in enumerate(pairs, start=1):
            row = pack_questions([pair], prefix_length=6, slots=2)
            alone = plain_states(lm, row, v, visibility)[0]
            torch.testing.assert_close(
                together[packed.segment == index], alone[6:], rtol=1e-4, atol=1e-5
            )


def test_a_row_with_fewer_vision_tokens_is_not_touched_by_its_padding(
    lm: PreTrainedModel,
) -> None:
    v = vision()
    rows = [
        pack_questions([(QUESTIONS[0], [9, 2])], prefix_length=6),
        pack_questions([(QUESTIONS[1], [9, 2])], prefix_length=4),
    ]
    short = torch.cat([v[:, :4], torch.full((1, 2, WIDTH), 50.0)], dim=1)
    with torch.no_grad():
        batch = plain_states(lm, stack_rows(rows), torch.cat([v, short]), "prefix")
        alone = plain_states(lm, rows[1], v[:, :4], "prefix")
    torch.testing.assert_close(batch[1, 6:10], alone[0, 4:], rtol=1e-4, atol=1e-5)


def test_top_logits_are_those_of_a_plain_reading(lm: PreTrainedModel) -> None:
    v, question = vision(), QUESTIONS[0]
    prefix = prefill(lm, v, visibility="prefix")
    (said,) = greedy(
        lm,
        prefix,
        prompts_of(lm, [question]),
        visibility="prefix",
        max_new_tokens=5,
        eos_id=EOS,
        topk=4,
    )
    assert said.topk_ids is not None
    assert said.topk_logits is not None
    assert said.logsumexp is not None
    row = pack_questions([(question, said.ids)], prefix_length=6)
    with torch.no_grad():
        states = plain_states(lm, row, v, "prefix")[0][row.labels != -100]
        logits = lm.get_output_embeddings()(states)
    best = logits.topk(4)
    assert said.topk_ids.shape == (len(said.ids), 4)
    assert said.topk_ids[:, 0].tolist() == said.ids
    torch.testing.assert_close(
        torch.from_numpy(said.topk_logits), best.values, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        torch.from_numpy(said.logsumexp), logits.logsumexp(-1), rtol=1e-4, atol=1e-4
    )


def test_eager_attention_gives_what_sdpa_gives() -> None:
    v, answers = vision(), []
    for implementation in ("sdpa", "eager"):
        lm = language_model("neox")
        lm.set_attn_implementation(implementation)
        prefix = prefill(lm, v, visibility="prefix")
        said = greedy(
            lm,
            prefix,
            prompts_of(lm, QUESTIONS),
            visibility="prefix",
            max_new_tokens=5,
            eos_id=EOS,
        )
        answers.append([d.ids for d in said])
    assert answers[0] == answers[1]


def test_a_prefix_made_under_another_visibility_is_refused() -> None:
    lm = language_model("neox")
    prefix = prefill(lm, vision(), visibility="causal")
    with pytest.raises(ValueError, match="made for causal, not for prefix"):
        greedy(
            lm,
            prefix,
            prompts_of(lm, QUESTIONS),
            visibility="prefix",
            max_new_tokens=1,
            eos_id=EOS,
        )


def test_no_questions_no_answers() -> None:
    lm = language_model("neox")
    prefix = prefill(lm, vision(), visibility="prefix")
    assert greedy(lm, prefix, [], visibility="prefix", max_new_tokens=4, eos_id=EOS) == []


@pytest.mark.parametrize("visibility", ALL)
@pytest.mark.parametrize("joined_tokens", [0, 40, 10_000])
def test_several_scenes_together_say_what_each_says_alone(
    lm: PreTrainedModel, visibility: Visibility, joined_tokens: int
) -> None:
    views = [vision(), 2 * vision()[:, :3], vision().flip(1)]
    asked = [
        (prefill(lm, v, visibility=visibility), prompts_of(lm, questions), ())
        for v, questions in zip(views, (QUESTIONS, QUESTIONS[:1], QUESTIONS[1:]), strict=True)
    ]
    settings = {"visibility": visibility, "max_new_tokens": 9, "topk": 3}
    free = [greedy(lm, *one[:2], eos_id=-1, **settings) for one in asked]
    assert free[0][0].ids != free[2][0].ids
    # Some end soon, so that what they had cached is dropped while others go on.
    eos = free[0][0].ids[1]
    alone = [greedy(lm, *one[:2], eos_id=eos, **settings) for one in asked]
    assert len({len(answer.ids) for answers in alone for answer in answers}) > 1
    together = greedy_scenes(lm, iter(asked), eos_id=eos, joined_tokens=joined_tokens, **settings)
    for ours, theirs in zip(together, alone, strict=True):
        assert [answer.ids for answer in ours] == [answer.ids for answer in theirs]
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.topk_logits, other.topk_logits, rtol=1e-4, atol=1e-4)


def test_an_answer_is_one_of_its_choices_and_the_likeliest_by_token(lm: PreTrainedModel) -> None:
    prefix = prefill(lm, vision(), visibility="prefix")
    prompts = prompts_of(lm, QUESTIONS)
    choices = [[[20, 21, EOS], [20, 22, EOS], [25, EOS]], (), [[30, EOS], [31, EOS]], ()]
    settings = {"visibility": "prefix", "max_new_tokens": 6, "eos_id": EOS, "topk": 40}
    bound = greedy(lm, prefix, prompts, choices=choices, **settings)
    free = greedy(lm, prefix, prompts, **settings)
    assert [bound[i].ids for i in (1, 3)] == [free[i].ids for i in (1, 3)]
    assert bound[0].ids in choices[0]
    assert bound[2].ids in choices[2]
    # The logits kept are those of the free model, so that labels stay soft.
    np.testing.assert_array_equal(bound[2].topk_ids[0], free[2].topk_ids[0])
    logit = dict(zip(bound[2].topk_ids[0].tolist(), bound[2].topk_logits[0], strict=True))
    assert bound[2].ids[0] == max((30, 31), key=lambda token: logit[token])


def test_the_log_probability_is_that_of_all_said_over_all_words(lm: PreTrainedModel) -> None:
    prefix = prefill(lm, vision(), visibility="prefix")
    prompts = prompts_of(lm, QUESTIONS)
    # What is allowed is mostly not what the model would say.
    choices = [[[20, 21, EOS], [25, EOS]], (), [[30, EOS], [31, EOS]], ()]
    said = greedy(
        lm,
        prefix,
        prompts,
        visibility="prefix",
        max_new_tokens=4,
        eos_id=EOS,
        topk=40,
        choices=choices,
    )
    for answer in said:
        # The whole vocabulary is kept, so that every said token is among the kept ones.
        kept = [
            float(logits[ids == token][0] - total)
            for token, ids, logits, total in zip(
                answer.ids, answer.topk_ids, answer.topk_logits, answer.logsumexp, strict=True
            )
        ]
        assert answer.logprob == pytest.approx(sum(kept), abs=1e-4)
    assert said[0].logprob < said[0].topk_logits[:, 0].sum() - said[0].logsumexp.sum()
