"""A tiny random LLaVA-3D written as the release writes the 7B: fields, key names, shards, words."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionModel

from stillroom.teachers.llava3d_config import ClipSize, LLaVA3DConfig
from stillroom.teachers.llava3d_model import LLaVA3D

CLIP = ClipSize(
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=2,
    intermediate_size=32,
    image_size=28,
    patch_size=7,
)
_WORDS = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions. USER: Which is closer to the "
    "lamp: the red table or the blue chair? Answer the question using one word or one phrase. "
    "ASSISTANT: Are they touching? left right yes no"
)


def released_config(tower: str) -> dict[str, object]:
    """``config.json`` with the released fields and no other, at tiny sizes."""
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "freeze_mm_mlp_adapter": False,
        "hidden_act": "silu",
        "hidden_size": 32,
        "image_aspect_ratio": "square",
        "initializer_range": 0.02,
        "intermediate_size": 48,
        "max_position_embeddings": 512,
        "mm_hidden_size": CLIP.hidden_size,
        "mm_patch_merge_type": "flat",
        "mm_projector_lr": None,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_video_tower": "SpatialAwareModule",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": tower,
        "model_type": "llava_llama",
        "num_attention_heads": 4,
        "num_frames": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 4,
        "num_sample_tokens": 1152,
        "pad_token_id": 0,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "tokenizer_model_max_length": 512,
        "tokenizer_padding_side": "right",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.37.2",
        "tune_mm_mlp_adapter": False,
        "use_cache": False,
        "use_mm_proj": True,
        "vocab_size": 320,
    }


def write_released(
    folder: Path, *, shards: int = 3, kind: str = "safetensors", clip_inside: bool = True
) -> dict[str, Tensor]:
    """A checkpoint folder with CLIP's own page beside it; the weights, in bfloat16."""
    folder.mkdir(parents=True)
    tower = folder.with_name(f"{folder.name}-clip")
    (folder / "config.json").write_text(json.dumps(released_config(str(tower)), indent=2))
    torch.manual_seed(3)
    clip = CLIPVisionModel(CLIP.transformers())
    clip.to(torch.bfloat16).save_pretrained(tower)
    model = LLaVA3D(LLaVA3DConfig.read(folder)).to(torch.bfloat16)
    model.model.vision_tower.vision_tower.vision_model.load_state_dict(clip.state_dict())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Wider than it is drawn, so that answers differ between questions.
    state["lm_head.weight"] *= 20
    written = {
        name: tensor for name, tensor in state.items() if clip_inside or "vision_tower" not in name
    }
    write_shards(folder, written, shards=shards, kind=kind)
    write_tokenizer(folder, entries=320)
    return state


def write_shards(folder: Path, state: dict[str, Tensor], *, shards: int, kind: str) -> None:
    """Weights in several files and the index that names them, as transformers 4 writes both."""
    stem, names = ("pytorch_model", "bin") if kind == "bin" else ("model", "safetensors")
    files = [f"{stem}-{i:05d}-of-{shards:05d}.{names}" for i in range(1, shards + 1)]
    weight_map = {}
    for number, file in enumerate(files):
        part = dict(list(state.items())[number::shards])
        weight_map |= dict.fromkeys(part, file)
        if kind == "bin":
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file, metadata={"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / f"{stem}.{names}.index.json").write_text(json.dumps(index))


def write_tokenizer(folder: Path, *, entries: int) -> None:
    """A Llama-style BPE of at most ``entries``: byte fallback, a marker for the leading space."""
    marker = "\u2581"
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Prepend(marker),
            tokenizers.normalizers.Replace(" ", marker),
        ]
    )
    bytes_of = [f"<0x{value:02X}>" for value in range(256)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=entries - len(bytes_of),
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
    )
    bpe.train_from_iterator([_WORDS], trainer)
    written = json.loads(bpe.to_str())
    vocab = written["model"]["vocab"]
    first = ["<unk>", "<s>", "</s>", *bytes_of]
    order = first + [token for token in sorted(vocab, key=vocab.get) if token not in first]
    written["model"]["vocab"] = {token: number for number, token in enumerate(order)}
    assert len(order) <= entries
    decoders = tokenizers.decoders
    finished = tokenizers.Tokenizer.from_str(json.dumps(written))
    finished.decoder = decoders.Sequence(
        [decoders.Replace(marker, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    finished.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "add_bos_token": True,
                "add_eos_token": False,
                "bos_token": "<s>",
                "clean_up_tokenization_spaces": False,
                "eos_token": "</s>",
                "legacy": False,
                "model_max_length": 512,
                "pad_token": "<unk>",
                "padding_side": "right",
                "sp_model_kwargs": {},
                "tokenizer_class": "LlamaTokenizer",
                "unk_token": "<unk>",
            }
        )
    )
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    )
