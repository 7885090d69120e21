"""Our scorers against figures recorded from the published ones: ``stillroom verify``, kind metrics.

What a fixture is, its own keys say. Everything recorded in it is compared: counts, letters and
booleans exactly, real numbers within 1e-6, METEOR within 1e-4. A recorded output nobody knows is
an error; METEOR is named as skipped where java is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stillroom.evaluate import letters, vsi_bench
from stillroom.evaluate.box_metrics import (
    Detection,
    average_precision,
    euler_box,
    mean_ap,
    oriented_iou,
    yaw_box,
)
from stillroom.evaluate.depth_metrics import Alignment, depth_errors, fitted
from stillroom.evaluate.flip_groups import threedsr_table
from stillroom.evaluate.letters_vlmevalkit import can_infer, spatial_match
from stillroom.evaluate.metrics import mean_relative_accuracy
from stillroom.evaluate.numbers import NUMBER_RULES
from stillroom.evaluate.spatialbench import (
    Row,
    clean_answer,
    is_correct,
    released_score,
    released_truth,
    summary,
)
from stillroom.evaluate.verify_tally import Tally
from stillroom.evaluate.verify_texts import (
    compare_captions,
    compare_overlap,
    compare_scanqa,
    compare_sqa3d,
)
from stillroom.records import BadInputError, require_file
from stillroom.text.answers import official_number
from stillroom.verify import Compared

Fixture = Mapping[str, Any]

#: The recorded rules for a number, and ours of the same name.
_NUMBER_RULES = {
    "vsi_official_2024": "vsi-mra/official-2024",
    "lmms_eval_0.7.3": "vsi-mra/lmms-eval-0.7.3",
    "vlmevalkit_2026_08": "vsi-mra/vlmevalkit-2026-08",
}
_LETTER_RULES: dict[str, letters.LetterRule] = {
    "lmms_3dsrbench": letters.threedsr_letter,
    "lmms_blink": letters.blink_letter,
    "lmms_cvbench": letters.cvbench_letter,
    "vlmevalkit_spatial_match": spatial_match,
    "vlmevalkit_can_infer": can_infer,
}


def verify_metrics(stem: Path) -> list[Compared]:
    """Every recorded figure of a fixture beside ours.

    Raises:
        BadInputError: no such file, no fixture of metrics, or a recorded output is not known.
    """
    file = require_file(Path(f"{stem}.json"), "fixture")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"{file} is not readable JSON ({error})") from None
    comparison = next((c for has, c in _KINDS if isinstance(about, dict) and has(about)), None)
    if comparison is None:
        raise BadInputError(f"{file} is no fixture of metrics that this stillroom knows")
    tally = Tally()
    try:
        comparison(about, tally)
    except BadInputError as error:
        raise BadInputError(f"{file}: {error}") from None
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise BadInputError(
            f"{file} lacks something that its kind of fixture has ({type(error).__name__}: {error})"
        ) from None
    return tally.compared()


def _vsi_numbers(about: Fixture, tally: Tally) -> None:
    tally.known(about, {"metric", "pairs"})
    for pair in about["pairs"]:
        tally.known(pair, {"id", "question_type", "prediction", "ground_truth", "scorers"})
        tally.known(pair["scorers"], _NUMBER_RULES)
        truth = official_number(pair["ground_truth"])
        assert truth is not None
        for name, recorded in pair["scorers"].items():
            tally.known(recorded, {"extracted", "mra"})
            found = NUMBER_RULES[_NUMBER_RULES[name]](pair["prediction"])
            tally.equal(f"{name}.extracted", found, recorded["extracted"])
            score = mean_relative_accuracy(found, truth)
            tally.number(f"{name}.mra", score, recorded["mra"])


def _vsi_table(about: Fixture, tally: Tally) -> None:
    # The release prints percent, and its table once more as text.
    rules: dict[str, tuple[vsi_bench.Rule, float]] = {
        "vsi_official_2024_overall": ("official-2024", 100.0),
        "lmms_eval_0.7.3": ("lmms-eval-0.7.3", 1.0),
    }
    tally.known(about, {"metric", "docs", *rules})
    types = [doc["question_type"] for doc in about["docs"]]
    for doc in about["docs"]:
        tally.known(doc, {"question_type", "prediction", "ground_truth"})
    for name, (rule, scale) in rules.items():
        scores = [
            vsi_bench.answer_score(
                doc["question_type"], doc["prediction"], doc["ground_truth"], (), rule
            )
            for doc in about["docs"]
        ]
        ours = {key: scale * value for key, value in vsi_bench.table(types, scores).items()}
        recorded = dict(about.get(name, {}))
        for key, text in (
            ("tabulated_keys", ", ".join(ours)),
            ("tabulated_results", ", ".join(f"{value:.3f}" for value in ours.values())),
        ):
            if key in recorded:
                tally.equal(f"{name}.{key}", text, recorded.pop(key))
        tally.numbers(name, ours, recorded)


def _letters(about: Fixture, tally: Tally) -> None:
    names = {"vsi_fuzzy", "spatialbench_clean", *_LETTER_RULES}
    tally.known(about, {"metric", "note", "pairs"})
    for pair in about["pairs"]:
        tally.known(pair, {"id", "prediction", "options", "ground_truth", "extracted", "correct"})
        text, truth = pair["prediction"], pair["ground_truth"]
        options = list(pair["options"].values())
        lettered = [f"{letter}. {option}" for letter, option in pair["options"].items()]
        for outputs in (pair["extracted"], pair["correct"]):
            tally.known(outputs, names)
        ours: dict[str, str | None] = {
            name: rule(text, options) for name, rule in _LETTER_RULES.items()
        }
        ours["vsi_fuzzy"] = letters.first_piece(text)
        ours["spatialbench_clean"] = clean_answer(text, "multiple_choice", lettered)
        for name, found in ours.items():
            # False, null and the empty text all say that nothing was found.
            tally.equal(f"extracted.{name}", found or None, pair["extracted"][name] or None)
            right = (found or "").lower() == truth.lower()
            tally.equal(f"correct.{name}", right, pair["correct"][name])


def _flips(about: Fixture, tally: Tally) -> None:
    grouping = {
        "vanilla": "vanilla",
        "flip_eval": "flip",
        "circ_eval": "circular",
        "flip_circ_eval": "flip_circular",
    }
    tally.known(about, {"metric", "records", "lmms_eval_0.7.3", "vlmevalkit_grouping_on_same_hits"})
    rows = about["records"]
    for row in rows:
        tally.known(row, {"index", "qid", "category", "prediction", "answer"})
    right = [letters.threedsr_letter(row["prediction"], ()) == row["answer"] for row in rows]
    ours = threedsr_table([row["qid"] for row in rows], [row["category"] for row in rows], right)
    tally.numbers("lmms_eval_0.7.3", ours, about["lmms_eval_0.7.3"])
    renamed = {name: ours[key] for name, key in grouping.items()}
    name = "vlmevalkit_grouping_on_same_hits"
    tally.numbers(name, renamed, about[name])


def _spatialbench(about: Fixture, tally: Tally) -> None:
    inputs = {"problem_id", "problem_type", "original_question_type", "scene_type"}
    texts = {"model_raw_response", "ground_truth"}
    outputs = {"model_answer", "is_correct", "score"}
    tally.known(about, {"metric", "options_for_choice_items", "items", "summary"})
    rows = []
    for item in about["items"]:
        tally.known(item, inputs | texts | outputs)
        kind, text = item["problem_type"], item["model_raw_response"]
        answer = clean_answer(text, kind, about["options_for_choice_items"])
        truth = released_truth(item["ground_truth"])
        value = released_score(answer, truth, kind)
        tally.equal("items.model_answer", answer, item["model_answer"])
        tally.equal("items.is_correct", is_correct(answer, truth, kind), item["is_correct"])
        tally.number("items.score", value, item["score"])
        if text.strip():  # the release drops empty answers before it scores
            rows.append(
                Row(
                    problem_type=kind,
                    question_type=item["original_question_type"],
                    scene_type=item["scene_type"],
                    score=value,
                )
            )
    ours = summary(rows)
    tally.known(about["summary"], ours)
    for name, recorded in about["summary"].items():
        mine = ours[name]
        if isinstance(mine, Mapping):
            tally.numbers(f"summary.{name}", mine, recorded)
        else:
            tally.numbers("summary", {name: mine}, {name: recorded})


def _depth(about: Fixture, tally: Tally) -> None:
    alignments: dict[str, Alignment] = {
        "metric": "none",
        "median_scaled": "median",
        "lsq_scale_only": "scale",
        "lsq_scale_shift_depth": "scale_shift",
    }
    renamed = {"d1": "delta1", "d2": "delta2", "d3": "delta3"}
    tally.known(about, {"metric", "cases"})
    for case in about["cases"]:
        tally.known(case, {"id", "note", "pred", "target", *alignments})
        predicted, target = np.array(case["pred"]), np.array(case["target"])
        valid = target > 0
        for name, alignment in alignments.items():
            errors = depth_errors(predicted, target, alignment=alignment)
            scale, shift = fitted(predicted[valid], target[valid], alignment)
            ours = {**(errors or {}), "scale": scale, "shift": shift}
            recorded = {renamed.get(key, key): value for key, value in case[name].items()}
            tally.numbers(name, ours, recorded)


def _boxes(about: Fixture, tally: Tally) -> None:
    tally.known(about, {"metric", "frame", "yaw_pairs", "euler_pairs", "detection"})
    for pair in about["yaw_pairs"]:
        tally.known(pair, {"id", "case", "box_a", "box_b", "iou_exact", "iou_votenet"})
        boxes = [yaw_box(b["center"], b["size"], b["yaw"]) for b in (pair["box_a"], pair["box_b"])]
        for name in ("iou_exact", "iou_votenet"):
            if name in pair:
                tally.number(f"yaw_pairs.{name}", oriented_iou(*boxes), pair[name])
    for pair in about["euler_pairs"]:
        tally.known(pair, {"id", "box_a", "box_b", "iou_exact"})
        overlap = oriented_iou(euler_box(pair["box_a"]), euler_box(pair["box_b"]))
        tally.number("euler_pairs.iou_exact", overlap, pair["iou_exact"])
    _detection(about["detection"], tally)


def _detection(about: Fixture, tally: Tally) -> None:
    tally.known(about, {"scenes", "votenet_eval", "rule"})
    truth, predictions = {}, {}
    for scene, entry in about["scenes"].items():
        tally.known(entry, {"ground_truth", "predictions"})
        truth[scene] = [
            (b["label"], yaw_box(b["center"], b["size"], b["yaw"])) for b in entry["ground_truth"]
        ]
        predictions[scene] = [
            Detection(
                label=b["label"], box=yaw_box(b["center"], b["size"], b["yaw"]), score=b["score"]
            )
            for b in entry["predictions"]
        ]
    for name, recorded in about["votenet_eval"].items():
        threshold = _threshold(name)
        tally.known(recorded, {"ap", "mAP", "final_recall"})
        classes = average_precision(truth, predictions, threshold=threshold)
        tally.numbers(f"{name}.ap", {k: one.ap for k, one in classes.items()}, recorded["ap"])
        recalls = {label: one.recall for label, one in classes.items()}
        tally.numbers(f"{name}.final_recall", recalls, recorded["final_recall"])
        tally.number(f"{name}.mAP", mean_ap(classes), recorded["mAP"])


def _threshold(name: str) -> float:
    value = official_number(name.removeprefix("iou_"))
    if value is None or not math.isfinite(value):
        raise BadInputError(f"it records {name}, which this comparison does not know")
    return value


def _has(*keys: str) -> Callable[[Fixture], bool]:
    return lambda about: set(keys) <= set(about)


def _items_have(key: str, others: Collection[str] = ()) -> Callable[[Fixture], bool]:
    def has(about: Fixture) -> bool:
        items: Sequence[Any] = about.get("items") or ()
        first = items[0] if items else None
        return isinstance(first, dict) and key in first and set(others) <= set(about)

    return has


def _pairs_have(key: str) -> Callable[[Fixture], bool]:
    return lambda about: bool(about.get("pairs")) and key in about["pairs"][0]


_KINDS: tuple[tuple[Callable[[Fixture], bool], Callable[[Fixture, Tally], None]], ...] = (
    (_pairs_have("scorers"), _vsi_numbers),
    (_has("docs"), _vsi_table),
    (_pairs_have("extracted"), _letters),
    (_has("records"), _flips),
    (_has("options_for_choice_items"), _spatialbench),
    (_items_have("rouge_score"), compare_overlap),
    (_items_have("answers", ["corpus"]), compare_scanqa),
    (_items_have("type", ["scores"]), compare_sqa3d),
    (_items_have("iou", ["scores"]), compare_captions),
    (_has("cases"), _depth),
    (_has("yaw_pairs"), _boxes),
)
