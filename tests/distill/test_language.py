"""The language model that a student starts from: trained on words alone, opened by transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig

from stillroom.distill.build import build_student
from stillroom.distill.config import DistillConfig, StudentSizes
from stillroom.distill.language import LanguageConfig, packed_text, pretrain_language
from stillroom.engine.prefix import read_packed
from stillroom.records import BadInputError
from stillroom.students.encoders.vggt import VGGT
from stillroom.students.encoders.vggt_config import mini_config
from stillroom.students.encoders.vggt_load import save_vggt
from stillroom.testing import tiny_store
from stillroom.training.config import TrainConfig
from stillroom.training.runlog import read_log

TINY = LanguageConfig(
    train=TrainConfig(
        steps=40, scenes_per_step=2, learning_rate=1e-2, evaluate_every=20, save_every=10
    ),
    student=StudentSizes(hidden_size=16, layers=2, heads=2, intermediate_size=32, vision_grid=2),
    questions_per_scene=4,
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("language")
    tiny_store(home / "scenes", scenes=8, splits=("train", "train", "train", "val"))
    pretrain_language(TINY, scenes=home / "scenes", out=home / "run")
    return home


def test_it_learns_what_answers_look_like(trained: Path) -> None:
    rows = read_log(trained / "run" / "log.jsonl", kind="step")
    assert set(rows[0]["terms"]) == {"text"}
    last = read_log(trained / "run" / "log.jsonl", kind="eval")[-1]["metrics"]
    # The tiny questions are all alike, so that their answers need no pictures.
    assert last["right.contact"] == last["right.size"] == 1.0


def test_no_question_sees_another(trained: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(trained / "run" / "language", dtype=torch.float32)
    pairs = [([40, 41, 42], [50, 2]), ([43, 44], [51, 52, 2])]

    def states(*asked: tuple[list[int], list[int]]) -> torch.Tensor:
        packed = packed_text([asked])
        text = lm.get_input_embeddings()(packed.ids)
        with torch.no_grad():
            return read_packed(lm, text[:, :0], text, packed, visibility="prefix").text[0]

    together = states(*pairs)
    torch.testing.assert_close(together[:6], states(pairs[0])[:6])
    torch.testing.assert_close(together[6:12], states(pairs[1])[:6])


def student(home: Path, language_model: Path) -> torch.nn.Module:
    tiny = {"width": 16, "heads": 2, "encoder_heads": 2, "camera_heads": 2, "encoder_depth": 1}
    dense = {"image_size": 28, "dpt_features": 8, "dpt_channels": (4, 4, 4, 4)}
    torch.manual_seed(0)
    encoder = VGGT(mini_config(point_head=False, camera_head=False, **tiny, **dense))
    save_vggt(encoder, home / "encoder")
    config = DistillConfig(train=TINY.train, student=TINY.student)
    return build_student(config, home / "encoder", language_model)[0]


def test_a_student_starts_from_it(trained: Path, tmp_path: Path) -> None:
    begun = student(tmp_path, trained / "run" / "language")
    lm = AutoModelForCausalLM.from_pretrained(trained / "run" / "language", dtype=torch.float32)
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


def test_a_store_without_val_is_refused(tmp_path: Path) -> None:
    tiny_store(tmp_path / "scenes", scenes=2, splits=("train",))
    with pytest.raises(BadInputError, match="no questions of the four families in split val"):
        pretrain_language(TINY, scenes=tmp_path / "scenes", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
