"""A labelling before it is begun: what the scenes really hold, and what it would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stillroom.records import BadInputError, Scene, Signal
from stillroom.scenes.store import SceneStore, open_store
from stillroom.teachers.cost import Cost, Load, cost, parameters
from stillroom.teachers.label_check import shown_bytes
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_voxels import patch_points, voxelise
from stillroom.teachers.options import TOPK, TeacherOptions
from stillroom.teachers.preprocess import scene_inputs
from stillroom.teachers.prompts import TEMPLATES, PromptTokenizer, open_tokenizer

#: Scenes looked at for their visual tokens and the length of their questions.
SAMPLED = 8


def dry_run(
    scenes: Path,
    config: LLaVA3DConfig,
    *,
    folder: Path | None,
    signals: Sequence[Signal],
    options: TeacherOptions,
    tflops: float,
) -> tuple[Cost, list[str]]:
    """The cost of labelling a scene store, and lines that say it with what was assumed.

    Visual tokens are counted on a few scenes' own depth; words with the tokenizer in ``folder``,
    where one lies there. ``tflops`` are sustained TFLOP/s of all devices together.

    Raises:
        BadInputError: no such scenes, nothing to ask, or an option that the teacher has not.
    """
    config = config.adjusted(options)
    if tflops <= 0:
        raise BadInputError(f"--tflops must be positive, got {tflops}")
    store = open_store(scenes)
    questions = sum(1 for _ in store.question_ids())
    load, notes = measured_load(store, config, folder, options)
    found = cost(
        config,
        load,
        signals=signals,
        scenes=len(store),
        questions=questions,
        topk=options.topk or TOPK,
        groups=len(options.layer_groups(config.num_hidden_layers)),
        shared=options.share_scene,
        photo=options.vision == "2d",
    )
    return found, [*_lines(found, config, load, tflops), *notes]


def measured_load(
    store: SceneStore, config: LLaVA3DConfig, folder: Path | None, options: TeacherOptions
) -> tuple[Load, list[str]]:
    """Mean lengths on a few scenes spread over a store, and what had to be assumed instead."""
    every = store.scene_ids()
    ids = every[:: max(1, len(every) // SAMPLED)][:SAMPLED]
    if options.vision == "2d":
        load, notes = Load.of_photo(config), ["the first view alone is read, as a photo"]
    else:
        load, notes = _measured_scenes(store, ids, config)
    tokenizer = _tokenizer(folder, config)
    if tokenizer is None:
        notes.append(
            f"words assumed as in ScanQA, without a tokenizer: {load.before} before the scene, "
            f"{load.question:g} after it, {load.answer:g} of an answer"
        )
    else:
        template = TEMPLATES[config.prompt]
        asked = [q for scene_id in ids for q in store.questions(scene_id)]
        if not asked:
            raise BadInputError(f"{store.path} holds no questions to label")
        words = [len(template.question_ids(tokenizer, q, task=options.task)) for q in asked]
        said = float(np.mean([len(tokenizer.encode(q.answer)) + 1 for q in asked]))
        load = replace(
            load,
            before=len(template.prefix_ids(tokenizer)),
            question=float(np.mean(words)),
            answer=said,
            reference=said,
        )
        notes.append(
            f"words counted on {len(asked)} questions; answers taken to be as long as the true ones"
        )
    longest = config.max_new_tokens
    load = replace(load, answer=min(load.answer, longest), reference=min(load.reference, longest))
    return load, notes


def _measured_scenes(
    store: SceneStore, ids: Sequence[str], config: LLaVA3DConfig
) -> tuple[Load, list[str]]:
    """Visual tokens of a few scenes; where they have no depth, an assumption."""
    try:
        counts = [visual_tokens(store.scene(scene_id), config) for scene_id in ids]
    except BadInputError as error:
        visual = min(Load().visual, config.max_visual_tokens)
        return Load(visual=visual), [f"visual tokens assumed: {visual:,} ({error})"]
    counted = f"visual tokens counted on {len(ids)} scenes: {min(counts):,} to {max(counts):,}"
    return Load(visual=round(float(np.mean(counts)))), [counted]


def visual_tokens(scene: Scene, config: LLaVA3DConfig) -> int:
    """How many tokens a scene becomes: the voxels its depth occupies, up to the cap."""
    inputs = scene_inputs(scene, config)
    arrays = (inputs.depths, inputs.poses, inputs.intrinsics)
    points = patch_points(*(torch.from_numpy(array) for array in arrays), grid=config.clip.grid)
    voxels = voxelise(points.flatten(0, 1), size=config.voxel_size)
    return min(len(voxels.counts), config.max_visual_tokens)


def _tokenizer(folder: Path | None, config: LLaVA3DConfig) -> PromptTokenizer | None:
    if folder is None or not any((folder / n).exists() for n in _TOKENIZER_FILES):
        return None
    return open_tokenizer(
        folder, bos_id=config.bos_token_id, eos_id=config.eos_token_id, vocab_size=config.vocab_size
    )


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")


def _lines(found: Cost, config: LLaVA3DConfig, load: Load, tflops: float) -> list[str]:
    per_question, per_scene = found.question_bytes, found.scene_bytes
    a_question = f"a question: {load.question:.0f} + {load.answer:.0f} tokens, "
    if found.shared:
        often = "once for all its questions"
        a_question += (
            f"{shown_flop(found.question_flop)} ({shown_flop(found.unshared_flop)} were the scene "
            "read anew)"
        )
    else:
        often = "anew for each question"
        a_question += f"{shown_flop(found.unshared_flop)} with the scene, which is read anew"
    return [
        f"{found.scenes:,} scenes, {found.questions:,} questions; teacher of "
        f"{parameters(config):,} parameters, {shown_bytes(found.weights_bytes)} in 16 bits, "
        f"{shown_bytes(found.cache_bytes)} of keys and values a scene",
        f"a scene: {found.views} views, {load.visual:,} visual tokens, "
        f"{shown_flop(found.scene_flop)}, {often}",
        a_question,
        f"in all {shown_flop(found.flop)}: {found.hours(tflops):,.3g} hours at {tflops:g} TFLOP/s "
        "sustained (--tflops says otherwise)",
        "bytes a question: "
        + ", ".join(f"{name} {shown_bytes(size)}" for name, size in per_question.items()),
        "bytes a scene: "
        + ", ".join(f"{name} {shown_bytes(size)}" for name, size in per_scene.items()),
        f"in all {shown_bytes(found.bytes)} in {found.files:,} files",
    ]


def shown_flop(flop: float) -> str:
    """A count of operations with its unit."""
    for unit in ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"):
        if flop < 1000 or unit == "EFLOP":
            return f"{flop:.3g} {unit}"
        flop /= 1000
    raise AssertionError("the loop ends with EFLOP")
