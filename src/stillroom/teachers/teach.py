"""The miniature teacher: a small LLaVA-3D taught from truth, with depth and poses given.

A row is ``[V] [Q <bos> A]_1 [Q <bos> A]_2 ...``: the voxels of a scene once, then its questions.
Beside the answers it learns, at every voxel, what object is there, its colour, centre and size, and
at every name in a question, where the object meant lies and how large it is: heads that are thrown
away afterwards. They read middle layers, so that the layers above can reason with what was found.
Without such targets the relations stay at chance for very long (``docs/log.md``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from stillroom.engine.initial import match_queries
from stillroom.engine.naming import Words, box_error, naming_error, naming_weight
from stillroom.engine.packing import (
    IGNORE_INDEX,
    Packed,
    pack_questions,
    question_places,
    stack_rows,
)
from stillroom.engine.prefix import read_packed
from stillroom.records import FAMILIES, BadInputError, Question, content_hash
from stillroom.scenes.pixels import PixelCache, cache_pixels, object_names
from stillroom.scenes.rooms import CATEGORIES, COLOURS
from stillroom.scenes.store import open_store
from stillroom.teachers.llava3d import LLaVA3D
from stillroom.teachers.llava3d_config import ClipSize, LLaVA3DConfig
from stillroom.teachers.llava3d_load import load_llava3d, save_llava3d
from stillroom.teachers.preprocess import normalise, whole_pixel_intrinsics
from stillroom.teachers.sampling import choose_questions, right_by_family
from stillroom.text.mentions import mentions, word_tokens
from stillroom.text.tokenizer import Tokenizer, load_tokenizer
from stillroom.training.config import TrainConfig
from stillroom.training.data_order import rows_at
from stillroom.training.handed import StepLosses, count_steps
from stillroom.training.loop import train
from stillroom.training.runlog import open_run

logger = logging.getLogger(__name__)


#: Stands behind a question that is asked for its rationale instead of its answer.
RATIONALE_MARK = "<Spatio>"


@dataclass(frozen=True, kw_only=True)
class TeacherSizes:
    """A LLaVA-3D small enough for two cores."""

    # CLIP: width, layers, heads and patch edge in pixels.
    clip_width: int = 128
    clip_layers: int = 4
    clip_heads: int = 4
    patch_size: int = 14
    # Edge of the pictures in pixels.
    image_size: int = 112
    # Llama: width, layers, heads and inner width.
    hidden_size: int = 160
    layers: int = 6
    heads: int = 4
    intermediate_size: int = 432
    # Base of the rotary frequencies. With Llama's 10,000 most channels of so narrow a head have
    # turned several times between a word and the voxels, and nothing is like anything any more.
    rope_theta: float = 1e7
    # One matrix for token embedding and output: names are copied into answers sooner.
    tie_embeddings: bool = True
    # Edge of a voxel in metres.
    voxel_size: float = 0.3
    # Views of a scene.
    views: int = 6


@dataclass(frozen=True, kw_only=True)
class TeachConfig:
    """One training of a miniature teacher from truth."""

    train: TrainConfig
    sizes: TeacherSizes = field(default_factory=TeacherSizes)
    # Questions of a scene that share one row.
    questions_per_scene: int = 20
    # Chance that the scene's description joins its row.
    description_share: float = 0.05
    # Chance that each question of VSI-Bench's tasks joins its row.
    other_share: float = 0.05
    # Questions of a row that are also asked for their rationale: an extra text target, which
    # names, places and relates the objects before it concludes.
    rationales_per_scene: int = 0
    # Weight of the object targets at the voxels; 0 leaves them out.
    object_weight: float = 1.0
    # Weight of the box targets at the names in questions; 0 leaves them out.
    grounding_weight: float = 2.0
    # Layers of the language model below the heads for voxels and for names.
    object_level: int = 2
    grounding_level: int = 4
    # At most so many validation scenes per evaluation.
    validation_scenes: int = 100
    # Go on from this teacher's checkpoint instead of from scratch; empty is from scratch.
    start_from: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot work, with a sentence."""
        for name in ("object_level", "grounding_level"):
            if not 0 <= getattr(self, name) <= self.sizes.layers:
                raise BadInputError(
                    f"{name} must lie in 0..{self.sizes.layers}, the layers of the language model, "
                    f"got {getattr(self, name)}"
                )

    def llava3d(self, tokenizer: Tokenizer) -> LLaVA3DConfig:
        """The same in the layout of the release."""
        size = self.sizes
        return LLaVA3DConfig(
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=2048,
            rope_theta=size.rope_theta,
            tie_word_embeddings=size.tie_embeddings,
            clip=ClipSize(
                hidden_size=size.clip_width,
                num_hidden_layers=size.clip_layers,
                num_attention_heads=size.clip_heads,
                intermediate_size=4 * size.clip_width,
                image_size=size.image_size,
                patch_size=size.patch_size,
                projection_dim=size.clip_width,
            ),
            mm_vision_tower="",
            # The last layer's output: none is carried without being run.
            mm_vision_select_layer=-1,
            num_frames=size.views,
            tokenizer_model_max_length=2048,
            voxel_size=size.voxel_size,
            frame="view0",
            prompt="mini",
            visibility="prefix",
        )


@dataclass(frozen=True, kw_only=True)
class TeachBatch:
    """Scenes of one micro-batch; ``weight`` is per answer token, row by row."""

    images: Float[Tensor, "s v 3 h w"]
    depths: Float[Tensor, "s v h w"]
    poses: Float[Tensor, "s v 4 4"]
    intrinsics: Float[Tensor, "s v 4 4"]
    # object_id at the pixel that places each patch, and the scenes' object tables.
    patch_object: Int[Tensor, "s p"]
    objects: Float[Tensor, "s m 8"]
    rows: tuple[tuple[tuple[list[int], list[int]], ...], ...]
    # Names in questions: row, place behind V, and the box meant: centre [m], log size.
    mention_at: Int[Tensor, "n 2"]
    mention_box: Float[Tensor, "n 6"]
    weight: Float[Tensor, "a"]
    families: tuple[tuple[str, ...], ...]


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
        )
        n = packed.prefix_length
        vision = torch.stack([F.pad(s.tokens, (0, 0, 0, n - len(s.tokens))) for s in scenes])
        states = read_packed(
            teacher,
            vision,
            teacher.get_input_embeddings()(packed.ids[:, n:]),
            packed,
            visibility=teacher.settings.visibility,
            levels=(config.object_level, config.grounding_level),
        )
        labelled = packed.labels[:, n:] != IGNORE_INDEX
        logits = teacher.get_output_embeddings()(states.text[labelled])
        low = states.levels[config.object_level][0]
        seen = [low[row, : len(scene.tokens)] for row, scene in enumerate(scenes)]
        places = [scene.voxels.indices for scene in scenes]
        objects = [
            _voxel_objects(batch.patch_object[row], scene.voxels.of_patch, len(scene.tokens))
            for row, scene in enumerate(scenes)
        ]
        named = states.levels[config.grounding_level][1][tuple(batch.mention_at.T)]
        truth = torch.cat(
            [table[index] for table, index in zip(batch.objects, objects, strict=True)]
        )
        losses = self._object_losses(truth, seen, places)
        tokens = torch.cat([s.tokens for s in scenes])
        losses["naming"] = torch.stack(
            [
                naming_error(tokens, words.embedded(teacher), truth[:, column].long()).sum()
                for column, words in enumerate(self.words)
            ]
        ).sum()
        losses["grounding"] = box_error(self.grounding_head(named), batch.mention_box).sum()
        return logits, packed, losses

    def _object_losses(
        self,
        truth: Float[Tensor, "n 8"],
        seen: Sequence[Tensor],
        places: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Sums over voxels: cross-entropy of kind and colour, smooth L1 of centre and log size."""
        said = self.object_head(torch.cat(list(seen)))
        kinds, colours, boxes = said.split([len(CATEGORIES) + 1, len(COLOURS) + 1, 6], dim=1)
        at = torch.cat(list(places)).to(boxes) * self.teacher.settings.voxel_size
        named = F.cross_entropy(kinds, truth[:, 0].long(), reduction="sum")
        named = named + F.cross_entropy(colours, truth[:, 1].long(), reduction="sum")
        there = (truth[:, 0] > 0)[:, None]
        target = torch.cat([truth[:, 2:5] - at, truth[:, 5:8]], dim=1)
        boxed = torch.where(there, box_error(boxes, target), 0.0)
        return {"object_name": named, "object_box": boxed.sum()}


def _voxel_objects(patch_object: Tensor, of_patch: Tensor, count: int) -> Tensor:
    """object_id of every voxel: that of one of its patches, things before walls."""
    found = torch.zeros(count, dtype=torch.long)
    return found.scatter_reduce(0, of_patch, patch_object, reduce="amax")


class _Rows:
    """Questions as ids and pictures as arrays, in any portion a step asks for."""

    def __init__(
        self,
        config: TeachConfig,
        pixels: PixelCache,
        questions: Mapping[str, Sequence[Question]],
        tokenizer: Tokenizer,
    ) -> None:
        self.config, self.pixels = config, pixels
        self.questions = [list(questions[scene_id]) for scene_id in pixels.scene_ids]
        self.ids = [
            [(tokenizer.encode(q.prompt), tokenizer.encode_answer(q.answer)) for q in asked]
            for asked in self.questions
        ]
        self.named = [
            [mentions(q.prompt, names, tokenizer) for q in asked]
            for asked, names in zip(self.questions, map(object_names, pixels.objects), strict=True)
        ]
        # The same questions, asked for their reasons: a mark behind the question says so.
        mark = tokenizer.token_id(RATIONALE_MARK)
        self.reasons = [
            [
                ([*ids, mark], tokenizer.encode_answer(q.rationale)) if q.rationale else None
                for q, (ids, _) in zip(asked, pairs, strict=True)
            ]
            for asked, pairs in zip(self.questions, self.ids, strict=True)
        ]

    def at(self, step: int, micro: int) -> TeachBatch:
        """A micro-batch of training."""
        config = self.config
        rows = rows_at(step, micro, config=config.train, rows=len(self.pixels))
        chosen, reasons = [], []
        for row in rows:
            rng = np.random.default_rng([config.train.seed, step, row])
            picked = choose_questions(
                self.questions[row],
                count=config.questions_per_scene,
                description_share=config.description_share,
                other_share=config.other_share,
                rng=rng,
            )
            chosen.append(picked)
            reasons.append(rng.permutation(picked)[: config.rationales_per_scene].tolist())
        return self.batch(rows, chosen, reasons)

    def batch(
        self,
        rows: Sequence[int],
        chosen: Sequence[Sequence[int]],
        reasons: Sequence[Sequence[int]] | None = None,
    ) -> TeachBatch:
        """Any scenes with any of their questions; ``reasons`` are asked for their rationale too."""
        pixels, order = self.pixels, list(rows)
        patch = self.config.sizes.patch_size
        instances = pixels.instances[order][..., ::patch, ::patch]
        reasons = [()] * len(order) if reasons is None else reasons
        pairs: list[tuple[tuple[list[int], list[int]], ...]] = []
        where, boxes = [], []
        for number, (row, picked, why) in enumerate(zip(order, chosen, reasons, strict=True)):
            asked = [(i, self.ids[row][i]) for i in picked]
            asked += [(i, pair) for i in why if (pair := self.reasons[row][i]) is not None]
            pairs.append(tuple(pair for _, pair in asked))
            starts = question_places(pairs[-1], start_id=Tokenizer.bos_id)
            for start, (i, _) in zip(starts, asked, strict=True):
                where += [(number, start + place) for place, _ in self.named[row][i]]
                boxes += [pixels.objects[row, thing, 2:8] for _, thing in self.named[row][i]]
        # Long answers count more than short ones, but not by their length.
        lengths = [len(answer) for row in pairs for _, answer in row]
        weight = np.concatenate([np.full(n, n**-0.5, np.float32) for n in lengths])
        return TeachBatch(
            images=torch.from_numpy(normalise(pixels.rgb[order])),
            depths=torch.from_numpy(pixels.depth[order].astype(np.float32)),
            poses=torch.from_numpy(pixels.c2w[order]),
            intrinsics=torch.from_numpy(whole_pixel_intrinsics(pixels.intrinsics[order])),
            patch_object=torch.from_numpy(instances.astype(np.int64)).flatten(1),
            objects=torch.from_numpy(pixels.objects[order]),
            rows=tuple(pairs),
            mention_at=torch.tensor(where, dtype=torch.long).reshape(-1, 2),
            mention_box=torch.from_numpy(np.array(boxes, dtype=np.float32).reshape(-1, 6)),
            weight=torch.from_numpy(weight),
            families=tuple(
                tuple(self.questions[row][i].family for i in picked)
                for row, picked in zip(rows, chosen, strict=True)
            ),
        )


def teach(
    config: TeachConfig,
    *,
    scenes: Path,
    out: Path,
    validation: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Train a miniature teacher on a store of made rooms; ``out/teacher`` holds it, in bf16.

    ``validation`` is another store whose split val is used instead. Resumable.

    Raises:
        BadInputError: a store without train or val scenes, or of another picture size.
    """
    tokenizer = load_tokenizer()
    settings = {
        "verb": "teach",
        "config": asdict(config),
        "scenes": content_hash(open_store(scenes).scene_ids("train")),
        "validation": content_hash(open_store(validation or scenes).scene_ids("val")),
    }
    # Refuse a foreign folder before anything is decoded or written.
    open_run(out, config=config.train, settings=settings)
    training = _rows(config, scenes, "train", tokenizer, out)
    held_out = _rows(config, validation or scenes, "val", tokenizer, out)
    torch.manual_seed(config.train.seed)
    model = Teaching(config, config.llava3d(tokenizer))
    _draw_language_model(model.teacher)
    if config.start_from:
        _take_over(model.teacher, config.start_from)
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
    save_llava3d(model.teacher, out / "teacher", tokenizer_file=tokenizer.file)
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


def _take_over(teacher: LLaVA3D, where: str) -> None:
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


def _rows(config: TeachConfig, scenes: Path, split: str, tokenizer: Tokenizer, out: Path) -> _Rows:
    store = open_store(scenes)
    pixels = cache_pixels(store, out.parent / "cache", split=split)
    size = config.sizes
    if pixels.rgb.shape[1:] != (size.views, 3, size.image_size, size.image_size):
        views, _, height, width = pixels.rgb.shape[1:]
        raise BadInputError(
            f"{scenes} has {views} views of {height} x {width}, the recipe reads {size.views} of "
            f"{size.image_size} x {size.image_size}; set --sizes.views and --sizes.image-size"
        )
    asked = {scene_id: store.questions(scene_id) for scene_id in pixels.scene_ids}
    return _Rows(config, pixels, asked, tokenizer)


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
    }
    terms |= {name: weights[name] * value for name, value in heads.items() if weights[name]}
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
    }


@torch.no_grad()
def _evaluate(model: Teaching, rows: _Rows, config: TeachConfig) -> dict[str, float]:
    """Cross-entropy of the four families' answers, error at names; share right by family.

    Right is meant teacher-forced: each token given the ones before it.
    """
    hits: dict[str, list[bool]] = {}
    total, count = 0.0, 0
    apart, named = 0.0, 0
    scenes = range(min(config.validation_scenes, len(rows.pixels)))
    for start in range(0, len(scenes), 8):
        chosen = list(scenes[start : start + 8])
        batch = rows.batch(chosen, [range(len(rows.questions[row])) for row in chosen])
        logits, packed, heads = model(batch)
        apart += float(heads["grounding"])
        named += batch.mention_box.numel()
        labels = packed.labels[packed.labels != IGNORE_INDEX]
        ce = F.cross_entropy(logits.float(), labels, reduction="none")
        answers = [
            (family, len(answer))
            for pairs, families in zip(batch.rows, batch.families, strict=True)
            for (_, answer), family in zip(pairs, families, strict=True)
        ]
        right = (logits.argmax(dim=-1) == labels).tolist()
        for family, values in right_by_family(right, answers).items():
            hits.setdefault(family, []).extend(values)
        core = torch.tensor([family in FAMILIES for family, n in answers for _ in range(n)])
        total += float(ce[core].sum())
        count += int(core.sum())
    shares = {family: float(np.mean(values)) for family, values in sorted(hits.items())}
    shares.pop("description", None)
    return {"answer_ce": total / count, "grounding": apart / max(named, 1), **shares}
