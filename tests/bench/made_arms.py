"""Folders of finished arms without any training: items drawn with effects that are known."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stillroom.bench.arm import DEPTH_SCHEMA, ITEM_SCHEMA, VERSION
from stillroom.records import FAMILIES

SCENES, EACH = 60, 3


def write_arms(
    home: Path, effects: Mapping[str, Mapping[str, float]], *, seeds: int = 3
) -> dict[tuple[str, int], Path]:
    """Arms by name, each with rows by name ("student" and interventions) and the share of right
    answers of each row. All rows of a seed share their luck, so that differences are paired."""
    homes = {}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        luck = rng.random((SCENES, len(FAMILIES), EACH))
        for arm, rows in effects.items():
            homes[arm, seed] = home / arm / f"seed{seed}"
            _write_arm(homes[arm, seed], arm, rows, luck, seed)
    return homes


def _write_arm(
    home: Path, arm: str, rows: Mapping[str, float], luck: np.ndarray, seed: int
) -> None:
    items = []
    for row, right in rows.items():
        for scene, family, number in np.ndindex(luck.shape):
            hit = bool(luck[scene, family, number] < right)
            items.append(
                {
                    "row": row,
                    "scene_id": f"s{scene:03d}",
                    "question_id": f"{scene}-{family}-{number}",
                    "family": FAMILIES[family],
                    "score": float(hit),
                    "rouge1": None,
                    "nats": 0.5 if hit else 3.0,
                    "tokens": 2,
                }
            )
        items += [
            {
                "row": row,
                "scene_id": f"s{scene:03d}",
                "question_id": f"{scene}-d",
                "family": "description",
                "score": 0.3,
                "rouge1": right / 2,
                "nats": 20.0,
                "tokens": 40,
            }
            for scene in range(SCENES)
        ]
    depth = [
        {"scene_id": f"s{scene:03d}", "squared_error": 4.0, "cells": 100} for scene in range(SCENES)
    ]
    home.mkdir(parents=True)
    for name, lines, schema in (("items", items, ITEM_SCHEMA), ("depth", depth, DEPTH_SCHEMA)):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(lines, schema=schema), sink)
        (home / f"{name}.parquet").write_bytes(sink.getvalue())
    record = {
        "version": VERSION,
        "suite": "slots",
        "arm": arm,
        "seed": seed,
        "steps": 750,
        "best_step": 500,
        "seconds": 300.0,
        "asked_seconds": 20.0,
        "validation": {"answer_ce": 0.4},
        "parameters": {"total": 1_670_000, "trained": 760_000},
        "interventions": [row for row in rows if row != "student"],
        "meta": {},
        "asked_meta": {},
    }
    (home / "arm.json").write_text(json.dumps(record))
    teacher = {"overall": {"score": 0.9, "low": 0.88, "high": 0.92, "n": luck.size}}
    (home / "evaluation").mkdir()
    (home / "evaluation" / "results.json").write_text(
        json.dumps({"rows": {"teacher": teacher | {"metrics": {}, "retention": {}}}})
    )
