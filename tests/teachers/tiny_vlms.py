"""Random vision-language checkpoints of a few thousand parameters in the hub's layouts."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from stillroom.teachers.mobilevlm import MobileVLM, MobileVLMConfig

TEXTS = [
    "Which is closer to the lamp: the red table or the blue chair? yes no left right",
    "USER ASSISTANT answer the question using one word or one phrase.",
]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 7,
    "projection_dim": 8,
}
QWEN_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
QWEN_IDS = {
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
    "image_token_id": 5,
    "video_token_id": 6,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_tokenizer(special: tuple[str, ...], **named: Any) -> PreTrainedTokenizerFast:
    """A byte-level BPE with ``special`` as its first ids."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        TEXTS * 3,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=list(special),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **named)


def save_llava(folder: Path) -> Path:
    tokenizer = tiny_tokenizer(
        ("<pad>", "<s>", "</s>", "<image>"), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model", **CLIP},
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer), **ends},
        image_token_index=3,
    )
    pixels = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    processor = LlavaProcessor(
        image_processor=pixels,
        tokenizer=tokenizer,
        patch_size=7,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return _save(folder, LlavaForConditionalGeneration, config, processor)


def save_paligemma(folder: Path) -> Path:
    tokenizer = tiny_tokenizer(
        ("<pad>", "<bos>", "<eos>", "<image>"),
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    pixels = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pixels.image_seq_length = 16
    processor = PaliGemmaProcessor(image_processor=pixels, tokenizer=tokenizer)
    vision = {k: v for k, v in CLIP.items() if k != "projection_dim"}
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **vision, "vision_use_head": False},
        # The processor has added its thousand tokens for places by now.
        text_config={
            "model_type": "gemma",
            **TEXT,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "vocab_size": len(tokenizer),
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=3,
        projection_dim=32,
        hidden_size=32,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _save(folder, PaliGemmaForConditionalGeneration, config, processor)


def save_qwen2_5(folder: Path) -> Path:
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text({"mrope_section": [1, 1, 2]}),
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 7,
            # One window is two by two tokens, a picture four by four: order matters.
            "window_size": 28,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [1],
        },
        **QWEN_IDS,
    )
    return _save_qwen(folder, Qwen2_5_VLForConditionalGeneration, config)


def save_qwen3(folder: Path) -> Path:
    config = Qwen3VLConfig(
        text_config={
            **_qwen_text({"mrope_section": [2, 1, 1], "mrope_interleaved": True}),
            "head_dim": 8,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "patch_size": 7,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0, 1],
            "num_position_embeddings": 64,
        },
        **QWEN_IDS,
    )
    return _save_qwen(folder, Qwen3VLForConditionalGeneration, config)


def save_mobilevlm(folder: Path, projector: str = "ldpnetv2") -> Path:
    """The released layout: a Llama's files, CLIP and projector in one shard, no processor."""
    tokenizer = tiny_tokenizer(("<unk>", "<s>", "</s>"), bos_token="<s>", eos_token="</s>")
    config = MobileVLMConfig(
        **TEXT,
        vocab_size=len(tokenizer),
        bos_token_id=1,
        eos_token_id=2,
        mm_vision_tower="openai/not-a-known-tower",
        mm_vision_select_layer=-2,
        mm_vision_select_feature="patch",
        mm_projector_type=projector,
        mm_hidden_size=16,
        mm_use_im_start_end=False,
        mm_use_im_patch_token=False,
        image_aspect_ratio="pad",
        vision_tower_type="clip",
        # The release leaves this to the tower's own page; 24 x 24 patches as there.
        vision_config={**CLIP, "image_size": 48, "patch_size": 2},
    )
    torch.manual_seed(0)
    model = MobileVLM(config)
    _spread(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SAVERS = {
    "llava": save_llava,
    "paligemma": save_paligemma,
    "qwen2_5": save_qwen2_5,
    "qwen3": save_qwen3,
    "mobilevlm": save_mobilevlm,
}


def _qwen_text(rope: dict[str, Any]) -> dict[str, Any]:
    words = len(tiny_tokenizer(QWEN_TOKENS))
    rope = {"rope_type": "default", "rope_theta": 10_000.0, **rope}
    return {
        **TEXT,
        "vocab_size": words,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "rope_parameters": rope,
    }


def _save_qwen(folder: Path, kind: Any, config: Any) -> Path:
    """As the hub has it: no processor_config.json, the template in the tokenizer's config."""
    tokenizer = tiny_tokenizer(
        QWEN_TOKENS,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=list(QWEN_TOKENS[1:]),
    )
    pixels = Qwen2VLImageProcessorPil(
        patch_size=7, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=56 * 56
    )
    _save(folder, kind, config, tokenizer)
    pixels.save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": CHATML}))
    return folder


def _save(folder: Path, kind: Any, config: Any, processor: Any) -> Path:
    torch.manual_seed(0)
    model = kind(config)
    _spread(model)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _spread(model: torch.nn.Module) -> None:
    """Weights wide enough that photos and questions change what is said."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1.5 / parameter[0].numel() ** 0.5)
