import json
import shutil
from pathlib import Path

import pytest

from stillroom.evaluate.coco_java import missing
from stillroom.records import BadInputError
from stillroom.verify import verify_all

FIXTURES = Path(__file__).parents[1] / "fixtures" / "metrics"
NAMES = sorted(path.stem for path in FIXTURES.glob("*.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_figure_agrees(name):
    good, lines = verify_all([FIXTURES / name], kind=None)
    assert good, "\n".join(lines)
    # METEOR is named where it cannot be made, and only then.
    assert any("skip" in line for line in lines) == (
        bool(missing()) and name in ("scanqa", "scan2cap", "text_overlap")
    )


def test_all_fixtures_are_here():
    assert len(NAMES) == 11


def altered(tmp_path, name, change):
    """A copy of a fixture, changed, in a folder named after its kind."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    about = json.loads((FIXTURES / f"{name}.json").read_text())
    change(about)
    (folder / f"{name}.json").write_text(json.dumps(about))
    return folder / f"{name}.json"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vsi_numeric", lambda a: a["pairs"][3]["scorers"]["lmms_eval_0.7.3"].update(mra=0.9)),
        ("vsi_aggregate", lambda a: a["vsi_official_2024_overall"].update(overall=20.9)),
        ("choice_letters", lambda a: a["pairs"][0]["extracted"].update(vsi_fuzzy="B")),
        ("threedsr_circular", lambda a: a["lmms_eval_0.7.3"].update(flip=0.7941)),
        (
            "spatialbench",
            lambda a: a["summary"]["major_category_score"].update(spatial_planning=96),
        ),
        ("scanqa", lambda a: a["corpus"].update(CIDEr=2.8824)),
        ("scanqa", lambda a: a["items"][7].update(em1_refined=0)),
        ("sqa3d", lambda a: a["scores"].update(EM1=0.51)),
        ("scan2cap", lambda a: a["scores"].update({"BLEU-4@0.5": 0.2146})),
        ("text_overlap", lambda a: a["items"][0]["coco"].update(tokens_prediction="the box")),
        ("depth", lambda a: a["cases"][2]["lsq_scale_only"].update(scale=1.5)),
        ("boxes3d", lambda a: a["detection"]["votenet_eval"]["iou_0.25"].update(mAP=0.12)),
    ],
)
def test_a_changed_figure_differs(tmp_path, name, change):
    good, lines = verify_all([altered(tmp_path, name, change)], kind=None)
    assert not good
    assert any("FAIL" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("vsi_numeric", lambda a: a["pairs"][0]["scorers"].update(other={"mra": 1.0})),
        ("scanqa", lambda a: a["corpus"].update(SPICE=0.1)),
        ("depth", lambda a: a["cases"][0].update(affine={"d1": 1.0})),
        ("boxes3d", lambda a: a["detection"]["votenet_eval"].update(iou_high={})),
        ("spatialbench", lambda a: a["summary"].update(judged=50.0)),
        ("text_overlap", lambda a: a["items"][0].update(bertscore=1.0)),
    ],
)
def test_a_recorded_output_nobody_knows_is_an_error(tmp_path, name, change):
    with pytest.raises(BadInputError, match="does not know"):
        verify_all([altered(tmp_path, name, change)], kind=None)


def test_what_is_no_fixture_is_refused_in_one_sentence(tmp_path):
    folder = tmp_path / "metrics"
    folder.mkdir()
    for text, complaint in (
        ("{", "not readable JSON"),
        ("[1]", "no fixture of metrics"),
        ('{"cases": [{"pred": [1]}]}', "lacks something"),
    ):
        (folder / "x.json").write_text(text)
        with pytest.raises(BadInputError, match=complaint):
            verify_all([folder / "x.json"], kind=None)


def test_a_name_in_another_folder_needs_its_kind(tmp_path):
    shutil.copy(FIXTURES / "sqa3d.json", tmp_path / "sqa3d.json")
    with pytest.raises(BadInputError, match="unknown kind"):
        verify_all([tmp_path / "sqa3d.json"], kind=None)
    assert verify_all([tmp_path / "sqa3d.json"], kind="metrics")[0]
