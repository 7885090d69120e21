"""Scenes, labels and an encoder that the tests of distillation share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_world import WIDTH, write_world

from stillroom.records import SceneFeatures
from stillroom.teachers.label_store import LabelStore


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Label stores that hold features: 4 x 4 patches in each of two views, 6 tokens, width 10."""

    def scene_features(self: LabelStore, scene_id: str) -> SceneFeatures:
        rng = np.random.default_rng(int(scene_id, 16))
        return SceneFeatures(
            scene_id=scene_id,
            pooled=rng.normal(size=(6, WIDTH)),
            patch_token=rng.integers(0, 6, 32),
            views=(0, 1),
        )

    monkeypatch.setattr(LabelStore, "scene_features", scene_features, raising=False)
