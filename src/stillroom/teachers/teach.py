"""The miniature teacher: a small LLaVA-3D taught from truth, with depth and poses given.

A row is ``[V] [Q <bos> A]_1 [Q <bos> A]_2 ...``: the voxels of a scene once, then its questions.
Beside the answers it learns, at every voxel, what object is there, its colour, centre and size, and
at every name in a question, where the object meant lies, how large it is and how far from what was
named before, and where an answer begins the number that decides it: heads that are thrown away
afterwards. They read middle layers, so that the layers above can reason with what was found.
Without such targets the relations stay at chance for very long (``docs/log.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stillroom.engine.initial import match_queries
from stillroom.engine.naming import Words, box_error, naming_error, naming_weight
from stillroom.engine.packing import IGNORE_INDEX, Packed, pack_questions, stack_rows
from stillroom.engine.prefix import PackedStates, read_packed
from stillroom.records import BadInputError, content_hash
from stillroom.scenes.rooms import CATEGORIES, COLOURS
from stillroom.scenes.store import open_store
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_load import load_llava3d, save_llava3d
from stillroom.teachers.llava3d_model import LLaVA3D
from stillroom.teachers.measures import MEASURES, measure_error
from stillroom.teachers.sampling import AnswerScores
from stillroom.teachers.teach_config import TeachConfig
from stillroom.teachers.teach_rows import Rows, TeachBatch, check_views, open_rows
from stillroom.text.mentions import word_tokens
from stillroom.text.tokenizer import Tokenizer, load_tokenizer
from stillroom.training.distributed import join
from stillroom.training.handed import StepLosses, count_steps
from stillroom.training.loop import train
from stillroom.training.precision import moved
from stillroom.training.runlog import refuse_other_run


class Teaching(nn.Module):
    """The teacher with the heads for objects and names that only training has."""

    def __init__(self, config: TeachConfig, llava3d: LLaVA3DConfig) -> None:
        super().__init__()
        self.config = config
        self.teacher = LLaVA3D(llava3d)
        width = llava3d.hidden_size
        self.object_head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, len(CATEGORIES) + len(COLOURS) + 2 + 6)
        )
        self.words = [
            Words.of(word_tokens(words, load_tokenizer())) for words in (CATEGORIES, COLOURS)
        ]
        self.grounding_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 6))
        self.apart_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))
        self.measure_head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * len(MEASURES)))

    def forward(self, batch: TeachBatch) -> tuple[Tensor, Packed, dict[str, Tensor]]:
        """Logits at the labelled positions, the rows, and sums of the losses of the heads."""
        teacher, config = self.teacher, self.config
        scenes = teacher.scene_tokens(batch.images, batch.depths, batch.poses, batch.intrinsics)
        packed = stack_rows(
            [
                pack_questions(pairs, prefix_length=len(scene.tokens), start_id=Tokenizer.bos_id)
                for pairs, scene in zip(batch.rows, scenes, strict=True)
            ],
            multiple_of=32,
        ).to(batch.images.device)
        n = packed.prefix_length
        vision = torch.stack([F.pad(s.tokens, (0, 0, 0, n - len(s.tokens))) for s in scenes])
        states = read_packed(
            teacher,
            vision,
            teacher.get_input_embeddings()(packed.ids[:, n:]),
            packed,
            visibility=teacher.settings.visibility,
            levels=(
                config.object_level,
                config.grounding_level,
                config.apart_level,
                config.measure_level,
            ),
        )
        labelled = packed.labels[:, n:] != IGNORE_INDEX
        logits = teacher.get_output_embeddings()(states.text[labelled])
        low = states.levels[config.object_level][0]
        seen = [low[row, : len(scene.tokens)] for row, scene in enumerate(scenes)]
        tokens = torch.cat([scene.tokens for scene in scenes])
        losses: dict[str, Tensor] = {}
        if config.object_weight:
            objects = [
                _voxel_objects(batch.patch_object[row], scene.voxels.of_patch, len(scene.tokens))
                for row, scene in enumerate(scenes)
            ]
            truth = torch.cat([table[i] for table, i in zip(batch.objects, objects, strict=True)])
            places = torch.cat([scene.voxels.indices for scene in scenes])
            losses |= self._object_losses(truth, torch.cat(seen), places, tokens)
        if config.grounding_weight:
            named = states.levels[config.grounding_level][1][tuple(batch.mention_at.T)]
            losses["grounding"] = box_error(self.grounding_head(named), batch.mention_box).sum()
        if config.measure_weight:
            losses |= self._measure_losses(states, batch)
        return logits, packed, losses

    def _measure_losses(self, states: PackedStates, batch: TeachBatch) -> dict[str, Tensor]:
        """Sums over the numbers asked: smooth L1 of distances between names and of what decides."""
        config = self.config
        names = states.levels[config.apart_level][1][tuple(batch.mention_at.T)]
        begins = states.levels[config.measure_level][1][tuple(batch.measure_at.T)]
        said = self.measure_head(begins).unflatten(-1, (-1, 2))
        said = said[torch.arange(len(begins)), batch.measure_kind]
        return {
            "apart": measure_error(self.apart_head(names), batch.mention_apart).sum(),
            "measure": measure_error(said, batch.measure).sum(),
        }

    def _object_losses(
        self,
        truth: Float[Tensor, "n 8"],
        seen: Float[Tensor, "n d"],
        places: Int[Tensor, "n 3"],
        tokens: Float[Tensor, "n d"],
    ) -> dict[str, Tensor]:
        """Sums over voxels: cross-entropy of kind and colour, by a head on ``seen`` and by the
        words that ``tokens`` are like; smooth L1 of centre and log size."""
        kinds, colours, boxes = self.object_head(seen).split(
            [len(CATEGORIES) + 1, len(COLOURS) + 1, 6], dim=1
        )
        at = places.to(boxes) * self.teacher.settings.voxel_size
        named = F.cross_entropy(kinds, truth[:, 0].long(), reduction="sum")
        named = named + F.cross_entropy(colours, truth[:, 1].long(), reduction="sum")
        there = (truth[:, 0] > 0)[:, None]
        target = torch.cat([truth[:, 2:5] - at, truth[:, 5:8]], dim=1)
        boxed = torch.where(there, box_error(boxes, target), 0.0)
        likeness = [
            naming_error(tokens, words.embedded(self.teacher), truth[:, column].long()).sum()
            for column, words in enumerate(self.words)
        ]
        return {
            "object_name": named,
            "object_box": boxed.sum(),
            "naming": torch.stack(likeness).sum(),
        }


def _voxel_objects(patch_object: Tensor, of_patch: Tensor, count: int) -> Tensor:
    """object_id of every voxel: that of one of its patches, things before walls."""
    found = torch.zeros(count, dtype=torch.long, device=of_patch.device)
    return found.scatter_reduce(0, of_patch, patch_object, reduce="amax")


def teach(
    config: TeachConfig,
    *,
    scenes: Path,
    out: Path,
    validation: Path | None = None,
    start_from: Path | str = "",
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Train a miniature teacher on a store of made rooms; ``out/teacher`` holds it, in bf16.

    ``validation`` is another store whose split val is used instead; ``start_from`` is where the
    teacher lies that the config names, unless its name is a place. Resumable. ``out`` is taken
    when all is ready: what is refused leaves no folder.

    Raises:
        BadInputError: a store without train or val scenes, or of another picture size; no such
            teacher to start from; or ``out`` holds another run.
    """
    tokenizer, store = load_tokenizer(), open_store(scenes)
    held_out_store = store if validation is None else open_store(validation)
    settings = {
        "verb": "teach",
        "config": asdict(config),
        "scenes": content_hash(q.question_id for q in store.questions(split="train")),
        "validation": content_hash(q.question_id for q in held_out_store.questions(split="val")),
    }
    refuse_other_run(out, config=config.train, settings=settings)
    # What is cheap to refuse comes before pictures are decoded.
    for rooms, split in ((store, "train"), (held_out_store, "val")):
        check_views(config, rooms, split)
    processes = join(config.train)
    torch.manual_seed(config.train.seed)
    model = Teaching(config, config.llava3d(tokenizer))
    _draw_language_model(model.teacher)
    if config.start_from:
        _take_over(model.teacher, start_from or config.start_from)
    with processes.main_first():
        training = open_rows(config, store, "train", tokenizer, out)
        held_out = open_rows(config, held_out_store, "val", tokenizer, out)
    result = train(
        config=config.train,
        model=model,
        step=lambda batch: _step(model, batch, config),
        count=lambda batch: _count(batch, model),
        batch_at=training.at,
        evaluate=lambda: _evaluate(model, held_out, config),
        best_by="answer_ce",
        out=out,
        settings=settings,
        progress=count_steps(progress),
    )
    if processes.main:
        save_llava3d(model.teacher, out / "teacher", tokenizer_file=tokenizer.file)
    processes.wait()
    shown = ", ".join(f"{name} {value:.3f}" for name, value in sorted(result.metrics.items()))
    return f"{out / 'teacher'} after {result.steps} steps, best at {result.best_step}: {shown}"


@torch.no_grad()
def _draw_language_model(teacher: LLaVA3D) -> None:
    """Start values of unit gain at this width; Llama's own 0.02 leaves a narrow model asleep."""
    own = {id(p) for p in teacher.model.embed_tokens.parameters()}
    own |= {id(p) for p in teacher.model.layers.parameters()}
    own |= {id(p) for p in teacher.lm_head.parameters()}
    for parameter in teacher.parameters():
        if id(parameter) in own and parameter.dim() == 2:
            parameter.normal_(std=teacher.settings.hidden_size**-0.5)
    match_queries(teacher)


def _take_over(teacher: LLaVA3D, where: Path | str) -> None:
    """Put another teacher's weights into this one; an output matrix that is tied is left out."""
    given = load_llava3d(where, dtype=torch.float32).state_dict()
    own = teacher.state_dict()
    strange = [name for name in own if name not in given or own[name].shape != given[name].shape]
    if strange:
        raise BadInputError(
            f"{where} is a teacher of other sizes: {strange[0]} and {len(strange) - 1} more do not "
            "fit; set --sizes to its own"
        )
    if teacher.settings.tie_word_embeddings:
        given["lm_head.weight"] = given["model.embed_tokens.weight"]
    teacher.load_state_dict({name: given[name] for name in own})


def _step(model: Teaching, batch: TeachBatch, config: TeachConfig) -> StepLosses:
    logits, packed, heads = model(batch)
    labels = packed.labels[packed.labels != IGNORE_INDEX]
    ce = F.cross_entropy(logits.float(), labels, reduction="none")
    terms = {"text": (ce * batch.weight).sum()}
    weights = {
        "object_name": config.object_weight,
        "object_box": config.object_weight,
        "naming": config.object_weight,
        "grounding": config.grounding_weight,
        "apart": config.measure_weight,
        "measure": config.measure_weight,
    }
    terms |= {name: weights[name] * value for name, value in heads.items()}
    return StepLosses(terms=terms)


def _count(batch: TeachBatch, model: Teaching) -> dict[str, float]:
    """Answer weight; patches stand in for voxels, whose number the model finds out later."""
    patches = float(batch.patch_object.numel())
    things = float((batch.patch_object > 0).sum())
    return {
        "text": float(batch.weight.sum()),
        "object_name": patches,
        "object_box": things,
        "naming": naming_weight(batch.patch_object),
        "grounding": float(batch.mention_box.numel()),
        "apart": float(batch.mention_apart.isfinite().sum()),
        "measure": float(batch.measure.isfinite().sum()),
    }


@torch.no_grad()
def _evaluate(model: Teaching, rows: Rows, config: TeachConfig) -> dict[str, float]:
    """Cross-entropy of the four families' answers, error at names; share right by family."""
    scores = AnswerScores()
    apart, named = 0.0, 0
    scenes = range(min(config.validation_scenes, len(rows.pixels)))
    for start in range(0, len(scenes), 8):
        chosen = list(scenes[start : start + 8])
        batch = rows.batch(chosen, [range(len(rows.questions[row])) for row in chosen])
        batch = moved(batch, model.teacher.device)
        logits, packed, heads = model(batch)
        if "grounding" in heads:
            apart += float(heads["grounding"])
            named += batch.mention_box.numel()
        labels = packed.labels[packed.labels != IGNORE_INDEX]
        scores.add(
            F.cross_entropy(logits.float(), labels, reduction="none"),
            logits.argmax(dim=-1) == labels,
            [
                (family, len(answer))
                for pairs, families in zip(batch.rows, batch.families, strict=True)
                for (_, answer), family in zip(pairs, families, strict=True)
            ],
        )
    grounding = {"grounding": apart / named} if named else {}
    shares = {name: value for name, value in scores.shares().items() if name != "description"}
    return {"answer_ce": scores.answer_ce(), **grounding, **shares}
