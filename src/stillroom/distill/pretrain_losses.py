"""What pretraining asks of the encoder: sums over labelled positions, and figures for people."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stillroom.distill.pretrain_batches import PretrainBatch
from stillroom.distill.pretrain_config import PretrainConfig
from stillroom.students.encoders.vggt_camera import decode_pose, invert_w2c

#: A refinement counts this much of the one after it.
REFINEMENT_DECAY = 0.6
#: Error at which a confidence of 2 is best, in the unit of its loss.
CONFIDENT_ERROR = 0.05


@dataclass(frozen=True, kw_only=True)
class ObjectGuess:
    """What the object head says of every cell."""

    category: Float[Tensor, "b v r c k"]
    colour: Float[Tensor, "b v r c l"]
    # Metres in view0.
    center: Float[Tensor, "b v r c 3"]
    # Logarithm of metres.
    log_size: Float[Tensor, "b v r c 3"]


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What the encoder and its object head say of a batch; maps of its dense views only."""

    depth: Float[Tensor, "b k h w"]
    depth_conf: Float[Tensor, "b k h w"]
    points: Float[Tensor, "b k h w 3"]
    points_conf: Float[Tensor, "b k h w"]
    pose_steps: list[Float[Tensor, "b v 9"]]
    objects: ObjectGuess | None
    # The same from an early round, centres in the view's own camera.
    early: ObjectGuess | None = None


def loss_sums(
    said: Prediction, batch: PretrainBatch, config: PretrainConfig
) -> dict[str, Float[Tensor, ""]]:
    """Every term's sum, weighted; divided by ``label_counts`` they are means."""
    depth_error = (said.depth.log() - _log_depth(batch)).abs()
    point_error = (_squash(said.points) - _squash(batch.points)).abs().mean(dim=-1)
    known = batch.depth > 0
    sums = {
        "depth": (depth_error * known).sum(),
        "depth_edges": _edge_error(said.depth.log() - _log_depth(batch), known),
        "points": (point_error * known).sum(),
        "confidence": (_confidence_loss(said.depth_conf, depth_error) * known).sum()
        + (_confidence_loss(said.points_conf, point_error) * known).sum(),
        "camera": _camera_error(said.pose_steps, batch.pose_enc),
    }
    weights = dict(vars(config.weights))
    if said.objects is not None:
        sums |= _object_sums(said.objects, batch, config, batch.facts[..., 2:5])
    if said.early is not None:
        early = _object_sums(said.early, batch, config, batch.center_cam)
        sums |= {f"early_{name}": value for name, value in early.items()}
        weights |= {f"early_{name}": weights["early"] * weights[name] for name in early}
    return {name: weights[name] * value for name, value in sums.items() if weights[name]}


def label_counts(batch: PretrainBatch, config: PretrainConfig) -> dict[str, float]:
    """How much is labelled, by term; from labels only."""
    known = batch.depth > 0
    pixels = float(known.sum())
    pairs = float(_pairs(known, -1).sum() + _pairs(known, -2).sum())
    things = float((batch.cells > 0).sum())
    coloured = float((batch.facts[..., 1] > 0).sum())
    objects = {
        "category": things + config.background_weight * (batch.cells.numel() - things),
        "colour": coloured,
        "center": things,
        "size": things,
    }
    return {
        "depth": pixels,
        "depth_edges": pairs,
        "points": pixels,
        "confidence": 2 * pixels,
        "camera": float(batch.pose_enc.shape[0] * batch.pose_enc.shape[1]),
        **objects,
        **{f"early_{name}": count for name, count in objects.items()},
    }


def _log_depth(batch: PretrainBatch) -> Float[Tensor, "b k h w"]:
    return batch.depth.clamp_min(1e-3).log()


def _squash(points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
    """The point head's own logits: near things count by metres, far ones by proportion."""
    return points.sign() * points.abs().log1p()


def _confidence_loss(
    confidence: Float[Tensor, "*n"], error: Float[Tensor, "*n"]
) -> Float[Tensor, "*n"]:
    """Least where the part above 1 is CONFIDENT_ERROR / error; leaves the error itself alone."""
    above = confidence - 1
    return above * error.detach() - CONFIDENT_ERROR * above.log()


def _pairs(known: Bool[Tensor, "b k h w"], axis: int) -> Bool[Tensor, "b k h2 w2"]:
    """Neighbours along an axis that are both known."""
    count = known.shape[axis] - 1
    return known.narrow(axis, 0, count) & known.narrow(axis, 1, count)


def _edge_error(
    difference: Float[Tensor, "b k h w"], known: Bool[Tensor, "b k h w"]
) -> Float[Tensor, ""]:
    steps = [(difference.diff(dim=axis).abs() * _pairs(known, axis)).sum() for axis in (-1, -2)]
    return steps[0] + steps[1]


def _camera_error(
    steps: list[Float[Tensor, "b v 9"]], truth: Float[Tensor, "b v 9"]
) -> Float[Tensor, ""]:
    """Sum over views of |t| [m] + |q| + |fov|; q and -q are the same turn, so the nearer counts."""
    total = truth.new_zeros(())
    scale = sum(REFINEMENT_DECAY**k for k in range(len(steps)))
    for age, said in enumerate(reversed(steps)):
        aligned = (said[..., 3:7].detach() * truth[..., 3:7]).sum(dim=-1, keepdim=True)
        turn = torch.where(aligned < 0, -truth[..., 3:7], truth[..., 3:7])
        target = torch.cat([truth[..., :3], turn, truth[..., 7:]], dim=-1)
        total = total + REFINEMENT_DECAY**age / scale * (said - target).abs().sum()
    return total


def _object_sums(
    said: ObjectGuess,
    batch: PretrainBatch,
    config: PretrainConfig,
    centers: Float[Tensor, "b v r c 3"],
) -> dict[str, Float[Tensor, ""]]:
    thing = batch.cells > 0
    category = F.cross_entropy(
        said.category.flatten(0, 3), batch.facts[..., 0].flatten().long(), reduction="none"
    )
    weight = torch.where(thing.flatten(), 1.0, config.background_weight)
    facts = batch.facts[thing]  # [n 8]
    # Colours count from 1; 0 is an object without a colour's name.
    colour = F.cross_entropy(
        said.colour[thing], facts[:, 1].long() - 1, reduction="sum", ignore_index=-1
    )
    return {
        "category": (category * weight).sum(),
        "colour": colour,
        "center": _smooth(said.center[thing], centers[thing]),
        "size": _smooth(said.log_size[thing], facts[:, 5:8]),
    }


def _smooth(said: Float[Tensor, "n 3"], truth: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    return F.smooth_l1_loss(said, truth, beta=0.1, reduction="sum") / 3


# Figures. ------------------------------------------------------------------------------------


def figure_sums(
    said: Prediction, batch: PretrainBatch
) -> dict[str, tuple[Float[Tensor, ""], Float[Tensor, ""]]]:
    """Sum and count of each validation figure: shares, metres and degrees."""
    known = batch.depth > 0
    truth, depth = batch.depth[known], said.depth[known]
    ratio = torch.maximum(depth / truth, truth / depth)
    sums = {
        "depth_abs_rel": _with_count((depth - truth).abs() / truth),
        "depth_delta1": _with_count((ratio < 1.25).float()),
        "points_m": _with_count((said.points - batch.points).norm(dim=-1)[known]),
    }
    # The first camera is given; the others are found.
    ours = invert_w2c(decode_pose(said.pose_steps[-1][:, 1:], (1, 1))[0])
    theirs = invert_w2c(decode_pose(batch.pose_enc[:, 1:], (1, 1))[0])
    sums["camera_m"] = _with_count((ours[..., :3, 3] - theirs[..., :3, 3]).norm(dim=-1))
    trace = (ours[..., :3, :3] * theirs[..., :3, :3]).sum(dim=(-1, -2))
    sums["camera_deg"] = _with_count(((trace - 1) / 2).clamp(-1, 1).acos().rad2deg())
    if said.objects is not None:
        sums |= _object_figures(said.objects, batch)
    if said.early is not None:
        thing = batch.cells > 0
        off = (said.early.center[thing] - batch.center_cam[thing]).norm(dim=-1)
        sums["early_center_m"] = _with_count(off)
    return sums


def _object_figures(said: ObjectGuess, batch: PretrainBatch) -> dict[str, tuple[Tensor, Tensor]]:
    thing = batch.cells > 0
    facts = batch.facts[thing]
    right = said.category.argmax(dim=-1) == batch.facts[..., 0]
    named = facts[:, 1] > 0
    colour = said.colour[thing].argmax(dim=-1) + 1 == facts[:, 1]
    size_ratio = (said.log_size[thing] - facts[:, 5:8]).abs()
    return {
        "cell_accuracy": _with_count(right.float()),
        "object_accuracy": _with_count(right[thing].float()),
        "colour_accuracy": _with_count(colour[named].float()),
        "center_m": _with_count((said.center[thing] - facts[:, 2:5]).norm(dim=-1)),
        "log_size": _with_count(size_ratio),
    }


def _with_count(values: Float[Tensor, "*n"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    return values.sum(), values.new_tensor(float(values.numel()))
