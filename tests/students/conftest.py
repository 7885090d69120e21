"""A student small enough for every test, and rows for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from stillroom.engine.packing import Packed, pack_questions, stack_rows
from stillroom.students.config import StillroomConfig, neox_config
from stillroom.students.encoders.vggt import mini_config
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor

#: Questions and answers as ids; answers end with <eos>.
PAIRS = [([40, 41, 42], [50, 2]), ([43, 44], [51, 52, 2]), ([45] * 5, [53, 2])]


def tiny_config(**changes: Any) -> StillroomConfig:
    """2 x 2 cells of two 28 px views, 2 layers of 32."""
    encoder = mini_config(
        width=16,
        heads=2,
        encoder_heads=2,
        camera_heads=2,
        encoder_depth=1,
        patch_size=7,
        image_size=28,
        dpt_features=8,
        dpt_channels=(8, 8, 8, 8),
        point_head=False,
        camera_head=False,
    )
    text = neox_config(hidden_size=32, layers=2, heads=4, tie_embeddings=False)
    # Large, so that a tiny random model says different things to different questions.
    text.initializer_range = 0.3
    settings: dict[str, Any] = {
        "encoder": encoder.to_dict(),
        "text_config": text,
        "vision_grid": 2,
        "image_size": 28,
        "max_views": 4,
        "slot_count": 3,
        "depth_bins": 8,
        "max_answer_tokens": 6,
    }
    return StillroomConfig(**(settings | changes))


def tiny_student(**changes: Any) -> StillroomStudent:
    """The same weights every time."""
    torch.manual_seed(0)
    return StillroomStudent(tiny_config(**changes)).eval()


def tiny_images(scenes: int = 1, views: int = 2, seed: int = 0) -> torch.Tensor:
    """Random photos, 0..1."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(scenes, views, 3, 28, 28, generator=generator)


def tiny_rows(student: StillroomStudent, pairs: Any = PAIRS, *, scenes: int = 1) -> Packed:
    """The same questions about every scene of two views."""
    row = pack_questions(
        pairs,
        prefix_length=student.vision_length(2),
        slots=student.config.slot_count,
        slot_position=student.config.slot_position,
        start_id=1,
    )
    return stack_rows([row] * scenes, multiple_of=8)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tensors this small are faster on one core, and threads that wait take it from others."""
    torch.set_num_threads(1)


@pytest.fixture
def make_student() -> Callable[..., StillroomStudent]:
    return tiny_student


@pytest.fixture
def make_images() -> Callable[..., torch.Tensor]:
    return tiny_images


@pytest.fixture
def make_rows() -> Callable[..., Packed]:
    return tiny_rows


@pytest.fixture
def make_config() -> Callable[..., StillroomConfig]:
    return tiny_config


@pytest.fixture
def processor() -> StillroomProcessor:
    return StillroomProcessor(image_size=28, max_views=4)


@pytest.fixture
def photos() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (28, 28, 3), dtype=np.uint8) for _ in range(2)]
