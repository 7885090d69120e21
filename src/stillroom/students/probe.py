"""Looking into a student: what its slots hold, and what comes of it when they hold something else.

Questions are read as in a session, behind a scene's shared prefix, several side by side; here with
the states of every layer, and with whatever an edit puts at the slots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.engine.generate import PIECE_TOKENS, Choices, greedy
from stillroom.engine.mask import Kind, attention_mask
from stillroom.engine.prefix import ScenePrefix, all_states
from stillroom.records import BadInputError
from stillroom.students.model import StillroomStudent

#: Questions that are read at once, at most: what one row of ``greedy`` takes.
_MOST_QUESTIONS = 64
#: Said wherever a read-out of slots is shown.
PROBE_NOTE = (
    "A probe, not an explanation: nothing ever taught the slots what to say, so their read-out is "
    "untrained. Where random slots or other photos give the same, it tells nothing of this scene."
)


@dataclass(frozen=True, kw_only=True)
class SlotEdit:
    """What stands at the slots of a question in place of the student's own.

    ``embeddings`` are read in instead of the learnt ones. ``states`` is called with the number of
    a decoder layer and the states that enter it at the slots, and returns what enters instead.
    """

    embeddings: Float[Tensor, "k d"] | None = None
    states: Callable[[int, Float[Tensor, "k d"]], Float[Tensor, "k d"]] | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One question as the language model read it: slots, question and ``<bos>``, without V."""

    # Where the slots stand.
    slots: slice
    # Where the question's own tokens stand, without ``<bos>``.
    question: slice
    # States [t d] after the embedding and after every layer, as they came out of it (an edit
    # changes what enters the next one); the last after the final norm.
    levels: tuple[Float[Tensor, "t d"], ...]
    # Log-probability [nats] of each token of the answer that was put behind it; empty without one.
    answer_logprobs: Float[Tensor, "a"]
    # Attention of each slot over the vision tokens, by layer and head; None if not asked for.
    attention: Float[Tensor, "layers heads k n"] | None = field(default=None)


def slot_places(student: StillroomStudent, question_ids: Sequence[int]) -> slice:
    """Where the slots stand in a question's prompt."""
    count = student.config.slot_count
    start = 0 if student.config.slot_position == "before" else len(question_ids)
    return slice(start, start + count)


def require_slots(student: StillroomStudent, name: str) -> None:
    """Nothing where the student has slots.

    Raises:
        BadInputError: it has none.
    """
    if not student.config.slot_count:
        raise BadInputError(
            f"{name!r} has no slots (K = 0), so there is nothing to look into; name a student that "
            "was distilled with slots"
        )


@torch.no_grad()
def read_questions(
    student: StillroomStudent,
    prefix: ScenePrefix,
    questions: Sequence[Sequence[int]],
    *,
    answers: Sequence[Sequence[int]] = (),
    edits: Sequence[SlotEdit | None] = (),
    attention: bool = False,
) -> list[Reading]:
    """Read tokenised questions behind a scene's prefix; nothing is answered.

    ``answers`` (ids, one list a question) are put behind them to see how likely they are;
    ``attention`` asks for the slots' attention, which is computed without SDPA.
    """
    said: list[list[int]] = [list(ids) for ids in answers] or [[] for _ in questions]
    changes = list(edits) or [None] * len(questions)
    found: list[Reading] = []
    lengths = [len(q) + len(a) + student.config.slot_count + 1 for q, a in zip(questions, said)]
    with _eager(student) if attention else _as_it_is():
        for part in _pieces(prefix, lengths):
            chosen = slice(part[0], part[-1] + 1)
            found += _read_piece(
                student, prefix, questions[chosen], said[chosen], changes[chosen], attention
            )
    return found


@torch.no_grad()
def edited_answers(
    student: StillroomStudent,
    prefix: ScenePrefix,
    questions: Sequence[Sequence[int]],
    *,
    edits: Sequence[SlotEdit | None],
    choices: Sequence[Choices] = (),
) -> list[list[int]]:
    """``StillroomStudent.answer_ids`` with something else at the slots."""
    allowed: list[Choices] = list(choices) or [()] * len(questions)
    found: list[list[int]] = []
    lengths = [len(ids) + student.config.slot_count + 1 for ids in questions]
    for part in _pieces(prefix, lengths):
        chosen = slice(part[0], part[-1] + 1)
        prompts = [_prompt(student, questions[i], edits[i]) for i in part]
        shift = 0 if prefix.layers else prefix.length
        places = _slots_in_row(student, [questions[i] for i in part], [0] * len(part), shift)
        with _edited(student, list(zip(places, edits[chosen], strict=True))):
            said = greedy(
                student.language_model,
                prefix,
                prompts,
                visibility=student.config.visibility,
                max_new_tokens=student.config.max_answer_tokens,
                eos_id=student.eos_id,
                choices=allowed[chosen],
            )
        found += [decoded.ids for decoded in said]
    return found


@dataclass(frozen=True, kw_only=True)
class SlotWord:
    """The likeliest token of the vocabulary at one slot, and how sure that is."""

    token_id: int
    probability: float
    # Over the whole vocabulary, in nats; the logarithm of its size is no idea at all.
    entropy: float


@torch.no_grad()
def read_out(
    student: StillroomStudent,
    prefix: ScenePrefix,
    question_ids: Sequence[int],
    *,
    edit: SlotEdit | None = None,
) -> list[SlotWord]:
    """What the output matrix would say at each slot position."""
    (reading,) = read_questions(student, prefix, [question_ids], edits=[edit])
    logits = student.get_output_embeddings()(reading.levels[-1][reading.slots]).float()
    logprobs = logits.log_softmax(dim=-1)
    entropy = -(logprobs.exp() * logprobs).sum(dim=-1)
    best = logprobs.max(dim=-1)
    return [
        SlotWord(token_id=token, probability=probability, entropy=nats)
        for token, probability, nats in zip(
            best.indices.tolist(), best.values.exp().tolist(), entropy.tolist(), strict=True
        )
    ]


def random_slots(student: StillroomStudent, *, rng: np.random.Generator) -> Float[Tensor, "k d"]:
    """Random directions, each as long as the student's own slot there."""
    own = student.slots().detach()
    drawn = torch.from_numpy(rng.normal(size=tuple(own.shape))).to(own)
    return drawn * (own.norm(dim=1, keepdim=True) / drawn.norm(dim=1, keepdim=True))


def decoder_layers(language_model: nn.Module) -> nn.ModuleList:
    """The layers of a transformers decoder, in order.

    Raises:
        BadInputError: they are not where decoders have them.
    """
    body: Any = getattr(language_model, "base_model", language_model)
    for name in ("layers", "h"):
        layers = getattr(body, name, None)
        if isinstance(layers, nn.ModuleList):
            return layers
    raise BadInputError(
        f"the layers of a {type(language_model).__name__} are not known; its slots cannot be edited"
    )


def _pieces(prefix: ScenePrefix, lengths: Sequence[int]) -> list[list[int]]:
    """Questions that are read at once, as numbers: one at a time where V depends on them."""
    runs: list[list[int]] = []
    held = 0
    for number, length in enumerate(lengths):
        full = held + length > PIECE_TOKENS or (runs and len(runs[-1]) == _MOST_QUESTIONS)
        if not runs or not prefix.layers or full:
            runs.append([])
            held = 0
        runs[-1].append(number)
        held += length
    return runs


def _prompt(
    student: StillroomStudent, question_ids: Sequence[int], edit: SlotEdit | None
) -> Float[Tensor, "t d"]:
    prompt = student.prompt(question_ids)
    if edit is not None and edit.embeddings is not None:
        prompt = prompt.clone()
        prompt[slot_places(student, question_ids)] = edit.embeddings.to(prompt)
    return prompt


def _slots_in_row(
    student: StillroomStudent,
    questions: Sequence[Sequence[int]],
    behind: Sequence[int],
    start: int,
) -> list[slice]:
    """Where the slots of questions stand that are read in one row, ``behind`` ids after each."""
    places = []
    for question_ids, more in zip(questions, behind, strict=True):
        own = slot_places(student, question_ids)
        places.append(slice(start + own.start, start + own.stop))
        start += len(question_ids) + student.config.slot_count + 1 + more
    return places


def _read_piece(
    student: StillroomStudent,
    prefix: ScenePrefix,
    questions: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    edits: Sequence[SlotEdit | None],
    attention: bool,
) -> list[Reading]:
    prompts = [_prompt(student, *pair) for pair in zip(questions, edits, strict=True)]
    # The last token of an answer is only predicted.
    read = [list(ids[:-1]) for ids in answers]
    words = student.get_input_embeddings()
    device, n = student.device, prefix.length
    embeds = torch.cat(
        [
            part
            for prompt, ids in zip(prompts, read, strict=True)
            for part in (prompt, words(torch.tensor(ids, dtype=torch.long, device=device)))
        ]
    )[None]
    kind, segment, position = [int(Kind.V)] * n, [0] * n, list(range(n))
    for number, (prompt, ids) in enumerate(zip(prompts, read, strict=True), start=1):
        count = len(prompt) + len(ids)
        kind += [int(Kind.Q)] * len(prompt) + [int(Kind.A)] * len(ids)
        segment += [number] * count
        position += range(n, n + count)
    layout = torch.tensor([kind, segment, position], device=device)[:, None]
    # Nothing of V is cached under full_prefix: it is read along with the question.
    start = n if prefix.layers else 0
    embeds = embeds if start else torch.cat([prefix.embeds, embeds], dim=1)
    mask = attention_mask(*layout, visibility=prefix.visibility, query_start=start)
    places = _slots_in_row(student, questions, [len(ids) for ids in read], n - start)
    with _edited(student, list(zip(places, edits, strict=True))):
        states = all_states(
            student.language_model,
            embeds,
            mask=mask,
            position=layout[2, :, start:],
            cache=prefix.cache(),
            every_layer=True,
            attentions=attention,
        )
    found, at = [], n - start
    for place, question_ids, prompt, ids, answer in zip(
        places, questions, prompts, read, answers, strict=True
    ):
        here = slice(at, at + len(prompt))
        own = slot_places(student, question_ids)
        asked = own.stop if own.start == 0 else 0
        speaks = states.last_hidden_state[0, here.stop - 1 : here.stop + len(ids)]
        found.append(
            Reading(
                slots=own,
                question=slice(asked, asked + len(question_ids)),
                levels=tuple(level[0, here] for level in states.hidden_states),
                answer_logprobs=_logprobs(student, speaks, answer),
                attention=torch.stack([seen[0, :, place, :n] for seen in states.attentions])
                if attention
                else None,
            )
        )
        at = here.stop + len(ids)
    return found


def _logprobs(
    student: StillroomStudent, speaks: Float[Tensor, "a d"], answer: Sequence[int]
) -> Float[Tensor, "b"]:
    """Log-probability of each id of an answer, from the states it is said from."""
    if not answer:
        return speaks.new_empty(0)
    logprobs = student.get_output_embeddings()(speaks).float().log_softmax(dim=-1)
    ids = torch.tensor(list(answer), device=logprobs.device)
    return logprobs.gather(1, ids[:, None])[:, 0]


@contextmanager
def _edited(
    student: StillroomStudent, changes: Sequence[tuple[slice, SlotEdit | None]]
) -> Iterator[None]:
    """Put other states at the slots of the next row that is read, on its way into every layer.

    Only the first pass through a layer is changed: later ones read tokens of answers.
    """
    wanted = [(at, edit.states) for at, edit in changes if edit is not None and edit.states]
    if not wanted:
        yield
        return

    def change(number: int) -> Callable[..., Any]:
        done = False

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal done
            if done:
                return None
            done = True
            states = (args[0] if args else kwargs["hidden_states"]).clone()
            for at, put in wanted:
                states[0, at] = put(number, states[0, at]).to(states)
            if args:
                return (states, *args[1:]), kwargs
            return args, kwargs | {"hidden_states": states}

        return before

    handles = [
        layer.register_forward_pre_hook(change(number), with_kwargs=True)
        for number, layer in enumerate(decoder_layers(student.language_model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _eager(student: StillroomStudent) -> Iterator[None]:
    """Attention computed in the open, so that its weights can be seen."""
    language_model = student.language_model
    usual = language_model.config._attn_implementation
    language_model.set_attn_implementation("eager")
    try:
        yield
    finally:
        language_model.set_attn_implementation(usual)


@contextmanager
def _as_it_is() -> Iterator[None]:
    yield
