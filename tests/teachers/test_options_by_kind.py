"""One set of options for all kinds of teachers: what each makes of it, and what it refuses."""

import base64
import io
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_http_teacher import Reply, said, serving
from tiny_vlms import save_llava

from stillroom import cli, registry
from stillroom.records import BadInputError
from stillroom.teachers import llava3d_config
from stillroom.teachers.http import HttpOptions
from stillroom.teachers.http_client import Patience
from stillroom.teachers.label_store import open_labels
from stillroom.teachers.options import TeacherOptions
from stillroom.teachers.vlm import VlmOptions
from stillroom.testing import tiny_questions, tiny_scene, tiny_store

ENDPOINT = "http:http://host/v1#m"
#: A value of every option that is not its default.
OTHER: dict[str, Any] = {
    "dtype": "bfloat16",
    "quantizer": "bitsandbytes",
    "geometry": "bfloat16",
    "template": "v1",
    "task": "plain",
    "vision": "2d",
    "frames": 1,
    "image_size": 20,
    "jpeg_quality": 50,
    "instruction": "Be brief.",
    "max_new_tokens": 3,
    "topk": 5,
    "attention_layers": ("0-1", "2"),
    "share_scene": False,
    "questions_at_once": 2,
    "device": "cpu",
    "offload": True,
    "timeout_s": 9.0,
    "retries": 0,
    "longest_wait_s": 7.0,
    "requests_per_minute": 600.0,
}
PACE = {"timeout_s", "retries", "longest_wait_s", "requests_per_minute"}
VLM = {
    *("dtype", "frames", "image_size", "instruction", "max_new_tokens", "topk"),
    *("attention_layers", "share_scene", "questions_at_once", "device"),
}
HTTP = {"frames", "image_size", "jpeg_quality", "instruction", "max_new_tokens", "topk", *PACE}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store(tmp_path_factory.mktemp("scenes") / "tiny", scenes=2)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return int(ended.value.code or 0)


def test_every_option_belongs_to_a_kind() -> None:
    names = {field.name for field in fields(TeacherOptions)}
    assert set(OTHER) == names
    assert names == llava3d_config.OPTIONS | VLM | HTTP


def test_a_vlm_is_asked_as_was_chosen() -> None:
    chosen = VlmOptions.of(TeacherOptions(**{name: OTHER[name] for name in VLM}))
    same = {name: OTHER[name] for name in VLM - {"frames"}}
    assert chosen == VlmOptions(**same, views=1)
    assert VlmOptions.of(TeacherOptions()) == VlmOptions()


def test_an_endpoint_is_asked_as_was_chosen() -> None:
    chosen = HttpOptions.of(TeacherOptions(**{name: OTHER[name] for name in HTTP}))
    same = {name: OTHER[name] for name in HTTP - {"frames"} - PACE}
    patience = Patience(**{name: OTHER[name] for name in PACE})
    assert chosen == HttpOptions(**same, views=1, patience=patience)
    assert HttpOptions.of(TeacherOptions()) == HttpOptions()


@pytest.mark.parametrize("option", OTHER)
def test_an_option_is_taken_or_refused_by_name(option: str, llava: Path) -> None:
    chosen = TeacherOptions(**{option: OTHER[option]})
    teachers = {
        "teacher_mini": llava3d_config.OPTIONS,
        f"vlm:{llava}": VLM,
        ENDPOINT: HTTP,
        "truth": set(),
    }
    for name, known in teachers.items():
        if option in known:
            registry.describe(name, chosen)
            continue
        flag = option.replace("_", "-")
        sentence = f"has no option {option}; leave --options.{flag} out"
        for use in (registry.describe, registry.teacher):
            with pytest.raises(BadInputError, match=sentence):
                use(name, chosen)


def test_what_changes_labels_changes_the_fingerprint_and_nothing_else(llava: Path) -> None:
    silent = PACE | {"device", "questions_at_once"}
    for name, known in ((f"vlm:{llava}", VLM), (ENDPOINT, HTTP)):
        plain = registry.describe(name)
        for option in known:
            other = registry.describe(name, TeacherOptions(**{option: OTHER[option]}))
            assert (other == plain) == (option in silent), (name, option)
    same = TeacherOptions(topk=32)
    for name in ("teacher_mini", f"vlm:{llava}"):
        assert registry.describe(name, same) == registry.describe(name)


def test_a_vlm_refuses_what_it_cannot_do(llava: Path) -> None:
    name = f"vlm:{llava}"
    with pytest.raises(BadInputError, match="not quantised, so int8 cannot be had"):
        registry.describe(name, TeacherOptions(dtype="int8"))
    with pytest.raises(BadInputError, match="but the teacher has 3, counted from 0"):
        registry.teacher(name, TeacherOptions(attention_layers=("0-3",)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_sentence(llava: Path) -> None:
    with pytest.raises(BadInputError, match="torch sees no GPU"):
        registry.teacher(f"vlm:{llava}", TeacherOptions(device="cuda"))


def test_without_sharing_every_question_reads_the_scene_and_says_the_same(llava: Path) -> None:
    scene = tiny_scene(1)
    said_by = []
    for share in (True, False):
        options = TeacherOptions(share_scene=share, max_new_tokens=4)
        teacher: Any = registry.teacher(f"vlm:{llava}", options)
        said_by.append([one.answer_ids for one in teacher.label(scene, tiny_questions(scene), [])])
        assert (teacher.open(scene).reader.prefix is not None) == share
    for one, other in zip(*said_by, strict=True):
        np.testing.assert_array_equal(one, other)


# As a user types them. --------------------------------------------------------------------------


def test_label_with_options_of_a_vlm(scenes: Path, llava: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels"
    words = (
        *("label", scenes, "--teacher", f"vlm:{llava}", "--out", out),
        *("--signals", "topk_logits", "attention", "--options.frames", 1),
        *("--options.max-new-tokens", 3, "--options.topk", 5, "--options.image-size", 20),
        *("--options.attention-layers", "0-1", "2", "--options.instruction", ""),
    )
    assert run(*words) == 0
    store = open_labels(out)
    for label in store.labels(store.scene_ids()[0]):
        assert len(label.answer_ids) <= 3
        assert label.topk_ids.shape == (len(label.answer_ids), 5)
        # Two groups of layers; one photo of 4 x 4 patches.
        assert label.attention.shape == (2, len(label.answer_ids), 16)
    told = store.settings["teacher"]
    assert (told["views"], told["image_size"], told["instruction"]) == (1, 20, "")
    # What changes no label does not make another store; what does, does.
    assert run(*words, "--options.questions-at-once", 2) == 0
    assert run(*words, "--options.max-new-tokens", 4) == 2


def test_label_with_options_of_an_endpoint(scenes: Path, tmp_path: Path) -> None:
    with serving(lambda number, body: said("one")) as server:
        words = (
            *("label", scenes, "--teacher", f"http:{server.url}#m", "--signals", "answers"),
            *("--options.frames", 1, "--options.max-new-tokens", 7, "--options.image-size", 10),
            *("--options.jpeg-quality", 20, "--options.instruction", "Be brief."),
            *("--options.requests-per-minute", 60_000),
        )
        assert run(*words, "--out", tmp_path / "labels") == 0
        asked = server.asked[0]
    assert asked["max_tokens"] == 7
    photo, text = asked["messages"][0]["content"]
    assert text["text"].endswith("\nBe brief.")
    jpeg = base64.b64decode(photo["image_url"]["url"].partition(",")[2])
    assert Image.open(io.BytesIO(jpeg)).size == (10, 10)


def test_retries_of_an_endpoint_are_a_flag(scenes: Path, tmp_path: Path) -> None:
    with serving(lambda number, body: Reply(status=500)) as server:
        words = ("label", scenes, "--teacher", f"http:{server.url}#m", "--signals", "answers")
        assert run(*words, "--options.retries", 0, "--out", tmp_path / "labels") == 2
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("teacher", "words", "sentence"),
    [
        (ENDPOINT, ("--options.dtype", "bfloat16"), "an http: teacher has no option dtype"),
        (ENDPOINT, ("--options.jpeg-quality", "99"), "jpeg_quality must lie in 1..95, got 99"),
        (ENDPOINT, ("--options.timeout-s", "0"), "timeout_s must be positive, got 0"),
        (ENDPOINT, ("--options.retries", "many"), "retries"),
        ("student_mini", (), "'student_mini' cannot label"),
        ("truth", ("--options.topk", "3"), "the teacher 'truth' has no option topk"),
        ("teacher_mini", ("--options.image-size", "9"), "LLaVA-3D has no option image_size"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence_and_leave_nothing_behind(
    teacher: str,
    words: tuple[str, ...],
    sentence: str,
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "labels"
    assert run("label", scenes, "--teacher", teacher, "--out", out, *words) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not out.exists()
