"""Weights and words of a released LLaVA-3D: names, shards, CLIP's own page, the hub, tokenizers."""

import importlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from released import write_released, write_shards, write_tokenizer
from safetensors.torch import load_file, save_file

from stillroom import api, registry
from stillroom.records import BadInputError
from stillroom.teachers.hub import fetch
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_load import load_llava3d
from stillroom.teachers.options import TeacherOptions
from stillroom.teachers.prompts import HubTokenizer
from stillroom.testing import tiny_store


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


class Hub:
    """The hub as ``snapshot_download`` shows it: commits of one page, of which main is the last."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commits: dict[str, list[str]] = {}
        self.asked: list[tuple[str, str | None, list[str]]] = []

    def push(self, name: str, commit: str, folder: Path) -> None:
        """A new commit of a page, with the files of a folder."""
        shutil.copytree(folder, self.root / "pushed" / name / commit)
        self.commits.setdefault(name, []).append(commit)

    def snapshot_download(
        self,
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        local_files_only: bool = False,
    ) -> str:
        if local_files_only or name not in self.commits:
            raise OSError(f"no {name} here")
        self.asked.append((name, revision, allow_patterns))
        commit = revision or self.commits[name][-1]
        place = self.root / "cache" / name / "snapshots" / commit
        place.mkdir(parents=True, exist_ok=True)
        for pattern in allow_patterns:
            for file in (self.root / "pushed" / name / commit).glob(pattern):
                shutil.copy(file, place)
        return str(place)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    import huggingface_hub

    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_hub_id_is_fetched_with_bin_shards_only_if_there_are_no_others(
    tmp_path: Path, hub: Hub
) -> None:
    write_released(tmp_path / "bin", kind="bin")
    hub.push("someone/llava-3d", "aaa", tmp_path / "bin")
    assert list(fetch("someone/llava-3d").glob("*.bin"))
    assert [revision for _, revision, _ in hub.asked] == [None, "aaa"]
    assert ["*.bin" in patterns for *_, patterns in hub.asked] == [False, True]
    save_file({"x": torch.zeros(1)}, tmp_path / "bin" / "model.safetensors")
    hub.push("someone/llava-3d", "bbb", tmp_path / "bin")
    found = fetch("someone/llava-3d")
    assert (found.name, list(found.glob("*.bin"))) == ("bbb", [])
    assert fetch("someone/llava-3d@aaa").name == "aaa"
    assert fetch("someone/llava-3d", revision="aaa").name == "aaa"


def test_a_hub_teacher_is_described_by_its_commit_without_its_weights(
    tmp_path: Path, hub: Hub
) -> None:
    write_released(tmp_path / "made")
    hub.push("someone/llava-3d", "0123abc", tmp_path / "made")
    about = registry.describe("llava3d:someone/llava-3d")
    assert about["revision"] == "0123abc"
    assert about["name"] == "llava3d:someone/llava-3d"
    assert "tower" not in about
    assert not any("*.safetensors" in patterns for *_, patterns in hub.asked)
    assert registry.vocabulary("llava3d:someone/llava-3d").rows == 320
    assert not any("*.safetensors" in patterns for *_, patterns in hub.asked)


def test_weights_are_of_the_commit_that_is_recorded_though_main_moves(
    tmp_path: Path, hub: Hub
) -> None:
    write_released(tmp_path / "made")
    hub.push("someone/llava-3d", "aaa", tmp_path / "made")
    scenes, out = tiny_store(tmp_path / "scenes", scenes=1), tmp_path / "labels"
    moved: list[str] = []
    plain = hub.snapshot_download

    def moving(name: str, **asked: Any) -> str:
        found = plain(name, **asked)
        if not moved:  # just after the first look
            hub.push("someone/llava-3d", "bbb", tmp_path / "made")
            moved.append("bbb")
        return found

    hub_module = importlib.import_module("huggingface_hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub_module, "snapshot_download", moving)
        api.label(
            scenes,
            teacher="llava3d:someone/llava-3d",
            out=out,
            options=TeacherOptions(max_new_tokens=2),
        )
    about = open_labels(out).settings["teacher"]
    assert (about["name"], about["revision"]) == ("llava3d:someone/llava-3d", "aaa")
    fetched = [revision for _, revision, patterns in hub.asked if "*.safetensors" in patterns]
    assert set(fetched) == {"aaa"}


def test_a_vision_tower_outside_of_the_checkpoint_is_in_the_fingerprint(
    tmp_path: Path, hub: Hub
) -> None:
    inside, bare = tmp_path / "inside", tmp_path / "bare"
    write_released(inside)
    write_released(bare, clip_inside=False)
    assert "tower" not in registry.describe(f"llava3d:{inside}")
    first = registry.describe(f"llava3d:{bare}")["tower"]
    page = tmp_path / "bare-clip"
    weights = load_file(page / "model.safetensors")
    changed = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(changed, page / "model.safetensors", metadata={"format": "pt"})
    registry.weights_digest.cache_clear()
    assert registry.describe(f"llava3d:{bare}")["tower"] != first
    # The tower on a page of its own.
    raw = json.loads((bare / "config.json").read_text())
    sizes = json.loads((page / "config.json").read_text())
    named = raw | {"mm_vision_tower": "openai/clip", "vision_config": sizes}
    (bare / "config.json").write_text(json.dumps(named))
    hub.push("openai/clip", "ccc", page)
    assert registry.describe(f"llava3d:{bare}")["tower"] == "openai/clip@ccc"


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
