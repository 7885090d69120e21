"""Photos to VGGT's input as the release prepares them; numpy and Pillow only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, UnidentifiedImageError

from stillroom.records import BadInputError

TARGET = 518
MULTIPLE = 14
Photo = Path | Image.Image | UInt8[np.ndarray, "_ _ _"]


def prepare(
    photos: Sequence[Photo],
    *,
    mode: Literal["crop", "pad"] = "crop",
    target: int = TARGET,
    multiple: int = MULTIPLE,
) -> Float32[np.ndarray, "n 3 h w"]:
    """RGB in 0..1, not normalised, sides multiples of ``multiple``.

    ``crop``: the width becomes ``target``, and what is taller than that loses rows above and
    below. ``pad``: the longer side becomes ``target``, white fills the rest of the square.
    Photos that end up of different sizes are padded with white to the largest.

    Raises:
        BadInputError: no photo, or one that cannot be read.
    """
    if not photos:
        raise BadInputError("no photos given; name at least one")
    arrays = [_fit(open_rgb(photo), mode, target, multiple) for photo in photos]
    height = max(array.shape[1] for array in arrays)
    width = max(array.shape[2] for array in arrays)
    return np.stack([_pad_white(array, height, width) for array in arrays])


def prepare_square(
    photos: Sequence[Photo], *, target: int
) -> tuple[Float32[np.ndarray, "n 3 t t"], Float[np.ndarray, "n 6"]]:
    """Photos padded to a square with black and resized, and where each lies in it.

    A row of the second array is x1, y1, x2, y2 of the photo in the output [pixels], then its
    original width and height.
    """
    squares, places = [], []
    for photo in photos:
        image = open_rgb(photo)
        width, height = image.size
        side = max(width, height)
        left, top = (side - width) // 2, (side - height) // 2
        square = Image.new("RGB", (side, side))
        square.paste(image, (left, top))
        squares.append(_to_array(square.resize((target, target), Image.Resampling.BICUBIC)))
        scale = target / side
        corners = (left, top, left + width, top + height)
        places.append([*(scale * corner for corner in corners), width, height])
    return np.stack(squares), np.array(places, dtype=np.float64)


def open_rgb(photo: Photo) -> Image.Image:
    """The photo as RGB; transparent pixels are laid on white.

    Raises:
        BadInputError: the file is missing, truncated or no picture.
    """
    image = _open(photo)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _open(photo: Photo) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo
    if isinstance(photo, np.ndarray):
        return Image.fromarray(photo)
    try:
        with Image.open(photo) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError) as error:
        raise BadInputError(f"{photo} is not a readable picture ({error})") from None


def _fit(
    image: Image.Image, mode: Literal["crop", "pad"], target: int, multiple: int
) -> Float32[np.ndarray, "3 h w"]:
    width, height = image.size
    if mode == "pad" and height > width:
        size = (_rounded(width * target / height, multiple), target)
    else:
        size = (target, _rounded(height * target / width, multiple))
    array = _to_array(image.resize(size, Image.Resampling.BICUBIC))
    if mode == "pad":
        return _pad_white(array, target, target)
    top = max(array.shape[1] - target, 0) // 2
    return array[:, top : top + target]


def _rounded(length: float, multiple: int) -> int:
    # Python's round, half to even, as in the release.
    return max(round(length / multiple), 1) * multiple


def _to_array(image: Image.Image) -> Float32[np.ndarray, "3 h w"]:
    return np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255.0)


def _pad_white(
    array: Float32[np.ndarray, "3 h w"], height: int, width: int
) -> Float32[np.ndarray, "3 h2 w2"]:
    above, left = (height - array.shape[1]) // 2, (width - array.shape[2]) // 2
    padded = np.ones((3, height, width), dtype=np.float32)
    padded[:, above : above + array.shape[1], left : left + array.shape[2]] = array
    return padded
