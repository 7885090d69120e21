"""A student that starts from a language model's own checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from stillroom.distill.build import build_student, language_config
from stillroom.distill.config import DistillConfig, StudentSizes
from stillroom.records import BadInputError
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_config import mini_config
from stillroom.students.encoders.vggt_load import save_vggt
from stillroom.training.config import TrainConfig

SIZES = StudentSizes(hidden_size=16, layers=2, heads=2, intermediate_size=32, vision_grid=2)


@pytest.fixture
def language(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(language_config(SIZES)).save_pretrained(tmp_path / "language")
    return tmp_path / "language"


def student(home: Path, language_model: Path) -> torch.nn.Module:
    tiny = {"width": 16, "heads": 2, "encoder_heads": 2, "camera_heads": 2, "encoder_depth": 1}
    dense = {"image_size": 28, "dpt_features": 8, "dpt_channels": (4, 4, 4, 4)}
    torch.manual_seed(0)
    encoder = VGGT(mini_config(point_head=False, camera_head=False, **tiny, **dense))
    save_vggt(encoder, home / "encoder")
    config = DistillConfig(train=TrainConfig(steps=1, scenes_per_step=1), student=SIZES)
    return build_student(config, home / "encoder", language_model)[0]


def test_a_student_starts_from_it(language: Path, tmp_path: Path) -> None:
    begun = student(tmp_path, language)
    lm = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    for name, value in lm.state_dict().items():
        assert torch.equal(begun.language_model.state_dict()[name], value), name


def test_what_is_no_language_model_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is no language model's checkpoint"):
        student(tmp_path, tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    AutoModelForCausalLM.from_config(
        GPTNeoXConfig(vocab_size=40, intermediate_size=32, **sizes)
    ).save_pretrained(tmp_path / "other")
    with pytest.raises(BadInputError, match="knows 40 tokens"):
        student(tmp_path, tmp_path / "other")
    wide = GPTNeoXConfig(vocab_size=1024, intermediate_size=32, **sizes | {"hidden_size": 32})
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    with pytest.raises(BadInputError, match="has hidden_size 16, the language model"):
        student(tmp_path, tmp_path / "wide")
    (tmp_path / "wide" / "model.safetensors").unlink()
    with pytest.raises(BadInputError, match="language model"):
        student(tmp_path, tmp_path / "wide")
