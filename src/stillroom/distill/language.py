"""The language of the rooms, before any picture: a small language model for the student.

Students of the paper start from a language model that can read and write (Pythia). The embedded
default's counterpart reads questions of made rooms and says one of the answers they offer: without
pictures it can only guess which, but it learns what a question is and how an answer is spelt. The
run's folder gets ``language/``, a checkpoint that any ``AutoModelForCausalLM`` opens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from stillroom.distill.build import language_config
from stillroom.distill.config import StudentSizes
from stillroom.distill.losses import answer_cross_entropy
from stillroom.engine.initial import begin_copying, match_queries
from stillroom.engine.packing import IGNORE_INDEX, Packed, pack_questions, stack_rows
from stillroom.engine.prefix import read_packed
from stillroom.records import FAMILIES, BadInputError, Question, content_hash
from stillroom.scenes.store import open_store
from stillroom.teachers.sampling import AnswerScores, choose_questions
from stillroom.text.tokenizer import Tokenizer, load_tokenizer
from stillroom.training.config import TrainConfig
from stillroom.training.data_order import rows_at
from stillroom.training.handed import StepLosses, count_steps
from stillroom.training.loop import train
from stillroom.training.runlog import open_run

#: Scenes of one validation batch.
SCENES_PER_EVALUATION = 16


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """One pretraining of a language model on questions and answers, without pictures."""

    train: TrainConfig
    # Sizes of the language model: the student's.
    student: StudentSizes = field(default_factory=StudentSizes)
    # Questions of a scene that share one row.
    questions_per_scene: int = 16
    # Chance that the scene's description joins its row.
    description_share: float = 0.1
    # Chance that each question of VSI-Bench's tasks joins its row.
    other_share: float = 0.25
    # At most so many validation scenes per evaluation.
    validation_scenes: int = 100


class _Rows:
    def __init__(
        self, config: LanguageConfig, asked: Sequence[Sequence[Question]], tokenizer: Tokenizer
    ) -> None:
        self.config, self.asked = config, asked
        self.pairs = [
            [(tokenizer.encode(q.prompt), tokenizer.encode_answer(q.answer)) for q in questions]
            for questions in asked
        ]

    def at(self, step: int, micro: int) -> Packed:
        config = self.config
        rows = rows_at(step, micro, config=config.train, rows=len(self.asked))
        chosen = []
        for row in rows:
            rng = np.random.default_rng([config.train.seed, step, row])
            picked = choose_questions(
                self.asked[row],
                count=config.questions_per_scene,
                description_share=config.description_share,
                other_share=config.other_share,
                rng=rng,
            )
            chosen.append([self.pairs[row][i] for i in picked])
        return packed_text(chosen)


def packed_text(rows: Sequence[Sequence[tuple[list[int], list[int]]]]) -> Packed:
    """Rows of questions and answers behind no picture at all."""
    packed = [pack_questions(row, prefix_length=0, start_id=Tokenizer.bos_id) for row in rows]
    # Groups share what V holds; there is no V.
    return replace(stack_rows(packed, multiple_of=32), groups=None)


def pretrain_language(
    config: LanguageConfig,
    *,
    scenes: Path,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Train a language model on the questions of a store; resumable.

    Raises:
        BadInputError: the store has no questions in split train or val, or ``out`` holds
            another run.
    """
    store, tokenizer = open_store(scenes), load_tokenizer()
    rows = {}
    for split in ("train", "val"):
        asked = [store.questions(scene_id) for scene_id in store.scene_ids(split)]
        asked = [some for some in asked if any(q.family in FAMILIES for q in some)]
        if not asked:
            raise BadInputError(
                f"{scenes} holds no questions of the four families in split {split}, which this "
                "needs; make rooms with 'stillroom scenes make'"
            )
        rows[split] = asked
    settings = {
        "verb": "pretrain-language",
        "config": asdict(config),
        "questions": content_hash([q.question_id for q in store.questions()]),
    }
    open_run(out, config=config.train, settings=settings)
    training = _Rows(config, rows["train"], tokenizer)
    held_out = _Rows(config, rows["val"][: config.validation_scenes], tokenizer)
    lm = new_language_model(config.student, seed=config.train.seed)
    result = train(
        config=config.train,
        model=lm,
        step=lambda packed: StepLosses(terms={"text": _errors(lm, packed)[0].sum()}),
        count=lambda packed: {"text": float((packed.labels != IGNORE_INDEX).sum())},
        batch_at=training.at,
        evaluate=lambda: _evaluate(lm, held_out),
        best_by="answer_ce",
        out=out,
        settings=settings,
        progress=count_steps(progress),
    )
    lm.bfloat16().save_pretrained(out / "language")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(result.metrics.items()))
    return f"{out / 'language'} after {result.steps} steps, best at {result.best_step}: {shown}"


def new_language_model(sizes: StudentSizes, *, seed: int) -> PreTrainedModel:
    """A GPT-NeoX of those sizes from scratch, over the made worlds' tokenizer."""
    torch.manual_seed(seed)
    lm: PreTrainedModel = AutoModelForCausalLM.from_config(language_config(sizes))
    match_queries(lm)
    begin_copying(lm)
    return lm


def _errors(lm: PreTrainedModel, packed: Packed) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every answer token, and whether it would have been said."""
    text = lm.get_input_embeddings()(packed.ids)
    nothing = text[:, :0]
    states = read_packed(lm, nothing, text, packed, visibility="prefix").text
    labelled = packed.labels != IGNORE_INDEX
    logits, labels = lm.get_output_embeddings()(states[labelled]), packed.labels[labelled]
    return answer_cross_entropy(logits, labels), logits.argmax(dim=-1) == labels


def _evaluate(lm: PreTrainedModel, rows: _Rows) -> dict[str, float]:
    """Cross-entropy of the four families' answers and how many are said as they are, by family."""
    scores = AnswerScores()
    for start in range(0, len(rows.asked), SCENES_PER_EVALUATION):
        part = slice(start, start + SCENES_PER_EVALUATION)
        families = [q.family for questions in rows.asked[part] for q in questions]
        pairs = [pair for questions in rows.pairs[part] for pair in questions]
        errors, said = _errors(lm, packed_text(rows.pairs[part]))
        answers = [(family, len(answer)) for family, (_, answer) in zip(families, pairs)]
        scores.add(errors, said, answers)
    shares = {f"right.{name}": value for name, value in scores.shares().items()}
    return {"answer_ce": scores.answer_ce(), **shares}
