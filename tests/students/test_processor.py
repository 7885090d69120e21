"""Photos of every kind to squares, questions to ids; without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stillroom.records import BadInputError
from stillroom.students.processor import StillroomProcessor


def test_a_photo_of_the_right_size_is_not_touched(processor: StillroomProcessor) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    (image,) = processor.images([photo])
    assert image.dtype == np.float32
    np.testing.assert_array_equal(np.round(image * 255).astype(np.uint8), photo.transpose(2, 0, 1))


@pytest.mark.parametrize("size", [(28, 84), (84, 28), (61, 47), (5, 5), (400, 300)])
def test_any_photo_becomes_a_square(processor: StillroomProcessor, size: tuple[int, int]) -> None:
    images = processor.images([np.full((*size, 3), 128, np.uint8)])
    assert images.shape == (1, 3, 28, 28)
    np.testing.assert_allclose(images, 128 / 255, atol=1e-6)


def test_the_middle_of_a_wide_photo_is_kept(processor: StillroomProcessor) -> None:
    photo = np.zeros((28, 84, 3), np.uint8)
    photo[:, 28:56] = 255
    np.testing.assert_array_equal(processor.images([photo]), 1.0)


def test_depth_is_cut_as_the_photo_is(processor: StillroomProcessor) -> None:
    depth = np.tile(np.arange(168, dtype=np.float32), (56, 1))
    (cut,) = processor.depth([depth])
    # Columns 56..111 remain; every output pixel is one of the two it covers.
    assert cut.shape == (28, 28)
    np.testing.assert_array_equal(cut[0], 57 + 2 * np.arange(28))


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "I;16", "CMYK", "1"])
def test_photos_of_every_mode_are_read(
    processor: StillroomProcessor, tmp_path: Path, mode: str
) -> None:
    photo = Image.new("L", (40, 30), 200)
    suffix = "jpg" if mode == "CMYK" else "png"
    converted = photo.convert("I").convert("I;16") if mode == "I;16" else photo.convert(mode)
    converted.save(tmp_path / f"photo.{suffix}")
    assert processor.images([tmp_path / f"photo.{suffix}"]).shape == (1, 3, 28, 28)


def test_sixteen_bits_are_scaled_and_not_cut_off(processor: StillroomProcessor) -> None:
    grey = Image.fromarray(np.full((28, 28), 0x8000, np.uint16))
    np.testing.assert_allclose(processor.images([grey]), 128 / 255, atol=1e-6)


def test_a_photo_lying_on_its_side_is_set_upright(
    processor: StillroomProcessor, tmp_path: Path
) -> None:
    pixels = np.zeros((28, 28, 3), np.uint8)
    pixels[:14] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise
    Image.fromarray(pixels).save(tmp_path / "side.png", exif=exif)
    (image,) = processor.images([tmp_path / "side.png"])
    assert image[0, 14, 27] == 1.0
    assert image[0, 14, 0] == 0.0


def test_transparent_pixels_are_white(processor: StillroomProcessor) -> None:
    clear = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    np.testing.assert_array_equal(processor.images([clear]), 1.0)


@pytest.mark.parametrize(
    ("count", "chosen"), [(1, [0]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3]), (9, [0, 2, 4, 6])]
)
def test_of_many_photos_some_are_taken_evenly_and_the_first_always(
    processor: StillroomProcessor, count: int, chosen: list[int]
) -> None:
    assert processor.chosen(count) == chosen
    photos = [np.full((28, 28, 3), index, np.uint8) for index in range(count)]
    seen = np.round(processor.images(photos)[:, 0, 0, 0] * 255).astype(int).tolist()
    assert seen == chosen


def test_no_photos_are_an_error(processor: StillroomProcessor) -> None:
    with pytest.raises(BadInputError, match="no photos given"):
        processor.images([])


def test_a_text_file_named_jpg_is_an_error_that_names_it(
    processor: StillroomProcessor, tmp_path: Path
) -> None:
    (tmp_path / "photo.jpg").write_text("not a picture")
    with pytest.raises(BadInputError, match=r"photo\.jpg is not a readable picture"):
        processor.images([tmp_path / "photo.jpg"])


def test_a_photo_cut_short_is_an_error(processor: StillroomProcessor, tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(
        whole
    )
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(BadInputError, match="is not a readable picture"):
        processor.images([cut])


@pytest.mark.parametrize("text", ["", "  \n "])
def test_an_empty_question_is_an_error(processor: StillroomProcessor, text: str) -> None:
    with pytest.raises(BadInputError, match="the question is empty"):
        processor.question_ids(text)


def test_a_question_of_ten_thousand_characters_is_an_error(processor: StillroomProcessor) -> None:
    with pytest.raises(BadInputError, match=r"10000 characters, at most 2000"):
        processor.question_ids("a" * 10_000)


def test_called_as_transformers_does_it_pads_and_marks_the_start(
    processor: StillroomProcessor, photos: list[np.ndarray]
) -> None:
    out = processor(images=photos, text=["Is the lamp on?", "Why?"])
    assert out["pixel_values"].shape == (1, 2, 3, 28, 28)
    lengths = out["attention_mask"].sum(axis=1)
    assert lengths[0] == out["input_ids"].shape[1] > lengths[1]
    for row, length in zip(out["input_ids"], lengths, strict=True):
        assert row[length - 1] == 1
        assert (row[length:] == 0).all()


def test_scenes_of_unequal_numbers_of_photos_do_not_fit_one_call(
    processor: StillroomProcessor, photos: list[np.ndarray]
) -> None:
    with pytest.raises(BadInputError, match="equally many photos"):
        processor(images=[photos, photos[:1]], text=["a", "b"])


def test_saved_and_loaded_it_is_the_same(processor: StillroomProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = StillroomProcessor.from_pretrained(tmp_path)
    assert (loaded.image_size, loaded.max_views) == (28, 4)
    text = "Is the red chair left of the table?"
    assert loaded.question_ids(text) == processor.question_ids(text)
    assert loaded.decode([*loaded.question_ids(text), 2, 40]) == text


def test_a_folder_without_a_processor_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds no processor_config\.json"):
        StillroomProcessor.from_pretrained(tmp_path)


def test_broken_settings_are_an_error(processor: StillroomProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_size": 28}))
    with pytest.raises(BadInputError, match=r"holds no student's processor_config\.json"):
        StillroomProcessor.from_pretrained(tmp_path)


def test_importing_it_loads_neither_torch_nor_torchvision() -> None:
    code = (
        "import sys, stillroom.students.processor; "
        "assert not {'torch', 'torchvision', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
