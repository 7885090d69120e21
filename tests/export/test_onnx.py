"""ONNX graphs beside torch: the same answers, and no torch in sight when they are asked."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING

from stillroom import api, cli, registry
from stillroom.export.runtime import GRAPHS, GraphStudent
from stillroom.records import BadInputError, asked
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.depth_anything import DepthAnythingConfig
from stillroom.students.encoders.vggt import mini_config
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer

CAPTURE = Path(__file__).parents[1] / "fixtures" / "captures" / "tum_fr3_cabinet"
#: What ``ask --runtime onnx`` needs, and all of it: docs/speed.md names the same.
PACKAGES = (
    *("numpy", "pillow", "scipy", "pyarrow", "tokenizers", "onnxruntime", "jaxtyping"),
    *("wadler_lindig", "tyro", "docstring_parser", "typeguard", "typing_extensions"),
)
NO_TORCH = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Block())
from stillroom import cli
cli.main(sys.argv[1:])
"""


def run(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """A command in a process of its own: a graph is traced without the tests' shape checks."""
    begin = ["-c", code] if code else ["-m", "stillroom"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *begin, *words], capture_output=True, text=True, env=environment
    )


def exported(model: str, out: Path) -> Path:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    done = run("export", model, "--to", "onnx", "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported("student_mini", tmp_path_factory.mktemp("onnx") / "mini")


def test_two_hundred_answers_are_those_of_torch(graphs: Path, tmp_path: Path) -> None:
    from stillroom.scenes.make import make_scenes
    from stillroom.scenes.store import open_store

    make_scenes(tmp_path, count=9, seed=77, questions=24, split="test", workers=1)
    store = open_store(tmp_path)
    ours = StudentAnswerer.from_folder(registry.locate("student_mini"))
    theirs = GraphStudent.from_folder(graphs, threads=1)
    count, said = 0, set()
    for name in store.scene_ids():
        scene, questions = store.scene(name), store.questions(name)
        expected = ours.open(scene).answer(questions)
        assert theirs.open(scene).answer(questions) == expected
        count += len(questions)
        said |= {answer.text for answer in expected}
    assert count >= 200
    assert len(said) > 30


def test_any_number_of_photos_and_own_words(graphs: Path) -> None:
    scene = api.open_photos(CAPTURE)
    photos = [view.rgb for view in scene.views]
    ours = StudentAnswerer.from_folder(registry.locate("student_mini"))
    theirs = GraphStudent.from_folder(graphs, threads=1)
    for count in (1, 2, 5, 8):
        mine, other = (one.open_scene((photos * 3)[:count]) for one in (ours, theirs))
        assert other.views == mine.views
        for text in ("Describe the room.", "How many chairs are in this room?"):
            assert other.ask(text) == mine.ask(text)
        np.testing.assert_allclose(
            other.geometry().depth, mine.geometry().depth, rtol=1e-3, atol=1e-4
        )


def test_graphs_tell_nothing_of_the_machine_that_made_them(graphs: Path) -> None:
    for name in GRAPHS:
        written = (graphs / f"{name}.onnx").read_bytes()
        assert b"stack_trace" not in written
        assert str(Path(api.__file__).parents[1]).encode() not in written


def test_questions_leave_the_scene_as_it_was(graphs: Path) -> None:
    session = GraphStudent.from_folder(graphs, threads=1).open(api.open_photos(CAPTURE))
    before = session.keys.copy(), session.values.copy()
    first = session.ask("Describe the room.")
    assert np.array_equal(session.keys, before[0])
    assert np.array_equal(session.values, before[1])
    assert session.ask("Describe the room.") == first
    assert session.nbytes == 2 * session.keys.nbytes


def test_an_answer_that_runs_out_of_positions_is_not_called_a_long_question(graphs: Path) -> None:
    student = GraphStudent.from_folder(graphs, threads=1)
    session = student.open(api.open_photos(CAPTURE))
    words = len(student.processor.question_ids("Describe the room.")) + 1
    taken = session.keys.shape[2] + student.settings["slots"] + words
    student.settings = {**student.settings, "positions": taken + 1}
    with pytest.raises(BadInputError, match=rf"more than the {taken + 1} positions.*fewer photos"):
        session.ask("Describe the room.")
    student.settings = {**student.settings, "positions": taken - 1}
    with pytest.raises(BadInputError, match=f"the question has {words} tokens"):
        session.ask("Describe the room.")


def test_depth_has_the_unit_that_the_student_tells_it_in(graphs: Path) -> None:
    student = GraphStudent.from_folder(graphs, threads=1)
    session = student.open(api.open_photos(CAPTURE))
    assert session.geometry().depth_unit == student.settings["depth_unit"] == "metre"
    student.settings = {**student.settings, "depth_unit": "scene"}
    assert session.geometry().depth_unit == "scene"


def test_it_is_asked_without_torch(graphs: Path) -> None:
    words = ("ask", str(graphs), str(CAPTURE), "Is the floor dark?", "--runtime", "onnx")
    blocked = run(*words, code=NO_TORCH)
    assert blocked.returncode == 0, blocked.stderr
    assert blocked.stdout.strip() == api.ask("student_mini", CAPTURE, "Is the floor dark?")
    # The block is one: what needs torch fails behind it.
    assert run("ask", "student_mini", *words[2:4], code=NO_TORCH).returncode != 0


@pytest.mark.slow
def test_it_is_asked_in_an_environment_of_listed_packages(graphs: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "bare")], check=True)
    python = tmp_path / "bare" / "bin" / "python"
    pins = str(Path(__file__).parents[2] / "constraints.txt")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    subprocess.run([str(python), *install, "--constraint", pins, *PACKAGES], check=True)
    source = Path(api.__file__).parents[2]
    asking = ["ask", str(graphs), str(CAPTURE), "Is the floor dark?", "--runtime", "onnx"]
    done = subprocess.run(
        [str(python), "-m", "stillroom", *asking],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(source), "PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == api.ask("student_mini", CAPTURE, "Is the floor dark?")
    torch_here = subprocess.run([str(python), "-c", "import torch"], capture_output=True)
    assert torch_here.returncode != 0


def test_the_packages_it_needs_are_those_that_the_page_names() -> None:
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text()
    assert " ".join(PACKAGES) in page


def test_the_verb_gives_json_and_depth_from_graphs(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ask", str(graphs), str(CAPTURE), "Is the floor dark?", "--runtime", "onnx", "--json"]
    with pytest.raises(SystemExit) as stop:
        cli.main([*words, "--depth", "--out", str(tmp_path / "maps")])
    assert stop.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answer"]
    assert all(Path(row["npy"]).is_file() for row in said["depth"])


# Students of other kinds. ------------------------------------------------------------------------


def _llama(kind: str, **more: Any) -> Any:
    return CONFIG_MAPPING[kind](
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        **more,
    )


def _neox(**more: Any) -> Any:
    config = neox_config(hidden_size=32, layers=2, heads=4, **more)
    config.initializer_range = 0.3
    return config


SMALL = mini_config(
    width=16,
    heads=2,
    encoder_heads=2,
    camera_heads=2,
    encoder_depth=1,
    patch_size=7,
    image_size=28,
    dpt_features=8,
    dpt_channels=(8, 8, 8, 8),
    point_head=False,
    camera_head=False,
).to_dict()
TRUNK = DepthAnythingConfig(
    width=16, heads=2, depth=4, alternate_from=2, patch_size=7, image_size=28
).to_dict()
#: Of each way of being a student at least one: language model, encoder, slots, mask, pooling.
KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "qwen2 with shared keys, Depth Anything, slots after, causal": lambda: {
        # Heads are wider than the model's width over their number.
        "text_config": _llama(
            "qwen2", num_key_value_heads=2, tie_word_embeddings=True, head_dim=16
        ),
        "encoder": TRUNK,
        "image_size": 42,
        "slot_position": "after",
        "visibility": "causal",
    },
    "llama without slots, one token a scene": lambda: {
        "text_config": _llama("llama", num_key_value_heads=4),
        "slot_kind": "none",
        "vision_pool": "mean",
    },
    "neox with a quarter turned, filler slots": lambda: {
        "text_config": _neox(rotary_share=0.25, tie_embeddings=False),
        "slot_kind": "filler",
    },
    "neox that thinks in parallel, without a depth head": lambda: {
        "text_config": _parallel(),
        "encoder": SMALL | {"depth_head": False},
    },
}


def _parallel() -> Any:
    config = _neox()
    config.use_parallel_residual = True
    return config


def _compared(kind: str, home: Path) -> None:
    torch.manual_seed(3)
    settings: dict[str, Any] = {
        "encoder": SMALL,
        "image_size": 28,
        "vision_grid": 2,
        "slot_count": 3,
        "max_answer_tokens": 9,
    }
    student = StillroomStudent(StillroomConfig(**(settings | KINDS[kind]()))).eval()
    processor = StillroomProcessor(image_size=student.config.image_size, max_views=4)
    student.save_pretrained(home / "torch")
    processor.save_pretrained(home / "torch")
    theirs = GraphStudent.from_folder(exported(str(home / "torch"), home / "onnx"), threads=1)
    ours = StudentAnswerer.from_folder(home / "torch")
    rng = np.random.default_rng(0)
    said = set()
    for count in (1, 2, 3, 4):
        photos = [rng.integers(0, 256, (28, 28, 3), dtype=np.uint8) for _ in range(count)]
        mine, other = ours.open_scene(photos), theirs.open_scene(photos)
        for text in ("Why?", "Is the lamp left of the bed?", "Which is bigger, the red chair?"):
            want = mine.ask(text)
            assert other.answer([asked("x", text)])[0].text == want
            said.add(want)
    assert len(said) > 1


def test_a_student_of_another_kind_says_the_same(tmp_path: Path) -> None:
    _compared(next(iter(KINDS)), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(KINDS)[1:])
def test_students_of_every_kind_say_the_same(kind: str, tmp_path: Path) -> None:
    _compared(kind, tmp_path)


# What is refused. --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda: {"visibility": "full_prefix"}, "needs a scene that is read once"),
        (
            lambda: {
                "text_config": CONFIG_MAPPING["gpt2"](
                    n_embd=32, n_layer=1, n_head=2, vocab_size=1024
                )
            },
            "knows language models of the kinds gpt_neox, llama, qwen2, this is a gpt2",
        ),
    ],
)
def test_students_that_graphs_cannot_hold_are_refused(
    change: Callable[[], dict[str, Any]], complaint: str, tmp_path: Path
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    settings = {"encoder": SMALL, "image_size": 28, "vision_grid": 2, "text_config": _neox()}
    student = StillroomStudent(StillroomConfig(**(settings | change())))
    student.save_pretrained(tmp_path / "student")
    StillroomProcessor(image_size=28, max_views=4).save_pretrained(tmp_path / "student")
    with pytest.raises(BadInputError, match=complaint):
        api.export(str(tmp_path / "student"), to="onnx", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_its_packages_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(BadInputError, match=r"ONNX needs onnx: pip install 'stillroom\[onnx\]'"):
        api.export("student_mini", to="onnx", out=tmp_path / "a")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["student_mini"], "holds no graphs for onnx; write them with stillroom export"),
        (["{graphs}", "--boxes"], "ONNX graphs give no boxes"),
    ],
)
def test_what_graphs_cannot_answer_is_refused(
    words: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "graphs").mkdir()
    model, *rest = (word.format(graphs=tmp_path / "graphs") for word in words)
    with pytest.raises(SystemExit) as stop:
        cli.main(["ask", model, str(CAPTURE), "Why?", "--runtime", "onnx", *rest])
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_an_export_that_is_there_is_finished_and_another_one_is_refused(
    graphs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in graphs.iterdir()}
    for model, form, code in (
        ("student_mini", "onnx", 0),
        ("student_mini", "executorch", 2),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", model, "--to", form, "--out", str(graphs)])
        assert stop.value.code == code
    said = capsys.readouterr()
    assert said.out.startswith(f"{graphs} was finished already\n{graphs} holds student_mini as")
    assert "holds something else already" in said.err
    assert {file: file.stat().st_mtime_ns for file in graphs.iterdir()} == before


def test_damaged_graphs_are_refused(graphs: Path, tmp_path: Path) -> None:
    for number, (name, complaint) in enumerate(
        (
            ("onnx.json", "is damaged"),
            ("decode.onnx", "cannot be read"),
            ("language.data", "cannot be read"),
        )
    ):
        copy = tmp_path / str(number)
        shutil.copytree(graphs, copy)
        (copy / name).write_bytes((copy / name).read_bytes()[:40])
        with pytest.raises(BadInputError, match=complaint):
            GraphStudent.from_folder(copy)
    (tmp_path / "0" / "onnx.json").write_bytes((graphs / "onnx.json").read_bytes())
    (tmp_path / "0" / "prefill.onnx").unlink()
    with pytest.raises(BadInputError, match=r"holds no prefill\.onnx"):
        GraphStudent.from_folder(tmp_path / "0")


@pytest.mark.parametrize(
    ("file", "change", "complaint"),
    [
        ("onnx.json", {"slots": "a"}, "slots must be a whole number from 0 on, got 'a'"),
        ("onnx.json", {"layers": 2.5}, "layers must be a whole number from 1 on, got 2.5"),
        ("onnx.json", {"positions": 0}, "positions must be a whole number from 1 on, got 0"),
        ("onnx.json", {"max_answer_tokens": None}, "max_answer_tokens must be a whole number"),
        ("onnx.json", {"visibility": "all"}, "visibility must be one of prefix, causal, got 'all'"),
        ("onnx.json", {"has_depth": "yes"}, "has_depth must be one of True, False, got 'yes'"),
        ("onnx.json", {"depth_unit": "inch"}, "depth_unit must be one of None, metre, scene"),
        ("onnx.json", {"slots": 99}, r"decode\.onnx cannot be run on what onnx\.json"),
        ("processor_config.json", {"image_size": 111}, r"encoder\.onnx cannot be run on what"),
        ("processor_config.json", {"image_size": "a"}, "invalid literal"),
        ("processor_config.json", {"image_size": 0}, "image_size must be at least 1, got 0"),
        ("processor_config.json", {"max_views": -1}, "max_views must be at least 1, got -1"),
    ],
)
def test_settings_that_were_changed_are_refused_in_one_sentence(
    graphs: Path,
    file: str,
    change: dict[str, Any],
    complaint: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(graphs, copy)
    settings = json.loads((copy / file).read_text())
    assert set(change) <= set(settings)
    (copy / file).write_text(json.dumps(settings | change))
    with pytest.raises(SystemExit) as stop:
        cli.main(["ask", str(copy), str(CAPTURE), "Why?", "--runtime", "onnx"])
    assert stop.value.code == 2
    said = capfd.readouterr().err
    assert len(said.strip().splitlines()) == 1
    assert re.search(complaint, said), said


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(StillroomStudent, "from_pretrained", never)
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for form in ("onnx", "int8", "int4", "executorch"):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", "student_mini", "--to", form, "--out", str(file / "under" / "it")])
        assert stop.value.code == 2
        assert f"{file} is a file; --out names a folder" in capsys.readouterr().err
    assert file.read_text() == "mine"
