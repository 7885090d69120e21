"""What comes before LLaVA-3D's network, against the release: pixels, depth, cameras, words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from stillroom.records import BadInputError
from stillroom.teachers.preprocess import (
    crop_intrinsics,
    frame_indices,
    metric_depth,
    pixel_values,
    resized_wh,
)
from stillroom.teachers.prompts import TEMPLATES, box_text, placeholder_ids
from stillroom.text.scanqa import clean_answer, matches
from stillroom.verify import Compared


def compare(
    name: str, ours: Tensor, theirs: Tensor, stated: Mapping[str, float] | str | None
) -> Compared:
    """One output beside ours; integers must be equal, floats within the stated tolerance.

    Raises:
        BadInputError: floats without a tolerance.
    """
    if ours.shape != theirs.shape:
        return Compared(name=name, worst=float("inf"), ok=False)
    if ours.numel() == 0:
        return Compared(name=name, worst=0.0, ok=True)
    if not theirs.is_floating_point():
        worst = float((ours.long() - theirs.long()).abs().max())
        return Compared(name=name, worst=worst, ok=worst == 0.0)
    if not isinstance(stated, Mapping):
        raise BadInputError(f"the fixture states no tolerance for {name}")
    error = (ours.double() - theirs.double()).abs()
    allowed = stated["atol"] + stated["rtol"] * theirs.double().abs()
    # Written so that a NaN fails.
    return Compared(name=name, worst=float(error.max()), ok=bool((error <= allowed).all()))


# Pixels, depth, intrinsics. ---------------------------------------------------------------------


def verify_preprocess(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Compared]:
    """Every recorded ``out.CASE.WHAT`` and the choice of views.

    Raises:
        BadInputError: a recorded output is not known.
    """
    compared = []
    for name in sorted(key for key in tensors if key.startswith("out.")):
        case, _, what = name.removeprefix("out.").rpartition(".")
        if case not in about["cases"] or what not in _PREPROCESSED:
            raise BadInputError(f"the fixture records {name}, which this comparison does not know")
        given = {
            key.removeprefix(f"input.{case}."): tensor.numpy()
            for key, tensor in tensors.items()
            if key.startswith(f"input.{case}.")
        }
        ours = _PREPROCESSED[what](given, about["cases"][case], about["crop_size"])
        compared.append(
            compare(name, torch.from_numpy(ours), tensors[name], about["tolerances"][f"out.{what}"])
        )
    wrong = [
        entry
        for entry in about.get("frame_sampling", [])
        if frame_indices(entry["available"], entry["wanted"]) != entry["indices"]
    ]
    return [*compared, _count("frame_sampling", len(wrong))]


def _crop_intrinsics(given: Mapping[str, Any], case: Mapping[str, Any], size: int) -> Any:
    refers_to = case["rgb_wh"] if case["intrinsic_refers_to"] == "rgb" else case["depth_wh"]
    return crop_intrinsics(
        given["intrinsic"],
        image_wh=(refers_to[0], refers_to[1]),
        resized_depth_wh=resized_wh(case["depth_wh"][0], case["depth_wh"][1], size),
    )


_PREPROCESSED: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any], int], Any]] = {
    "pixel_values": lambda given, case, size: pixel_values(given["rgb"], size),
    "depth": lambda given, case, size: metric_depth(given["depth_mm"] / case["depth_scale"], size),
    "intrinsic": _crop_intrinsics,
}


# Words. -----------------------------------------------------------------------------------------

# The conversations that the prompts were recorded from.
_ASKED = (
    "<image>\nWhat color is the chair? Answer the question using one word or one phrase.",
    None,
)
_TWO_ROUNDS = (("<image>\nQ1", "A1"), ("Q2", "A2"))


def verify_text(about: Mapping[str, Any]) -> list[Compared]:
    """Every recorded text: cleaning, matching, prompts, boxes, placeholders.

    ``worst`` is the number of cases that differ.

    Raises:
        BadInputError: a recorded text is not known.
    """
    recorded = {name: cases for name, cases in about.items() if not name.startswith("note")}
    unknown = sorted(set(recorded) - set(_TEXTS))
    if unknown:
        raise BadInputError(
            f"the fixture records {', '.join(unknown)}, which this comparison does not know"
        )
    return [_count(name, _TEXTS[name](cases)) for name, cases in recorded.items()]


def _count(name: str, wrong: int) -> Compared:
    return Compared(name=name, worst=float(wrong), ok=wrong == 0)


def _wrong_prompts(prompts: Mapping[str, str]) -> int:
    ours = {}
    for name in ("llava_v1", "v1"):
        template = TEMPLATES["llava_v1" if name == "llava_v1" else "v1"]
        ours[name] = template.render([_ASKED])
        ours[f"{name} two rounds, training"] = template.render(_TWO_ROUNDS)
    unknown = sorted(set(prompts) - set(ours))
    if unknown:
        raise BadInputError(f"the fixture records a prompt {unknown[0]!r} that is not known")
    return sum(ours[name] != text for name, text in prompts.items())


def _wrong_placeholders(cases: list[Any]) -> int:
    """The recorded toy tokenizer: one id per character."""
    return sum(
        placeholder_ids(text, lambda piece: [ord(sign) for sign in piece], bos_id=1) != ids
        for text, ids in cases
    )


_TEXTS: dict[str, Callable[[Any], int]] = {
    "clean_answer": lambda cases: sum(clean_answer(text) != clean for text, clean in cases),
    "answer_match": lambda cases: sum(
        list(matches(said, references)) != [bool(hit) for hit in hits]
        for said, references, hits in cases
    ),
    "prompts": _wrong_prompts,
    "box_text": lambda cases: sum(box_text(rows) != text for rows, text in cases),
    "placeholder_ids": _wrong_placeholders,
}
