"""Weights and words of a released LLaVA-3D: names, shards, CLIP's own page, the hub, tokenizers."""

import logging
import shutil
from pathlib import Path

import pytest
import torch
from released import write_released, write_shards, write_tokenizer
from safetensors.torch import load_file, save_file

from stillroom import registry
from stillroom.records import BadInputError
from stillroom.teachers import llava3d_files
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_load import load_llava3d
from stillroom.teachers.prompts import HubTokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_released(tmp_path / "llava-3d")
    return tmp_path / "llava-3d"


# Names of weights. ------------------------------------------------------------------------------


def rewrite(checkpoint: Path, rename: dict[str, str] | None = None, **more: torch.Tensor) -> None:
    """Write the shards again, with keys renamed by prefix and others added."""
    state = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        state |= load_file(file)
        file.unlink()
    for old, new in (rename or {}).items():
        state = {
            new + name.removeprefix(old) if name.startswith(old) else name: tensor
            for name, tensor in state.items()
        }
    write_shards(checkpoint, state | more, shards=3, kind="safetensors")


@pytest.mark.parametrize(
    "rename",
    [
        {"": "base_model.model."},
        {"": "module."},
        {"model.mm_projector.": "mm_projector.", "model.video_tower.": "video_tower."},
        {"model.vision_tower.vision_tower.vision_model.": "model.vision_tower.vision_tower."},
    ],
    ids=["peft", "ddp", "without model.", "without vision_model."],
)
def test_names_are_understood_as_tools_write_them(checkpoint: Path, rename: dict[str, str]) -> None:
    before = load_llava3d(checkpoint).state_dict()
    rewrite(checkpoint, rename)
    after = load_llava3d(checkpoint).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_dead_weights_are_ignored_and_the_log_says_so(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
        "model.image_newline": torch.zeros(32),
    }
    rewrite(checkpoint, **dead)
    with caplog.at_level(logging.INFO):
        load_llava3d(checkpoint)
    assert all(f"ignored {name}" in caplog.text for name in dead)


def test_an_unknown_key_is_refused_by_name(checkpoint: Path) -> None:
    rewrite(checkpoint, **{"model.grounding_head.weight": torch.zeros(2)})
    with pytest.raises(BadInputError, match=r"LLaVA-3D lacks: model\.grounding_head\.weight"):
        load_llava3d(checkpoint)


def test_a_key_that_stands_in_two_shards_is_refused(checkpoint: Path) -> None:
    files = sorted(checkpoint.glob("*.safetensors"))
    name, tensor = next(iter(load_file(files[0]).items()))
    save_file(load_file(files[1]) | {name: tensor}, files[1])
    with pytest.raises(BadInputError, match="twice"):
        load_llava3d(checkpoint)


# CLIP inside or outside of the shards. ----------------------------------------------------------


def test_clip_comes_from_its_own_folder_where_the_shards_lack_it(tmp_path: Path) -> None:
    state = write_released(tmp_path / "bare", clip_inside=False)
    loaded = load_llava3d(tmp_path / "bare").state_dict()
    assert all(torch.equal(loaded[name], tensor.float()) for name, tensor in state.items())
    shutil.rmtree(tmp_path / "bare-clip")
    with pytest.raises(BadInputError, match="without its sizes"):
        load_llava3d(tmp_path / "bare")


def test_clip_inside_is_compared_with_its_own_folder(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        load_llava3d(checkpoint)
    assert "CLIP equals" in caplog.text
    page = checkpoint.with_name("llava-3d-clip") / "model.safetensors"
    weights = load_file(page)
    name = next(key for key in weights if key.endswith("pre_layrnorm.weight"))
    save_file(weights | {name: weights[name] + 1}, page, metadata={"format": "pt"})
    load_llava3d(checkpoint)
    assert "in 1 of 55 tensors; the checkpoint's is used" in caplog.text


# The hub. ---------------------------------------------------------------------------------------


def test_a_hub_id_is_fetched_with_bin_shards_only_if_there_are_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    write_released(tmp_path / "bin", kind="bin")
    asked_for: list[list[str]] = []

    def snapshot(name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        assert name == "someone/llava-3d"
        asked_for.append(allow_patterns)
        return str(tmp_path / "bin")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert llava3d_files.fetch("someone/llava-3d") == tmp_path / "bin"
    assert ["*.safetensors" in patterns for patterns in asked_for] == [True, False]
    assert "*.bin" in asked_for[1]


def test_a_hub_teacher_is_described_by_its_commit_without_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    place = tmp_path / "snapshots" / "0123abc"
    write_released(place)
    files: list[str] = []

    def download(name: str, file: str) -> str:
        files.append(file)
        return str(place / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    about = registry.describe("llava3d:someone/llava-3d")
    assert about["revision"] == "0123abc"
    assert files == ["config.json"]


# The tokenizer of the release, which is a SentencePiece model. -----------------------------------


def test_pieces_get_the_ids_that_sentencepiece_gives_them(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    write_tokenizer(tmp_path, entries=320)
    (tmp_path / "tokenizer.json").unlink()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("What color is the chair near the table? Answer with one word.\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=310,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = HubTokenizer(tmp_path, bos_id=1, eos_id=2)
    assert ours.vocab_size == 310
    for piece in ("\nWhat color? ASSISTANT:", ". Describe the chair", ", ", "table", "a </s> b\n2"):
        assert ours.encode(piece) == theirs.encode(piece), piece
    assert ours.encode_answer("table") == [*theirs.encode("table"), 2]


def test_a_sentencepiece_model_without_its_package_is_one_sentence(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stillroom.teachers import prompts

    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>")
    monkeypatch.setattr(prompts, "_can_read_sentencepiece", lambda: False)
    with pytest.raises(BadInputError, match=r"needs sentencepiece: pip install 'stillroom\[tea"):
        LLaVA3DTeacher.from_folder(checkpoint)
