"""How a teacher is run: precision, prompt, what is kept. Imports no torch.

One record for every kind of teacher; what a kind cannot do it refuses. All that may change a
label stands in the fingerprint of a label store, where it differs from the default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from stillroom.records import BadInputError

Device = Literal["auto", "cpu", "cuda"]

#: How hard an endpoint is tried (``http_client.Patience``).
PATIENCE = ("timeout_s", "retries", "longest_wait_s", "requests_per_minute")
#: Where and at which pace a run computes changes no label beyond rounding, so that a store may be
#: finished elsewhere.
_NOT_IN_FINGERPRINT = frozenset({"device", "offload", "questions_at_once", *PATIENCE})
#: Logits kept where nobody says how many.
TOPK = 32


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """How a teacher is loaded and asked; the defaults repeat its own habits.

    Kinds in brackets are those that know an option; llava3d: is teacher_mini, too.
    """

    # [llava3d: vlm:] Weights: auto keeps what is stored above 10^9 parameters and takes float32
    # below; int8 and int4 (llava3d:) quantise the language model's linear layers on loading.
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] = "auto"
    # [llava3d:] What quantises: torchao (int8 also without a GPU) or bitsandbytes (GPU only).
    quantizer: Literal["torchao", "bitsandbytes"] = "torchao"
    # [llava3d:] Depths, poses, points and voxel means; auto is the checkpoint's, which is float32
    # for the released one. bfloat16 repeats the published evaluation.
    geometry: Literal["auto", "float32", "bfloat16"] = "auto"
    # [llava3d:] Words around a question; auto is the checkpoint's. v1 is what the released one was
    # trained with, llava_v1 what it was evaluated with.
    template: Literal["auto", "llava_v1", "v1", "mini"] = "auto"
    # [llava3d:] Wording of the question; auto goes by the question's family, see docs/teachers.md.
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
    # [llava3d:] 2d shows the first view alone, without depth and pose, as a single photo.
    vision: Literal["3d", "2d"] = "3d"
    # [llava3d: vlm: http:] Views per scene, evenly spaced; none is the checkpoint's number, of vlm:
    # and http: 8.
    frames: int | None = None
    # [vlm: http:] Photos are shrunk to this many pixels on the longer side first; none leaves them
    # as they are, but is 768 of http:.
    image_size: int | None = None
    # [http:] Quality of the JPEGs that are sent, 1 to 95; none is 90.
    jpeg_quality: int | None = None
    # [vlm: http:] Stands below questions that want a short answer; none asks for one word or one
    # phrase, "" for nothing.
    instruction: str | None = None
    # [llava3d: vlm: http:] Longest answer in tokens; none is the checkpoint's, of vlm: and
    # http: 64.
    max_new_tokens: int | None = None
    # [llava3d: vlm: http:] Logits kept for every answer position; none is 32, of http: 20.
    topk: int | None = None
    # [llava3d: vlm:] Layers whose attention is averaged, first-last, counted from 0 ("24-31");
    # none: four equal parts of the language model.
    attention_layers: tuple[str, ...] = ()
    # [llava3d: vlm:] One reading of the scene for all its questions; without it each question
    # reads it anew.
    share_scene: bool = True
    # [vlm:] Questions read side by side, each with a copy of the scene's keys and values; none
    # is 4.
    questions_at_once: int | None = None
    # [llava3d: vlm:] Where to compute; auto is the GPU if there is one.
    device: Device = "auto"
    # [llava3d:] Keep the weights in main memory and bring one layer at a time to the device.
    offload: bool = False
    # [http:] Seconds for one try, to the last byte of the reply; none is 60.
    timeout_s: float | None = None
    # [http:] Tries after the first; none is 5.
    retries: int | None = None
    # [http:] Longest wait that an endpoint may ask for, in seconds; none is 120.
    longest_wait_s: float | None = None
    # [http:] Requests that a worker begins per minute at most; none is no limit.
    requests_per_minute: float | None = None

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

    def chosen(self) -> dict[str, Any]:
        """All that is not the default, by name."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if getattr(self, f.name) != f.default
        }

    def only(self, known: Collection[str], *, of: str) -> dict[str, Any]:
        """``chosen``, where a kind of teacher knows every one of it.

        Raises:
            BadInputError: naming an option that it has not.
        """
        chosen = self.chosen()
        for name in chosen:
            if name not in known:
                flag = name.replace("_", "-")
                raise BadInputError(f"{of} has no option {name}; leave --options.{flag} out")
        return chosen

    def fingerprint(self) -> dict[str, Any]:
        """All that may change a label and is not the default."""
        return {k: v for k, v in self.chosen().items() if k not in _NOT_IN_FINGERPRINT}

    def layer_groups(self, layers: int) -> list[range]:
        """``layer_groups`` of the layers that were chosen."""
        return layer_groups(self.attention_layers, layers)


def layer_groups(texts: Sequence[str], layers: int) -> list[range]:
    """The groups of a language model of ``layers`` layers whose attention is averaged.

    Raises:
        BadInputError: a group names layers that the model has not.
    """
    if not texts:
        count = min(4, layers)
        return [range(layers * i // count, layers * (i + 1) // count) for i in range(count)]
    groups = [layer_range(text) for text in texts]
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
