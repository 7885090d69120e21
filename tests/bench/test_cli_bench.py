"""``stillroom ablate`` and ``stillroom probe`` as they are typed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_ablation import TINY

from stillroom import cli
from stillroom.recipes import mini


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    shown = capsys.readouterr()
    code = stop.value.code
    return (code if isinstance(code, int) else 0), shown.out, shown.err


def test_ablate_trains_compares_and_says_so(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = replace(TINY, encoder=str(world / "encoder"))
    monkeypatch.setitem(mini.DISTILL, "tiny", lambda: base)  # type: ignore[attr-defined]
    out = tmp_path / "out"
    words = (
        *(
            "ablate",
            "table3",
            "--processes",
            "1",
            "--scenes",
            str(world / "scenes"),
            "--labels",
            str(world / "labels"),
        ),
        *("--out", str(out), "--recipe", "tiny", "--seeds", "1", "--steps", "1", "--arms", "k0"),
        *("k4", "--limit", "2", "--plateau", "0.9"),
    )
    code, shown, error = run(capsys, *words)
    assert code == 0, error
    lines = shown.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("k0 (K = 0) against k8: ")
    assert lines[-1] == str(out / "ABLATION.html")
    record = json.loads((out / "ABLATION.json").read_text())
    assert record["plateau"]["score"] == 0.9
    assert record["arms"]["k4"]["seeds"]["0"]["steps"] == 1
    # Finished: read back, as it was and as JSON.
    code, shown, _ = run(capsys, *words)
    assert (code, shown.splitlines()) == (0, [f"{out} was finished already", *lines])
    code, shown, _ = run(capsys, *words, "--json")
    assert code == 0
    assert list(json.loads(shown)["arms"]) == ["k0", "k4", "k8"]
    # An arm that cannot be: the others stay, and the exit code says that one failed.
    (out / "arms" / "k16" / "seed0").mkdir(parents=True)
    (out / "arms" / "k16" / "seed0" / "run").write_text("in the way")
    code, shown, _ = run(capsys, *words[:-4], "k16", *words[-4:])
    assert code == 1
    failed = json.loads((out / "ABLATION.json").read_text())["failed"]
    assert list(failed) == ["k16, seed 0"]
