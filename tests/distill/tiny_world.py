"""The parts of a distillation at the smallest size: encoder, language model, tokenizers, labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from stillroom.distill.batches import Batches, items_by_scene
from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig, LossConfig, SlotConfig, StudentSizes
from stillroom.distill.features import cache_features
from stillroom.distill.run import distill
from stillroom.distill.targets import cache_targets, find_teacher
from stillroom.records import Signal
from stillroom.scenes.store import open_store
from stillroom.students.encoders.depth_anything import DepthAnything, DepthAnythingConfig
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_load import save_vggt
from stillroom.teachers.label import label_scenes
from stillroom.teachers.label_store import open_labels
from stillroom.testing import FixedTeacher, tiny_encoder_config, tiny_store
from stillroom.text.tokenizer import load_tokenizer
from stillroom.training.config import TrainConfig

TINY = DistillConfig(
    train=TrainConfig(
        steps=6, scenes_per_step=2, learning_rate=1e-2, evaluate_every=3, save_every=1, log_every=1
    ),
    student=StudentSizes(hidden_size=16, layers=1, heads=2, intermediate_size=32, vision_grid=2),
    slots=SlotConfig(count=2),
    questions_per_scene=4,
)
EVERY = LossConfig(
    measures=True, detection=True, detection_iou=0.5, spatial=True, multi_view=True, feature=True
)
SIZES = StudentSizes(
    hidden_size=16,
    layers=1,
    heads=2,
    intermediate_size=32,
    vision_grid=2,
    detection_queries=4,
    detection_width=32,
    detection_layers=1,
    relation_width=8,
)
ALL = replace(TINY, losses=EVERY, student=SIZES)
PARTS = {
    *("text", "depth_ce", "depth_reg", "depth_kl", "naming", "grounding"),
    *("apart", "measure"),
    *("detection_class", "detection_box", "detection_iou"),
    *("spatial_feature", "spatial_views", "spatial_relation", "multi_view", "feature"),
}
WIDTH = 10
TEXTS = (
    "Which is closer to the lamp: the red table or the blue chair?",
    "Are the red table and the blue chair touching? yes no left right",
    "Seen from the first photo, is the red table left or right of the blue chair?",
)


def write_world(home: Path, *, signals: tuple[Signal, ...] = ("answers", "topk_logits")) -> Path:
    """Scenes, labels of a fixed teacher with the made worlds' vocabulary, and a random encoder."""
    tiny_store(home / "scenes", scenes=8, splits=("train", "train", "train", "val"))
    label_scenes(
        home / "scenes",
        FixedTeacher,
        home / "labels",
        teacher={"name": "fixed"},
        signals=signals,
        vocabulary=load_tokenizer().vocabulary() if "topk_logits" in signals else None,
    )
    save_vggt(VGGT(tiny_encoder_config(), seed=0), home / "encoder")
    return home


def write_depth_anything(folder: Path) -> Path:
    """A random Depth Anything 3 of six blocks of 16, with a head beside it."""
    config = DepthAnythingConfig(width=16, heads=2, depth=6, alternate_from=2, image_size=28)
    trunk = DepthAnything(config, seed=0)
    state = {f"model.backbone.pretrained.{k}": v for k, v in trunk.state_dict().items()}
    folder.mkdir(parents=True)
    save_file(state | {"model.head.norm.weight": torch.ones(3)}, folder / "model.safetensors")
    return folder


def write_llama_tokenizer(folder: Path) -> Path:
    """In the manner of the teacher's: SentencePiece spaces, <unk>, <s> and </s> as 0, 1 and 2."""
    bpe = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    bpe.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
    _train(bpe, ["<unk>", "<s>", "</s>"], 200)
    return _write(bpe, folder, {"bos_token": "<s>", "eos_token": {"content": "</s>"}})


def write_qwen_tokenizer(folder: Path) -> Path:
    """In the manner of Qwen's: bytes, one token that ends and pads, none to begin with."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    _train(bpe, ["<|endoftext|>"], 400)
    end = "<|endoftext|>"
    return _write(bpe, folder, {"bos_token": None, "eos_token": end, "pad_token": end})


def _train(bpe: tokenizers.Tokenizer, specials: list[str], size: int) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if size > 256 else [],
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)


def _write(bpe: tokenizers.Tokenizer, folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_qwen(folder: Path) -> Path:
    """A random Qwen2 of two layers of 16, as the hub has them: weights, config, tokenizer."""
    config: Any = CONFIG_MAPPING["qwen2"](
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    return write_qwen_tokenizer(folder)


def run(world: Path, out: Path, config: DistillConfig = TINY) -> str:
    return distill(
        config,
        scenes=world / "scenes",
        labels=world / "labels",
        out=out,
        encoder=world / "encoder",
    )


def batches_of(world: Path, folder: Path, config: DistillConfig = ALL) -> tuple[Any, Batches]:
    """A student that can learn all that the config asks for, and its training batches."""
    store, labels = open_store(world / "scenes"), open_labels(world / "labels")
    ids = store.scene_ids("train")
    teacher = find_teacher(labels, ids, settings=labels.settings)
    student, processor = build_student(
        config, world / "encoder", feature_width=0 if teacher is None else teacher.width
    )
    features = cache_features(
        student, processor, store, ids, folder, encoder="x", scenes_per_pass=2
    )
    targets = cache_targets(
        store, ids, folder, processor=processor, grid=2, losses=config.losses, teacher=teacher
    )
    questions = {scene_id: store.questions(scene_id) for scene_id in ids}
    prompts = {q.question_id: q.prompt for asked in questions.values() for q in asked}
    said = {scene_id: labels.labels(scene_id) for scene_id in ids}
    items = items_by_scene(questions, said, prompts, processor.tokenizer)
    batches = Batches(
        config, features, items, prompts=prompts, tokenizer=processor.tokenizer, targets=targets
    )
    return student, batches
