"""How a teacher is run: precision, prompt, what is kept. Imports no torch.

One record for every kind of teacher; what a kind cannot do it refuses. All that may change a
label stands in the fingerprint of a label store, where it differs from the default.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal

from stillroom.records import BadInputError

#: Where a run computes changes no label beyond rounding, so a store may be finished elsewhere.
_NOT_IN_FINGERPRINT = frozenset({"device", "offload"})


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher is loaded and asked; the defaults repeat its checkpoint's own habits."""

    # Weights: auto keeps what is stored above 10^9 parameters and takes float32 below; int8 and
    # int4 quantise the language model's linear layers on loading.
    dtype: Literal["auto", "float32", "bfloat16", "int8", "int4"] = "auto"
    # What quantises: torchao (int8 also without a GPU) or bitsandbytes (GPU only).
    quantizer: Literal["torchao", "bitsandbytes"] = "torchao"
    # Depths, poses, points and voxel means; auto is the checkpoint's, which is float32 for the
    # released one. bfloat16 repeats the published evaluation.
    geometry: Literal["auto", "float32", "bfloat16"] = "auto"
    # Words around a question; auto is the checkpoint's. v1 is what the released one was trained
    # with, llava_v1 what it was evaluated with.
    template: Literal["auto", "llava_v1", "v1", "mini"] = "auto"
    # Wording of the question; auto goes by the question's family, see docs/teachers.md.
    task: Literal[
        "auto",
        "plain",
        "short",
        "scanqa",
        "sqa3d",
        "object_qa",
        "object_caption",
        "scan2cap",
        "localise",
        "scene_caption",
        "grounding",
    ] = "auto"
    # 2d shows the first view alone, without depth and pose, as a single photo.
    vision: Literal["3d", "2d"] = "3d"
    # Views per scene, instead of the checkpoint's number.
    frames: int | None = None
    # Longest answer in tokens, instead of the checkpoint's.
    max_new_tokens: int | None = None
    # Logits kept for every answer position.
    topk: int = 32
    # Layers whose attention is averaged, first-last, counted from 0 ("24-31"); none: four equal
    # parts of the language model.
    attention_layers: tuple[str, ...] = ()
    # One reading of the scene for all its questions; without it each question reads it anew.
    share_scene: bool = True
    # Where to compute; auto is the GPU if there is one.
    device: Literal["auto", "cpu", "cuda"] = "auto"
    # Keep the weights in main memory and bring one layer at a time to the device.
    offload: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "max_new_tokens", "topk"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 100_000:
                raise BadInputError(
                    f"the teacher option {name} must be between 1 and 100000, got {value}"
                )
        if self.offload and self.dtype in ("int8", "int4"):
            raise BadInputError(
                f"offload moves plain weights and cannot move {self.dtype} ones; choose one of both"
            )
        for text in self.attention_layers:
            layer_range(text)

    def fingerprint(self) -> dict[str, Any]:
        """All that may change a label and is not the default."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in _NOT_IN_FINGERPRINT and getattr(self, f.name) != f.default
        }

    def layer_groups(self, layers: int) -> list[range]:
        """The groups of a language model of ``layers`` layers whose attention is averaged.

        Raises:
            BadInputError: a group names layers that the model has not.
        """
        if not self.attention_layers:
            count = min(4, layers)
            return [range(layers * i // count, layers * (i + 1) // count) for i in range(count)]
        groups = [layer_range(text) for text in self.attention_layers]
        for group in groups:
            if group.stop > layers:
                raise BadInputError(
                    f"attention layers {group.start}-{group.stop - 1} are asked for, but the "
                    f"teacher has {layers}, counted from 0"
                )
        return groups


def layer_range(text: str) -> range:
    """ "24-31" or "7" as a range. Raises BadInputError for anything else."""
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise BadInputError(f"attention layers are written first-last, such as 24-31, got {text!r}")
    return range(int(match[1]), int(match[2] or match[1]) + 1)
