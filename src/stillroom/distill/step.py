"""One step of distillation: what the student says of a batch, against teacher and sensor."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from stillroom.distill.batches import Batch
from stillroom.distill.config import LossConfig
from stillroom.distill.losses import (
    answer_cross_entropy,
    depth_ce,
    depth_kl,
    depth_reg,
    masked_sum,
    soft_depth_bins,
    text_loss,
)
from stillroom.distill.scene_labels import label_counts
from stillroom.distill.scene_terms import scene_terms
from stillroom.engine.naming import box_error, naming_error, naming_weight
from stillroom.engine.packing import IGNORE_INDEX
from stillroom.geometry.depth import log_bin_edges
from stillroom.students.connector import VisionFeatures, measured_cells
from stillroom.students.model import StillroomStudent
from stillroom.teachers.measures import measure_error
from stillroom.training.handed import StepLosses

#: Width of the soft depth target, in bins.
SOFT_BIN_WIDTH = 1.0

DEPTH_TERMS = ("depth_ce", "depth_reg", "depth_kl")


def distill_step(student: StillroomStudent, batch: Batch, config: LossConfig) -> StepLosses:
    """Sums of every term over a micro-batch; ``count_labelled`` has what to divide them by."""
    features = seen(student, batch)
    cells = student.cells(features)
    level, above = student.config.mention_layers, student.config.measure_layers
    levels = ((level,) if config.grounding or config.measures else ()) + (
        (above,) if config.measures else ()
    )
    states = student.packed_states(student.pool_cells(cells), batch.packed, levels)
    logits = student.labelled_logits(states, batch.packed)
    labels = batch.packed.labels[batch.packed.labels != IGNORE_INDEX]
    text = text_loss(
        logits,
        labels,
        batch.topk_ids,
        batch.topk_logits,
        batch.logsumexp,
        kl_alpha=config.kl_alpha,
        temperature=config.temperature,
        has_logits=batch.has_logits,
    )
    terms = {"text": text.sum()}
    bin_logits = student.depth_bins(cells) if config.depth or config.multi_view else None
    if config.depth and bin_logits is not None:
        terms |= _depth_terms(student, bin_logits, batch)
    if config.depth_head:
        assert features.depth_map is not None, "losses.depth_head keeps photos"
        assert batch.measured is not None
        grid = student.config.vision_grid
        own = measured_cells(features.depth_map, batch.measured, grid=grid)
        error = depth_reg(own, batch.true_depth)
        terms["depth_map"] = masked_sum(error, batch.true_depth > 0)
    if config.grounding:
        named = states.levels[level][1][tuple(batch.mention_at.T)]
        terms["naming"] = torch.stack(
            [
                naming_error(cells, words.embedded(student), which).sum()
                for words, which in zip(batch.name_words, batch.cell_names.unbind(-1), strict=True)
            ]
        ).sum()
        terms["grounding"] = box_error(student.mention_boxes(named), batch.mention_box).sum()
    if config.measures and student.measures is not None:
        named = states.levels[level][1][tuple(batch.mention_at.T)]
        begins = states.levels[above][1][tuple(batch.measure_at.T)]
        said = student.measures(begins, batch.measure_kind)
        terms |= {
            "apart": measure_error(student.measures.apart(named), batch.mention_apart).sum(),
            "measure": measure_error(said, batch.measure).sum(),
        }
    if batch.scene is not None:
        terms |= scene_terms(student, cells, bin_logits, batch.scene, config)
    with torch.no_grad():
        answer_ce = answer_cross_entropy(logits, labels).sum()
    return StepLosses(terms=terms, metrics={"answer_ce": answer_ce})


def seen(student: StillroomStudent, batch: Batch) -> VisionFeatures:
    """What the encoder says of the photos: as it was kept, or anew where a part of it learns."""
    if batch.photos is None:
        return VisionFeatures(tokens=batch.tokens, depth=batch.own_depth)
    return student.features(batch.photos.float() / 255)


@torch.no_grad()
def tokens_right(student: StillroomStudent, batch: Batch) -> list[bool]:
    """Whether the student would have said each answer token, given the ones before it."""
    logits = student.forward_packed(student.vision_tokens(seen(student, batch)), batch.packed)
    labels = batch.packed.labels[batch.packed.labels != IGNORE_INDEX]
    right: list[bool] = (logits.argmax(dim=-1) == labels).tolist()
    return right


def count_labelled(batch: Batch) -> dict[str, float]:
    """Labelled positions of every term or part of one, from the labels alone."""
    answers = float((batch.packed.labels != IGNORE_INDEX).sum())
    cells = float((batch.true_depth > 0).sum())
    return {
        "text": answers,
        "answer_ce": answers,
        # Of the answer tokens, those that come with the teacher's logits.
        "topk_kl": _with_logits(batch),
        **dict.fromkeys(DEPTH_TERMS, cells),
        "depth_map": cells,
        "naming": naming_weight(batch.cell_names[..., 0]),
        "grounding": float(batch.mention_box.numel()),
        "apart": float(batch.mention_apart.isfinite().sum()),
        "measure": float(batch.measure.isfinite().sum()),
        **({} if batch.scene is None else label_counts(batch.scene)),
    }


def _with_logits(batch: Batch) -> float:
    if batch.topk_ids is None:
        return 0.0
    return float(len(batch.topk_ids) if batch.has_logits is None else batch.has_logits.sum())


def _depth_terms(
    student: StillroomStudent, logits: Float[Tensor, "b v g g bins"], batch: Batch
) -> dict[str, Tensor]:
    head = student.depth_bins
    valid = batch.true_depth > 0
    # Unmeasured cells get a harmless depth; the mask leaves them out.
    truth = torch.where(valid, batch.true_depth, 1.0)
    edges = torch.from_numpy(log_bin_edges(head.bins, head.near, head.far)).to(truth)
    soft = soft_depth_bins(truth, edges, width=SOFT_BIN_WIDTH)
    return {
        "depth_ce": masked_sum(depth_ce(logits, truth, edges), valid),
        "depth_reg": masked_sum(depth_reg(head.expected(logits), truth), valid),
        "depth_kl": masked_sum(depth_kl(logits, soft), valid),
    }
