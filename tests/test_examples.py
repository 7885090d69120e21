"""Every example and the README's Python run as they stand, on the smallest numbers."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_making_a_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(ROOT / "examples" / "01_make_a_scene.py"))
    module["main"](tmp_path / "rooms")
    assert (tmp_path / "rooms" / "contact_sheet.png").stat().st_size > 10_000
    assert "things:" in capsys.readouterr().out


def test_asking_teacher_and_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(ROOT / "examples" / "02_ask_teacher_and_student.py"))
    module["main"](tmp_path / "rooms")
    said = capsys.readouterr().out
    assert said.count("truth: ") == 8
    assert said.count("student_mini: ") == 8


def test_distilling_a_mini(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = runpy.run_path(str(ROOT / "examples" / "03_distil_mini.py"))
    module["main"](tmp_path, 10, 2)
    assert "teacher" in capsys.readouterr().out


def test_the_readme_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert "(8, 112, 112)" in capsys.readouterr().out
