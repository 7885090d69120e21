"""Pretraining of the miniature encoder on rooms: geometry and objects, before any language.

The run's folder gets, besides the loop's files, ``encoder/`` (config and weights in bf16, under
the public key names) and ``validation.json``. The object head stays in the run's own weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stillroom.distill.pretrain_batches import PretrainBatch, PretrainRows
from stillroom.distill.pretrain_config import PretrainConfig as PretrainConfig
from stillroom.distill.pretrain_config import PretrainWeights as PretrainWeights
from stillroom.distill.pretrain_losses import (
    ObjectGuess,
    Prediction,
    figure_sums,
    label_counts,
    loss_sums,
)
from stillroom.records import BadInputError, content_hash
from stillroom.scenes.pixels import cache_pixels
from stillroom.scenes.rooms import CATEGORIES, COLOURS
from stillroom.scenes.store import SceneStore, open_store
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_config import Head
from stillroom.students.encoders.vggt_load import load_vggt, save_vggt
from stillroom.training.distributed import join
from stillroom.training.handed import StepLosses, count_steps
from stillroom.training.loop import train
from stillroom.training.precision import moved
from stillroom.training.runlog import TrainResult, refuse_other_run

logger = logging.getLogger(__name__)

_CAMERA: tuple[Head, ...] = ("camera",)
#: Scenes that share one pass of an evaluation.
SCENES_PER_PASS = 8


class ObjectHead(nn.Module):
    """A linear reading of patch tokens: for every cell, what covers it, its colour and its box."""

    def __init__(self, token_width: int, cells_per_patch: int) -> None:
        super().__init__()
        self.cells_per_patch = cells_per_patch
        self.parts = (len(CATEGORIES) + 1, len(COLOURS), 3, 3)
        self.norm = nn.LayerNorm(token_width)
        self.read = nn.Linear(token_width, cells_per_patch**2 * sum(self.parts))

    def forward(self, tokens: Float[Tensor, "b v p d"], rows: int) -> ObjectGuess:
        """``rows`` is how many of the patches stand below one another."""
        cells = self.cells_per_patch
        said = self.read(self.norm(tokens)).unflatten(-1, (cells, cells, -1))
        said = said.unflatten(2, (rows, -1)).transpose(3, 4)  # [b v rows cells columns cells k]
        said = said.flatten(2, 3).flatten(3, 4)
        category, colour, center, log_size = said.split(self.parts, dim=-1)
        return ObjectGuess(category=category, colour=colour, center=center, log_size=log_size)


class Pretraining(nn.Module):
    """The encoder and, where asked for, the object head that only pretraining knows."""

    def __init__(self, config: PretrainConfig, encoder: VGGT) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        width, cells = config.encoder.token_width, config.cells_per_patch
        early = config.object_targets and config.early_round >= 0
        self.object_head = ObjectHead(width, cells) if config.object_targets else None
        self.early_head = ObjectHead(width, cells) if early else None

    def forward(self, batch: PretrainBatch) -> Prediction:
        """All views are attended to; maps are made of the dense ones."""
        config = self.config.encoder
        rounds = {*config.levels, self.config.feature_round}
        if self.early_head is not None:
            rounds.add(self.config.early_round)
        output = self.encoder.encode(batch.images, rounds, heads=_CAMERA)
        scenes = torch.arange(len(batch.dense))[:, None]
        levels = {level: output.tokens[level][scenes, batch.dense] for level in config.levels}
        images = batch.images[scenes, batch.dense]
        depth, depth_conf = self.encoder.depth_of(levels, images)
        points, points_conf = self.encoder.points_of(levels, images)
        rows = batch.images.shape[-2] // config.patch_size
        objects = early = None
        if self.object_head is not None:
            objects = self.object_head(output.tokens[self.config.feature_round], rows)
        if self.early_head is not None:
            early = self.early_head(output.tokens[self.config.early_round], rows)
        return Prediction(
            depth=depth,
            depth_conf=depth_conf,
            points=points,
            points_conf=points_conf,
            pose_steps=output.pose_steps,
            objects=objects,
            early=early,
        )


def pretrain_encoder(
    config: PretrainConfig,
    *,
    scenes: Path,
    out: Path,
    start_from: Path | str = "",
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Train an encoder on the rooms of a store; a sentence on how it went.

    The same call goes on where it was killed. Decoded pictures are kept in ``cache`` beside
    ``out`` and shared with other trainings. ``start_from`` is where the encoder lies that the
    config names, unless its name is a place. ``out`` is taken when all is ready: what is refused
    leaves no folder.

    Raises:
        BadInputError: no such store or split, scenes that cannot be trained on, no such encoder
            to start from, or a folder that holds another run.
    """
    store = open_store(scenes)
    for split in (config.train_split, config.validation_split):
        if not store.scene_ids(split):
            raise BadInputError(
                f"{scenes} holds no scene of the split {split!r}, which this run needs; "
                "choose another store, or other splits in the recipe"
            )
    settings = {
        "kind": "pretrain-encoder",
        "config": {k: v for k, v in asdict(config).items() if k != "train"},
        "scenes": content_hash(store.scene_ids()),
    }
    refuse_other_run(out, config=config.train, settings=settings)
    processes = join(config.train)
    # Written last: without it the run, finished or not, has something left to do.
    if not (out / "validation.json").exists():
        model = new_model(config, start_from=start_from)
        _require_whole_patches(store, config, store.scene(store.scene_ids()[0]).views[0].rgb.shape)
        with processes.main_first():
            rows = _rows(store, config, config.train_split, out)
            validation = _rows(store, config, config.validation_split, out)
        result = train(
            config=config.train,
            model=model,
            step=lambda batch: StepLosses(terms=loss_sums(model(batch), batch, config)),
            count=lambda batch: label_counts(batch, config),
            batch_at=rows.training_batch,
            evaluate=lambda: validate(model, validation),
            best_by="loss",
            out=out,
            settings=settings,
            progress=count_steps(progress),
        )
        if processes.main:
            _write(model.encoder, result, out)
        processes.wait()
    return _sentence(out)


def new_model(config: PretrainConfig, *, start_from: Path | str = "") -> Pretraining:
    """Fresh weights from the run's seed, or those of the encoder that the config names (which
    lies at ``start_from``, unless its name is a place) with a fresh object head.

    Raises:
        BadInputError: the encoder to start from has other sizes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        where = start_from or config.start_from
        encoder = load_vggt(where) if config.start_from else VGGT(config.encoder)
        if encoder.config != config.encoder:
            raise BadInputError(
                f"{config.start_from} holds an encoder of other sizes than the recipe's"
            )
        return Pretraining(config, encoder)


@torch.no_grad()
def validate(model: Pretraining, rows: PretrainRows) -> dict[str, float]:
    """Weighted loss and figures over the first scenes of a split, every view scored."""
    config = model.config
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}

    def add(name: str, value: float, count: float) -> None:
        sums[name] = sums.get(name, 0.0) + value
        counts[name] = counts.get(name, 0.0) + count

    number = min(config.validation_scenes, len(rows))
    for start in range(0, number, SCENES_PER_PASS):
        batch = rows.plain_batch(range(start, min(start + SCENES_PER_PASS, number)))
        batch = moved(batch, next(model.parameters()).device)
        said = model(batch)
        labelled = label_counts(batch, config)
        for name, value in loss_sums(said, batch, config).items():
            add(f"loss.{name}", float(value), labelled[name])
        for name, (value, count) in figure_sums(said, batch).items():
            add(name, float(value), float(count))
    means = {name: value / counts[name] for name, value in sums.items() if counts[name]}
    loss = sum(value for name, value in means.items() if name.startswith("loss."))
    return {"loss": loss, **means}


def _rows(store: SceneStore, config: PretrainConfig, split: str, out: Path) -> PretrainRows:
    pixels = cache_pixels(store, out.parent / "cache", split=split)
    _require_whole_patches(store, config, pixels.rgb.shape[-2:])
    return PretrainRows(pixels, config)


def _require_whole_patches(
    store: SceneStore, config: PretrainConfig, shape: tuple[int, ...]
) -> None:
    height, width = shape[:2]
    patch = config.encoder.patch_size
    if height % patch or width % patch:
        raise BadInputError(
            f"{store.path} has views of {height} x {width}; the encoder needs multiples of {patch}"
        )


def _write(encoder: VGGT, result: TrainResult, out: Path) -> None:
    save_vggt(encoder, out / "encoder", dtype=torch.bfloat16)
    text = json.dumps({"step": result.best_step, **result.metrics}, indent=1)
    (out / "validation.json").write_text(text + "\n")


def _sentence(out: Path) -> str:
    path = out / "validation.json"
    figures = json.loads(path.read_text())
    return (
        f"{out / 'encoder'} is from step {figures['step']}: depth off by "
        f"{100 * figures['depth_abs_rel']:.1f} %, cameras by {figures['camera_m']:.2f} m and "
        f"{figures['camera_deg']:.1f} degrees"
    )
