"""Programs for ExecuTorch beside torch: the same answers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stillroom import api, registry
from stillroom.records import BadInputError
from stillroom.students.session import StudentAnswerer
from stillroom.testing import tiny_questions, tiny_scene

CAPTURE = Path(__file__).parents[1] / "fixtures" / "captures" / "tum_fr3_cabinet"


def test_without_executorch_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    with pytest.raises(BadInputError, match=r"pip install 'stillroom\[executorch\]'"):
        api.export("student_mini", to="executorch", out=tmp_path / "programs")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_programs_say_what_torch_says(tmp_path: Path) -> None:
    pytest.importorskip("executorch.exir", reason="needs stillroom[executorch]")
    from stillroom.export.executorch import MOST_WORDS, open_programs

    out = tmp_path / "programs"
    # In a process of its own: a graph is traced without the tests' shape checks.
    words = ["export", "student_mini", "--to", "executorch", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "stillroom", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    ours = StudentAnswerer.from_folder(registry.locate("student_mini"))
    theirs = open_programs(out)
    photos = [view.rgb for view in api.open_photos(CAPTURE).views]
    for count in (1, 2, 5, 8):
        mine, other = (one.open_scene((photos * 3)[:count]) for one in (ours, theirs))
        for text in ("Describe the room.", "How many chairs are in this room?"):
            assert other.ask(text) == mine.ask(text)
        np.testing.assert_allclose(
            other.geometry().depth, mine.geometry().depth, rtol=1e-3, atol=1e-4
        )
    said = set()
    for seed in range(4):
        scene = tiny_scene(seed, size=112)
        questions = tiny_questions(scene, count=8)
        expected = ours.open(scene).answer(questions)
        assert theirs.open(scene).answer(questions) == expected
        said |= {answer.text for answer in expected}
    assert len(said) > 2
    with pytest.raises(BadInputError, match="shorten it"):
        theirs.open_scene(photos).ask("why " * MOST_WORDS)
    (out / "decode.pte").write_bytes(b"no program")
    with pytest.raises(BadInputError, match=r"decode\.pte cannot be read"):
        open_programs(out)
