"""The command line: instant help, one sentence for bad input, exit codes."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stillroom import cli, registry
from stillroom.api.meta import command_line
from stillroom.testing import tiny_store


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one call."""
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    shown = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), shown.out, shown.err


def assert_one_sentence(error: str) -> None:
    assert error.startswith("stillroom: ")
    assert error.count("\n") == 1, error
    assert "Traceback" not in error


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for verb in cli.VERBS:
        assert all(f"  {word}" in out or f" {word} " in out for word in verb.split()[-1:]), verb


def test_help_loads_no_torch_and_is_quick() -> None:
    script = (
        "import sys\nsys.argv = ['stillroom', '--help']\n"
        "from stillroom.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'torch', 'transformers', 'mujoco'} & set(sys.modules), 'heavy imports'\n"
    )
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    # Generous: the figure itself is in benchmarks; this only catches an import of seconds.
    assert time.perf_counter() - started < 5.0


@pytest.mark.parametrize("verb", sorted(cli.VERBS))
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *verb.split(), "--help")
    assert code == 0
    assert "usage" in out


MAKE = ("--count", "1", "--seed", "1", "--out", "o")
RUN = ("--scenes", "nowhere", "--out", "o")
ARMS = (*RUN, "--labels", "nowhere")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("scenes", "maek"), "unknown verb"),
        (("distil",), "did you mean 'distill'"),
        (("scenes", "make", "--count", "x", "--seed", "1", "--out", "o"), "--count"),
        (
            ("scenes", "make", "--count", "1", "--seed", "1", "--out", "o", "--cuont", "3"),
            "--cuont",
        ),
        (("scenes", "make", "--seed", "1"), "--count"),
        (
            ("scenes", "make", "--count", "1", "--seed", "1", "--out", "o", "--density", "x"),
            "plain",
        ),
        (("ask",), "MODEL PHOTOS QUESTION"),
        (("evaluate", "nobody", "nowhere", "--out", "o"), "not found"),
        (("scenes", "show", "nowhere"), "not found"),
        (("label", "nowhere", "--teacher", "truth", "--out", "o"), "not found"),
        (("scenes", "make", *MAKE, "--workers", "0"), "--workers must be at least 1, got 0"),
        (("scenes", "make", *MAKE, "--workers", "-3"), "--workers must be at least 1, got -3"),
        (("label", "nowhere", "--teacher", "truth", "--out", "o", "--workers", "0"), "--workers"),
        (("teach",), "name a recipe first"),
        (("teach", "mini_cpu", "--out", "o"), "--scenes"),
        (("teach", "mini_cpu", *RUN), "not found: nowhere"),
        (("teach", "mini_cpu", *RUN, "--train.steps", "many"), "--train.steps"),
        (("teach", "mini_cpu", *RUN, "--train.workers", "0"), "workers must be at least 1"),
        (("teach", "mini_cpu", *RUN, "--object-level", "99"), "object_level must lie in 0..8"),
        (("teach", "mini_cpu", *RUN, "--start-from", "nobody"), "model not found: 'nobody'"),
        (("pretrain-encoder",), "name a recipe first"),
        (("pretrain-encoder", "mini_cpu", "--scenes", "s"), "--out"),
        (("pretrain-encoder", "mini_cpu", *RUN), "not found: nowhere"),
        (("pretrain-encoder", "mini_cpu", *RUN, "--mirror", "2"), "mirror must be within 0 and 1"),
        (("pretrain-encoder", "mini_cpu", *RUN, "--miror", "1"), "--miror"),
        (("pretrain-encoder", "mini_cpu", *RUN, "--start-from", "nobody"), "not found: 'nobody'"),
        (("ablate",), "--scenes"),
        (("ablate", "table9", *ARMS), "table9"),
        (("ablate", "slots", *ARMS), "scene folder not found: nowhere"),
        (("ablate", "slots", *ARMS, "--seeds", "0"), "--seeds must be at least 1, got 0"),
        (("ablate", "slots", *ARMS, "--arms", "k4"), "slots has no arm 'k4'"),
        (("ablate", "slots", *ARMS, "--recipe", "mini_cup"), "did you mean 'mini_cpu'"),
        (("ablate", "slots", *ARMS, "--no-objects-encoder", "nobody"), "not found: 'nobody'"),
        (("probe", "nobody", "nowhere", "--out", "o"), "model not found: 'nobody'"),
        (("probe", "student_mini", "nowhere", "--out", "o"), "not found: nowhere"),
        (("probe", "teacher_mini", "nowhere", "--out", "o"), "has no slots"),
        (("scenes", "audit", "nowhere"), "not found"),
        (("scenes", "audit", "nowhere", "--seed", "-1"), "--seed must be 0 or more"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    words: tuple[str, ...],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, *words)
    assert code == 2
    assert expected in error
    assert out == ""
    assert_one_sentence(error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["distill", "teach", "pretrain-encoder", "params"])
def test_a_misspelt_recipe_is_named_before_missing_options(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, error = run(capsys, verb, "mini_cup")
    assert code == 2
    assert "did you mean 'mini_cpu'" in error
    assert_one_sentence(error)


def test_every_config_field_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "distill", "mini_cpu", "--help")
    assert code == 0
    for flag in ("--train.steps", "--slots.kind", "--losses.kl-alpha", "--mask", "--scenes"):
        assert flag in out


def test_a_question_of_ten_thousand_characters_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    photos = Path(__file__).parent / "fixtures" / "captures" / "tum_fr3_cabinet"
    code, _, error = run(capsys, "ask", "student_mini", str(photos), "x" * 10_000)
    assert code == 2
    assert "10000 characters" in error
    assert_one_sentence(error)


def test_an_empty_photo_folder_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, error = run(capsys, "ask", "student_mini", str(tmp_path), "Where is the lamp?")
    assert code == 2
    assert "photo" in error
    assert_one_sentence(error)


def test_a_text_file_named_jpg_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_text("not a photo")
    code, _, error = run(capsys, "ask", "student_mini", str(tmp_path), "Where is the lamp?")
    assert code == 2
    assert "photo.jpg" in error
    assert_one_sentence(error)


def test_labels_status_and_verify(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scenes = str(tiny_store(tmp_path / "scenes", scenes=2))
    out = str(tmp_path / "labels")
    words = ("label", scenes, "--teacher", "truth", "--out", out, "--signals", "answers")
    assert run(capsys, *words)[0] == 0
    assert "was finished already" in run(capsys, *words)[1]
    code, shown, _ = run(capsys, "labels", "status", out)
    assert code == 0
    assert "8 rows on 2 scenes" in shown
    assert run(capsys, "labels", "verify", out)[0] == 0
    shard = tmp_path / "labels" / "labels" / "00000.parquet"
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(bytes(data))
    code, shown, _ = run(capsys, "labels", "verify", out)
    assert code == 1
    assert "00000.parquet is not as it was written" in shown


FIXTURES = Path(__file__).parent / "fixtures"
CAPTURE = FIXTURES / "captures" / "tum_fr3_cabinet"


def test_verify_exits_0_where_all_agrees_and_1_where_one_weight_was_changed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for stem in (
        "llava3d/tiny_a",
        "llava3d/tiny_b",
        "llava3d/tiny_d",
        "vggt/tiny_a",
        "vggt/tiny_b",
    ):
        code, out, _ = run(capsys, "verify", str(FIXTURES / stem))
        assert code == 0, out
        assert "agree" in out
        changed = tmp_path / stem
        changed.parent.mkdir(exist_ok=True)
        tensors = load_file(FIXTURES / f"{stem}.safetensors")
        name = next(key for key in tensors if key.endswith("mlp.fc1.weight"))
        tensors[name] = tensors[name].clone()
        tensors[name][0, 0] += 1.0
        save_file(tensors, f"{changed}.safetensors")
        shutil.copyfile(FIXTURES / f"{stem}.json", f"{changed}.json")
        code, out, _ = run(capsys, "verify", str(changed))
        assert code == 1, f"{stem}: {name}"
        assert "FAIL" in out


def test_verify_of_nothing_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, error = run(capsys, "verify", str(tmp_path / "nothing"))
    assert code == 2
    assert_one_sentence(error)


def test_the_shipped_student_and_teacher_answer_about_a_real_capture(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for model in ("student_mini", "teacher_mini"):
        code, out, error = run(capsys, "ask", model, str(CAPTURE), "Is the cabinet in the room?")
        assert code == 0, error
        assert out.strip()


@pytest.mark.parametrize("verb", ["ask", "evaluate", "label"])
def test_a_truncated_checkpoint_is_one_sentence(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shipped = registry.MODELS / ("teacher_mini" if verb == "label" else "student_mini")
    broken = tmp_path / "broken"
    shutil.copytree(shipped, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:20_000])
    scenes = str(tiny_store(tmp_path / "scenes", scenes=2))
    words = {
        "ask": ("ask", str(broken), str(CAPTURE), "Where is the lamp?"),
        "evaluate": ("evaluate", str(broken), scenes, "--out", str(tmp_path / "out")),
        "label": ("label", scenes, "--teacher", str(broken), "--out", str(tmp_path / "out")),
    }[verb]
    code, _, error = run(capsys, *words)
    assert code == 2, error
    assert_one_sentence(error)


def test_a_folder_with_other_settings_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scenes = str(tiny_store(tmp_path / "scenes", scenes=2))
    more = str(tiny_store(tmp_path / "more", scenes=3))
    labels, report = str(tmp_path / "labels"), str(tmp_path / "report")
    first = {
        "label": ("label", scenes, "--teacher", "truth", "--out", labels, "--signals", "answers"),
        "evaluate": ("evaluate", "truth", scenes, "--out", report),
    }
    for words in first.values():
        assert run(capsys, *words)[0] == 0
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    for words in first.values():
        other = [more if word == scenes else word for word in words]
        code, _, error = run(capsys, *other)
        assert code == 2
        assert_one_sentence(error)
    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}


def test_params_counts_what_the_shipped_student_holds(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "params", "mini_cpu_long", "--json")
    assert code == 0
    table = json.loads(out)
    assert table["slots"] == 8 * 128
    assert table["total"] == registry.parameters("student_mini")


def test_a_student_is_evaluated_beside_its_baselines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scenes = str(tiny_store(tmp_path / "scenes", scenes=8, splits=("train", "test")))
    words = ("evaluate", "student_mini", scenes, "--out", str(tmp_path / "out"), "--json")
    code, out, error = run(capsys, *words)
    assert code == 0, error
    rows = json.loads(out)
    assert list(rows) == ["student_mini", "truth", "majority", "blind", "shuffled:student_mini"]
    assert rows["truth"]["overall"]["score"] == 1.0
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!")
    assert run(capsys, *words)[1] == out


def test_the_command_that_a_record_keeps_names_no_folder_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    typed = [
        "/a/b/stillroom/__main__.py",
        "evaluate",
        str(tmp_path / "run"),
        f"--out={tmp_path}/a=b/x",
    ]
    monkeypatch.setattr("sys.argv", [*typed, "docs/results", "--steps", "3"])
    assert command_line() == "stillroom evaluate run --out=x docs/results --steps 3"
    monkeypatch.setattr("sys.argv", ["/a/b/bin/stillroom", "demo"])
    assert command_line() == "stillroom demo"
