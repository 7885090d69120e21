"""``stillroom label --dry-run`` and ``stillroom labels`` as a user types them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom import cli, registry
from stillroom.testing import tiny_store


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    out, error = capsys.readouterr()
    return int(ended.value.code or 0), out, error


@pytest.fixture
def scenes(tmp_path: Path) -> str:
    return str(tiny_store(tmp_path / "scenes", scenes=3))


def test_a_dry_run_of_the_7b_needs_no_weights_and_writes_nothing(
    scenes: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ("label", scenes, "--teacher", "llava3d-7b", "--dry-run")
    code, shown, error = run(capsys, *words)
    assert code == 0, error
    assert "3 scenes, 12 questions; teacher of 7,080,764,416 parameters, 14.2 GB" in shown
    assert "visual tokens counted on 3 scenes" in shown
    assert "words assumed as in ScanQA" in shown
    assert "hours at 100 TFLOP/s" in shown
    code, shown, _ = run(capsys, *words, "--tflops", "200", "--json", "--signals", "attention")
    figures = json.loads(shown)
    assert set(figures["question_bytes"]) == {"answers", "attention"}
    assert figures["hours"] == pytest.approx(figures["flop"] / 200e12 / 3600)
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]


def test_a_dry_run_reads_a_released_config_alone(
    scenes: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "release"
    folder.mkdir()
    shipped = json.loads((registry.MODELS / "teacher_mini" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(shipped | {"num_hidden_layers": 3}))
    words = ("label", scenes, "--dry-run", "--json", "--teacher")
    small = json.loads(run(capsys, *words, f"llava3d:{folder}")[1])
    own = json.loads(run(capsys, *words, "teacher_mini")[1])
    assert 0 < small["weights_bytes"] < own["weights_bytes"]
    assert small["scenes"] == own["scenes"] == 3
    assert small["files"] == own["files"]


def test_a_dry_run_without_torch_weights_loads_no_model(scenes: str) -> None:
    script = (
        "import sys\nfrom stillroom.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'stillroom.teachers.llava3d' not in sys.modules, 'the model was imported'\n"
    )
    words = ["label", scenes, "--teacher", "llava3d-7b", "--dry-run"]
    subprocess.run([sys.executable, "-c", script, *words], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--teacher", "truth", "--dry-run"), "cannot read the sizes of 'truth'"),
        (("--teacher", "truth"), "--out DIR"),
        (("--teacher", "llava3d-7b", "--dry-run", "--tflops", "0"), "--tflops must be positive"),
        (("--teacher", "truth", "--out", "o", "--workers", "0"), "--workers must be at least 1"),
        (("--teacher", "truth", "--out", "o", "--signals", "gradients"), "gradients"),
        (("--teacher", "truth", "--out", "o", "--scenes-per-part", "0"), "at least 1, got 0"),
    ],
)
def test_bad_options_of_label_are_one_sentence(
    words: tuple[str, ...],
    said: str,
    scenes: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, error = run(capsys, "label", scenes, *words)
    assert code == 2
    assert said in error
    assert out == ""
    assert len(error.strip().splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize(
    ("words", "address"),
    [
        (["--ray"], "local"),
        (["--ray", "auto"], "auto"),
        (["--ray", "ray://head:10001"], "ray://head:10001"),
        (["--ray", "10.0.0.1:6379"], "10.0.0.1:6379"),
        (["--ray", "--workers", "2"], "local"),
        (["--ray", "worlds/a"], "local"),
    ],
)
def test_ray_may_stand_with_or_without_an_address(words: list[str], address: str) -> None:
    assert cli.labels._with_address(words)[1] == address
    assert cli.labels._with_address(["--out", "x"]) == ["--out", "x"]


def test_stores_are_merged_looked_into_and_exported(
    scenes: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    more = str(tiny_store(tmp_path / "more", scenes=2, splits=("train",)))
    a, b, c = (str(tmp_path / name) for name in "abc")
    for source, out in ((scenes, a), (more, b)):
        words = ("label", source, "--teacher", "truth", "--signals", "answers", "--out", out)
        assert run(capsys, *words)[0] == 0
    assert "20 rows" in run(capsys, "labels", "merge", a, b, "--out", c)[1]
    code, shown, _ = run(capsys, "labels", "verify", c, "--scenes", scenes, more)
    assert code == 0
    assert "20 rows, every byte as written" in shown
    code, shown, _ = run(capsys, "labels", "verify", c, "--scenes", more)
    assert code == 1
    assert "stale: 3 labelled scenes are no longer in" in shown
    assert json.loads(run(capsys, "labels", "status", c, "--json")[1])["rows"] == 20
    code, _, error = run(capsys, "labels", "export", c, "--out", str(tmp_path / "d"))
    assert code == 2
    assert "holds no topk_logits" in error
    for words in (("merge", a, b), ("export", a), ("status", a, b)):
        code, _, error = run(capsys, "labels", *words)
        assert code == 2
        assert len(error.strip().splitlines()) == 1


def test_the_shipped_teachers_labels_are_exported_for_its_student(
    scenes: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    labels, out = str(tmp_path / "labels"), str(tmp_path / "out")
    code, _, error = run(capsys, "label", scenes, "--teacher", "teacher_mini", "--out", labels)
    assert code == 0, error
    code, shown, error = run(
        capsys, "labels", "export", labels, "--out", out, "--student", "student_mini"
    )
    assert code == 0, error
    assert "12 rows" in shown
