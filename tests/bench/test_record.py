"""What benchmarks write down of the machine they ran on."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

RECORD = Path(__file__).parents[2] / "benchmarks" / "record.py"


def loaded() -> ModuleType:
    """The module as a benchmark that begins now imports it."""
    spec = importlib.util.spec_from_file_location("record", RECORD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("load", "noted"), [(0.1, False), (0.5, False), (2.345, True)])
def test_every_record_has_the_load_before_it_began(
    monkeypatch: pytest.MonkeyPatch, load: float, noted: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 9.0, 9.0))
    record = loaded()
    # What the benchmark itself makes of the machine does not count.
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 9.0, 9.0))
    found = record.circumstances(())
    assert found["load_before"] == round(load, 2)
    assert ("load_note" in found) is noted
    assert not noted or found["load_note"].startswith("2.35 processes ran")
    assert record.circumstances((), load=0.25)["load_before"] == 0.25
