import math
import subprocess
import sys
from pathlib import Path

import pytest

from stillroom.records import BadInputError
from stillroom.training.runlog import RunLog, read_log, read_result, step_line


def test_what_is_not_finite_is_written_as_strict_json(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl", keep_bytes=0)
    log.write({"kind": "eval", "metrics": {"ce": math.nan, "acc": 0.5}})
    log.close()
    assert b"NaN" not in (tmp_path / "log.jsonl").read_bytes()
    assert read_log(tmp_path) == [{"kind": "eval", "metrics": {"ce": None, "acc": 0.5}}]


def test_a_folder_without_a_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"log\.jsonl"):
        read_log(tmp_path)
    with pytest.raises(BadInputError, match="no finished run"):
        read_result(tmp_path)


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"kind": "step"}\n\xff\xfe\n')
    with pytest.raises(BadInputError, match="is damaged"):
        read_log(tmp_path)


def test_the_line_of_a_step_reads_as_in_the_style_guide() -> None:
    row = {"step": 120, "steps": 2000, "loss": 1.8421, "terms": {"text": 1.31, "depth_ce": 0.532}}
    row |= {"metrics": {}, "scenes_per_s": 412.3, "eta_s": 366.0}
    assert step_line(row) == (
        "step 00120/02000 | loss 1.842 | text 1.310 | depth_ce 0.532 | 412 scenes/s | eta 6.1m"
    )


def test_settings_log_and_order_need_no_torch() -> None:
    code = (
        "import sys, stillroom.training.runlog, stillroom.training.data_order; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
