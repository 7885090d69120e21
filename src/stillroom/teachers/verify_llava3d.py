"""LLaVA-3D against outputs recorded from the public release: every stage, stated tolerances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stillroom.records import BadInputError, require_file
from stillroom.teachers.llava3d_config import LLaVA3DConfig, read_json
from stillroom.teachers.llava3d_load import fill
from stillroom.teachers.llava3d_model import Assembled, LLaVA3D, SceneTokens
from stillroom.teachers.verify_llava3d_input import compare, verify_preprocess, verify_text
from stillroom.verify import Compared


def verify_llava3d(stem: Path) -> list[Compared]:
    """Every recorded ``out.*`` of a fixture beside ours.

    Raises:
        BadInputError: a file is missing or damaged, or a recorded output is not known.
    """
    about = read_json(Path(f"{stem}.json"), "fixture")
    if about.get("case") == "preprocess":
        return verify_preprocess(about, _tensors(stem))
    if "prompts" in about:
        return verify_text(about)
    if "clip_config" not in about:
        raise BadInputError(f"{stem}.json is no LLaVA-3D fixture: it has no clip_config")
    return _verify_model(about, _tensors(stem))


def _tensors(stem: Path) -> dict[str, Tensor]:
    file = require_file(Path(f"{stem}.safetensors"), "fixture")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise BadInputError(f"{file} is not a readable safetensors file ({error})") from None


def fixture_config(about: Mapping[str, Any]) -> LLaVA3DConfig:
    """The configuration that a fixture states, its constants included."""
    constants = about["constants"]
    return LLaVA3DConfig.from_json(
        {
            **about["config"],
            "vision_config": about["clip_config"],
            "voxel_size": constants["voxel_size_m"],
            "max_visual_tokens": constants["max_visual_tokens"],
        }
    )


def _verify_model(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[Compared]:
    recorded = {name: t for name, t in tensors.items() if name.startswith("out.")}
    unknown = sorted(set(recorded) - set(_STAGES))
    if unknown:
        raise BadInputError(
            f"the fixture records {', '.join(unknown)}, which this comparison does not know"
        )
    model = LLaVA3D(fixture_config(about)).eval()
    state = {name[6:]: t for name, t in tensors.items() if name.startswith("state.")}
    fill(model, state.items())
    inputs = {name[6:]: t for name, t in tensors.items() if name.startswith("input.")}
    tolerances = about["tolerances"]
    default = tolerances.get("default")
    with torch.no_grad():
        case = _run(model, inputs, about)
        return [
            compare(name, _STAGES[name](case), recorded[name], tolerances.get(name, default))
            for name in sorted(recorded)
        ]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """One fixture run through our model once; stages are read off it."""

    model: LLaVA3D
    inputs: Mapping[str, Tensor]
    scenes: list[SceneTokens]
    visual: list[Tensor]
    batch: Assembled
    last_only: bool
    greedy: Mapping[str, Any]

    @property
    def is_3d(self) -> bool:
        return "depths" in self.inputs


def _run(model: LLaVA3D, inputs: Mapping[str, Tensor], about: Mapping[str, Any]) -> _Case:
    if "depths" in inputs:
        cameras = [inputs[name] for name in ("images", "depths", "poses", "intrinsics")]
        seeds = [about["cap_seed"] or 0] * len(cameras[0])
        scenes = model.scene_tokens(*cameras, cap_seeds=seeds)
        visual = [scene.tokens for scene in scenes]
    else:
        scenes, visual = [], list(model.image_tokens(inputs["images"]))
    batch = model.assemble(
        inputs["input_ids"],
        visual,
        clicks=inputs.get("clicks"),
        attention_mask=inputs.get("attention_mask"),
    )
    return _Case(
        model=model,
        inputs=inputs,
        scenes=scenes,
        visual=visual,
        batch=batch,
        last_only=about["shapes"]["out.logits"][1] == 1,
        greedy=about["greedy"],
    )


def _clip_features(case: _Case) -> Tensor:
    images = case.inputs["images"]
    if not case.is_3d:
        return case.model.clip_features(images)
    return case.model.clip_features(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def _points(case: _Case) -> Tensor:
    return case.model.patch_points(*(case.inputs[n] for n in ("depths", "poses", "intrinsics")))


def _points_bf16(case: _Case) -> Tensor:
    before = case.model.settings
    case.model.settings = replace(before, geometry_dtype="bfloat16")
    try:
        return _points(case)
    finally:
        case.model.settings = before


def _visual_tokens(case: _Case) -> Tensor:
    return torch.cat(case.visual) if case.is_3d else torch.stack(case.visual)


def _kept(case: _Case) -> Tensor:
    return torch.cat(
        [torch.arange(len(s.pooled)) if s.kept is None else s.kept for s in case.scenes]
    )


def _last_rows(case: _Case, values: Tensor) -> Tensor:
    """Rows beyond a sample's end zeroed, or the last row alone, as the fixture has it."""
    values = values * case.batch.mask[..., None]
    return values[:, -1:] if case.last_only else values


def _hidden(case: _Case) -> Tensor:
    return case.model.model(
        inputs_embeds=case.batch.embeds, attention_mask=case.batch.mask.long(), use_cache=False
    ).last_hidden_state


def _attention(case: _Case) -> Tensor:
    """Attention of each sample's last position, [layers batch heads keys]."""
    language = case.model.model
    language.set_attn_implementation("eager")
    try:
        rows = language(
            inputs_embeds=case.batch.embeds,
            attention_mask=case.batch.mask.long(),
            use_cache=False,
            output_attentions=True,
        ).attentions
    finally:
        language.set_attn_implementation("sdpa")
    last = case.batch.mask.sum(dim=1) - 1
    each = torch.arange(len(last))
    return torch.stack([layer[each, :, last] for layer in rows])


def _greedy(case: _Case) -> Tensor:
    """Each sample alone, the end token suppressed, through transformers' own ``generate``."""
    settings = case.greedy
    # transformers types ``generate`` for a protocol of its own.
    generate: Any = case.model.generate  # type: ignore[misc]
    answers = [
        generate(
            inputs_embeds=embeds[mask][None],
            attention_mask=torch.ones(1, int(mask.sum()), dtype=torch.long),
            max_new_tokens=settings["max_new_tokens"],
            suppress_tokens=settings["suppressed_ids"],
            do_sample=False,
        )
        for embeds, mask in zip(case.batch.embeds, case.batch.mask, strict=True)
    ]
    return torch.cat(answers)


_STAGES: dict[str, Callable[[_Case], Tensor]] = {
    "out.clip_features": _clip_features,
    "out.coords3d": _points,
    "out.coords3d_bf16": _points_bf16,
    "out.pos_embed": lambda case: case.model.embed_points(_points(case)),
    "out.point_to_voxel": lambda case: torch.stack([s.voxels.of_patch for s in case.scenes]),
    "out.voxel_counts": lambda case: torch.cat([s.voxels.counts for s in case.scenes]),
    "out.voxel_offsets": lambda case: torch.tensor([len(s.pooled) for s in case.scenes]).cumsum(0),
    "out.pooled_features": lambda case: torch.cat([s.pooled for s in case.scenes]),
    "out.kept_indices": _kept,
    "out.visual_tokens": _visual_tokens,
    "out.prompt_features": lambda case: case.model.coordinate_tokens(case.inputs["clicks"]),
    "out.inputs_embeds": lambda case: case.batch.embeds,
    "out.attention_mask": lambda case: case.batch.mask.long(),
    "out.last_hidden": lambda case: _last_rows(case, _hidden(case)),
    "out.logits": lambda case: _last_rows(case, case.model.lm_head(_hidden(case))),
    "out.attn_last_query": _attention,
    "out.greedy_ids": _greedy,
}
