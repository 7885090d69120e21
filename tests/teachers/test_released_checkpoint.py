"""The released layout through the command line, and every way in which it can be wrong."""

import json
from pathlib import Path

import pytest
import torch
from released import released_config, write_released

from stillroom import registry
from stillroom.cli import main
from stillroom.records import BadInputError
from stillroom.scenes.store import open_store, write_manifest, write_shard
from stillroom.teachers.label_check import problems
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.teachers.llava3d_load import load_llava3d
from stillroom.teachers.options import TeacherOptions
from stillroom.testing import tiny_scene, tiny_store


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_released(tmp_path / "llava-3d")
    return tmp_path / "llava-3d"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return tiny_store(tmp_path / "scenes", scenes=2, questions=3)


def command(scenes: Path, checkpoint: Path | str, out: Path, *more: str) -> int:
    """``stillroom label``; its exit code."""
    words = ["label", str(scenes), "--teacher", f"llava3d:{checkpoint}", "--out", str(out)]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--options.max-new-tokens", "4", *more])
    return int(stop.value.code or 0)


def complaint(
    capsys: pytest.CaptureFixture[str], scenes: Path, checkpoint: Path, out: Path, *more: str
) -> str:
    """The one sentence of a refusal, with exit code 2."""
    assert command(scenes, checkpoint, out, *more) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("stillroom: ")
    assert "\n" not in said
    assert "Traceback" not in said
    return said


# The way through. -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_released_layout_is_labelled_by_the_command_line(
    kind: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "llava-3d"
    state = write_released(folder, kind=kind)
    assert len(list(folder.glob("*-of-00003.*"))) == 3
    assert command(scenes, folder, tmp_path / "labels") == 0
    store = open_labels(tmp_path / "labels")
    assert len(store) == 6
    assert problems(tmp_path / "labels") == []
    about = store.settings["teacher"]
    assert about["reads"]["prompt"] == "llava_v1"
    assert about["reads"]["geometry_dtype"] == "float32"
    assert about["options"] == {"max_new_tokens": 4}
    # The rows are those of the weights that were written, asked without any file between.
    teacher = LLaVA3DTeacher.from_folder(folder, TeacherOptions(max_new_tokens=4))
    for name, tensor in teacher.model.state_dict().items():
        assert torch.equal(tensor, state[name].float()), name
    scene = open_store(scenes).scene(store.scene_ids()[0])
    expected = teacher.label(scene, open_store(scenes).questions(scene.scene_id), ["topk_logits"])
    for kept, label in zip(store.labels(scene.scene_id), expected, strict=True):
        assert kept.answer_ids.tolist() == label.answer_ids.tolist()
        assert (kept.topk_ids == label.topk_ids).all()


def test_both_system_prompts_can_be_chosen_and_make_two_stores(
    checkpoint: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(scenes, checkpoint, tmp_path / "labels") == 0
    said = complaint(capsys, scenes, checkpoint, tmp_path / "labels", "--options.template", "v1")
    assert "other settings" in said
    assert command(scenes, checkpoint, tmp_path / "v1", "--options.template", "v1") == 0
    prompts = {
        name: LLaVA3DTeacher.from_folder(checkpoint, TeacherOptions(template=name)).template.system
        for name in ("llava_v1", "v1")
    }
    assert "curious human" in prompts["llava_v1"]
    assert "curious user" in prompts["v1"]
    about = registry.describe(f"llava3d:{checkpoint}", TeacherOptions(template="v1"))
    assert about["reads"]["prompt"] == "v1"


def test_device_and_offload_are_no_part_of_the_fingerprint(checkpoint: Path) -> None:
    plain = registry.describe(f"llava3d:{checkpoint}")
    moved = registry.describe(f"llava3d:{checkpoint}", TeacherOptions(device="cpu", offload=True))
    assert plain == moved
    assert plain != registry.describe(f"llava3d:{checkpoint}", TeacherOptions(dtype="int8"))


def test_bfloat16_geometry_can_be_chosen(checkpoint: Path) -> None:
    scene = tiny_scene(1)
    fine, coarse = (
        LLaVA3DTeacher.from_folder(checkpoint, TeacherOptions(geometry=geometry)).open(scene)
        for geometry in ("auto", "bfloat16")
    )
    assert fine.teacher.model.geometry_dtype == torch.float32
    assert coarse.teacher.model.geometry_dtype == torch.bfloat16
    assert coarse.tokens.tokens.shape != fine.tokens.tokens.shape or not torch.equal(
        coarse.tokens.tokens, fine.tokens.tokens
    )


def test_the_released_fields_alone_describe_the_7b() -> None:
    raw = released_config("openai/clip-vit-large-patch14-336") | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tokenizer_model_max_length": 4096,
        "mm_hidden_size": 1024,
        "num_frames": 20,
    }
    assert LLaVA3DConfig.from_json(raw) == LLaVA3DConfig()


def test_weights_compute_in_the_precision_asked_for(checkpoint: Path) -> None:
    for name in ("float32", "bfloat16"):
        teacher = LLaVA3DTeacher.from_folder(checkpoint, TeacherOptions(dtype=name))
        assert teacher.model.dtype == getattr(torch, name)
        assert teacher.label(tiny_scene(0), [], ["answers"]) == []


# Bad input: one sentence, exit code 2. ----------------------------------------------------------


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def cut_a_shard(folder: Path) -> None:
    file = folder / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": [1]}')


def grow_the_tokenizer(folder: Path) -> None:
    edit_config(folder, vocab_size=300)


def lose_the_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def spoil_the_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": 7}}')


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lose_a_shard, "lacks model-00002-of-00003.safetensors, one of 3"),
        (cut_a_shard, "model-00003-of-00003.safetensors is not a readable safetensors file"),
        (empty_the_index, "names no weight files"),
        (grow_the_tokenizer, "the model only 300; they belong to different checkpoints"),
        (lose_the_tokenizer, "holds no usable tokenizer"),
        (spoil_the_tokenizer, "holds no usable tokenizer"),
    ],
)
def test_a_spoilt_checkpoint_is_refused_in_one_sentence(
    spoil: object,
    sentence: str,
    checkpoint: Path,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(checkpoint)
    assert sentence in complaint(capsys, scenes, checkpoint, tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


def test_layers_that_the_teacher_lacks_leave_no_store_behind(
    checkpoint: Path, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--options.attention-layers", "2-7", "--signals", "answers", "attention")
    said = complaint(capsys, scenes, checkpoint, tmp_path / "labels", *more)
    assert "attention layers 2-7 are asked for, but the teacher has 4" in said
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize("kept", [0, 40, 0.5])
def test_a_cut_bin_shard_is_refused(kept: float, tmp_path: Path) -> None:
    write_released(tmp_path / "bin", kind="bin")
    file = tmp_path / "bin" / "pytorch_model-00001-of-00003.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    with pytest.raises(BadInputError, match="not a readable weight file"):
        load_llava3d(tmp_path / "bin")


def test_a_bin_shard_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write_released(tmp_path / "bin", kind="bin")
    marker = tmp_path / "ran"
    torch.save({"x": _Runs(marker)}, tmp_path / "bin" / "pytorch_model-00001-of-00003.bin")
    with pytest.raises(BadInputError, match="not a readable weight file"):
        load_llava3d(tmp_path / "bin")
    assert not marker.exists()


class _Runs:
    """Unpickling this would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.file,)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden_size": 10**12}, "hidden_size = 1000000000000, expected more than 0"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"num_attention_heads": 0, "num_key_value_heads": 0}, "num_attention_heads = 0"),
        ({"num_key_value_heads": 3}, "no multiple of num_key_value_heads 3"),
        ({"num_frames": -1}, "num_frames = -1"),
        ({"eos_token_id": [2, 3]}, "eos_token_id"),
        ({"eos_token_id": 320}, "outside of its 320 entries"),
        ({"rope_theta": "big"}, "rope_theta = 'big'"),
        ({"rope_parameters": [1]}, "rope_parameters"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps = nan"),
        ({"hidden_act": "boom"}, "expected one of silu"),
        ({"image_aspect_ratio": "anyres"}, "expected one of square, pad"),
        ({"mm_vision_select_layer": -9}, "is not among the 4 hidden states"),
        ({"vision_config": {"patch_size": 0}}, "patch_size = 0"),
        ({"vision_config": [1]}, "must be an object"),
    ],
)
def test_a_hostile_config_is_refused_before_anything_is_built(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    tower = tmp_path / "clip"
    tower.mkdir()
    (tower / "config.json").write_text(
        json.dumps(
            {
                "hidden_size": 24,
                "num_attention_heads": 2,
                "num_hidden_layers": 3,
                "image_size": 28,
                "patch_size": 7,
            }
        )
    )
    (tmp_path / "config.json").write_text(json.dumps(released_config(str(tower)) | changes))
    with pytest.raises(BadInputError) as refusal:
        LLaVA3DConfig.read(tmp_path)
    assert sentence in str(refusal.value)


def test_a_capture_without_depth_is_refused_and_a_photo_is_read_if_asked_for(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from stillroom.records import asked

    scene = tiny_scene(0)
    bare = replace(
        scene,
        views=tuple(replace(v, depth=None, c2w=None, intrinsics=None) for v in scene.views[:1]),
    )
    write_shard(tmp_path / "photo", 0, [bare], [asked(bare.scene_id, "What is this?")])
    write_manifest(tmp_path / "photo", {})
    said = complaint(capsys, tmp_path / "photo", checkpoint, tmp_path / "labels")
    assert "none of its views has depth" in said
    assert "vision 2d" in said
    out = tmp_path / "labels-2d"
    assert command(tmp_path / "photo", checkpoint, out, "--options.vision", "2d") == 0
    assert len(open_labels(out)) == 1


def test_a_scene_larger_than_the_teacher_s_positions_is_refused(checkpoint: Path) -> None:
    edit_config(checkpoint, max_position_embeddings=128)
    teacher = LLaVA3DTeacher.from_folder(checkpoint)
    with pytest.raises(BadInputError, match="leaves none for a question"):
        teacher.open(tiny_scene(1, views=2))


def test_a_hub_that_does_not_answer_is_one_sentence(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import huggingface_hub

    def refuse(*_: object, **__: object) -> str:
        raise OSError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    said = complaint(capsys, scenes, Path("someone/llava-3d"), tmp_path / "labels")
    assert said == "stillroom: cannot fetch someone/llava-3d from the hub: no route to host"
