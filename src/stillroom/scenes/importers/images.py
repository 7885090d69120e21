"""Pictures and numbers from other people's files: read, checked, resampled to one pixel grid.

Everything that cannot be read ends in one ``BadInputError`` that names the file.
"""

from __future__ import annotations

import struct
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps
from scipy.ndimage import map_coordinates

from stillroom.geometry.cameras import pixel_centers, project, rays
from stillroom.geometry.poses import is_rigid, transform
from stillroom.records import BadInputError

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

#: Frames kept of a long capture: a video's neighbours say the same twice.
MAX_VIEWS = 64

#: What Pillow raises on bytes that are damaged.
_DAMAGE = (OSError, SyntaxError, ValueError, struct.error)


def read_rgb(
    path: Path, *, longest_side: int | None = None, upright: bool = False
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture as 8-bit RGB.

    ``longest_side`` shrinks a larger one; ``upright`` turns it as the camera's EXIF note says,
    which is right only where no intrinsics belong to the stored pixels.

    Raises:
        BadInputError: missing, not a picture whatever its name says, or cut short.
    """
    with _opened(path) as image:
        try:
            if upright:
                image = _turned(image)
            if longest_side is not None:
                image.thumbnail((longest_side, longest_side))
            return np.array(image.convert("RGB"))
        except _DAMAGE as error:
            raise _damaged(path, error) from None


def read_depth(path: Path, *, units_per_metre: float) -> Float32[np.ndarray, "h w"]:
    """z-depth in metres from a 16-bit picture, 0 where there is none.

    Raises:
        BadInputError: missing, cut short, or not one channel of 16 bits.
    """
    with _opened(path) as image:
        if image.mode not in ("I;16", "I;16L", "I;16B", "I"):
            raise BadInputError(
                f"{path} is a picture of mode {image.mode}; depth must be one channel of 16 bits "
                "(a 16-bit PNG)"
            )
        try:
            counts = np.array(image)
        except _DAMAGE as error:
            raise _damaged(path, error) from None
    return (counts / units_per_metre).astype(np.float32)


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a picture, without decoding it. Raises BadInputError as ``read_rgb``."""
    with _opened(path) as image:
        return image.height, image.width


def _opened(path: Path) -> Image.Image:
    if not path.is_file():
        raise BadInputError(f"image not found: {path}")
    try:
        with warnings.catch_warnings():
            # Pillow warns of large pictures and refuses huge ones; notes in a file may be damaged.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)
            return Image.open(path)
    except Image.DecompressionBombError:
        raise BadInputError(f"{path} is too large to be a photo; scale it down") from None
    except _DAMAGE:
        raise BadInputError(
            f"{path} is not an image although its name says so; replace or remove it"
        ) from None


def _turned(image: Image.Image) -> Image.Image:
    """Upright by its EXIF note; as stored where the note itself is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return ImageOps.exif_transpose(image)
    except _DAMAGE:
        # A picture damaged elsewhere fails again when it is decoded.
        return image


def _damaged(path: Path, error: Exception) -> BadInputError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return BadInputError(f"{path} is truncated or damaged ({reason}); copy it again or remove it")


def read_numbers(path: Path, shape: tuple[int, ...], what: str) -> Float[np.ndarray, "..."]:
    """The whitespace-separated numbers of a text file in that shape; may hold NaN and infinity.

    Raises:
        BadInputError: missing, not numbers, or another count of them.
    """
    if not path.is_file():
        raise BadInputError(f"{what} not found: {path}")
    try:
        numbers = np.array(path.read_text().split(), dtype=np.float64)
    except ValueError as error:
        raise BadInputError(
            f"{path} must hold {what} as plain numbers ({str(error).splitlines()[0]})"
        ) from None
    if numbers.size != np.prod(shape):
        raise BadInputError(
            f"{path} must hold {what} as {'x'.join(map(str, shape))} numbers, "
            f"it holds {numbers.size}"
        )
    return numbers.reshape(shape)


def checked_pose(pose: Float[np.ndarray, "4 4"], where: str) -> Float[np.ndarray, "4 4"]:
    """The pose, if it is a finite rigid transform, its rotation made exactly orthonormal.

    Raises:
        BadInputError: NaN or infinite entries, or no rotation with a shift.
    """
    if not np.isfinite(pose).all():
        raise BadInputError(
            f"{where} holds a pose with NaN or infinite entries; remove that frame or give its pose"
        )
    if not is_rigid(pose, tolerance=0.02):
        looks = " (it looks transposed)" if is_rigid(pose.T, tolerance=0.02) else ""
        raise BadInputError(
            f"{where} must hold a rigid 4x4 transform, a rotation with a shift over a last row of "
            f"0 0 0 1{looks}; write it as camera to world, row by row"
        )
    # Files carry six digits; the nearest rotation keeps inverse and transpose the same thing.
    u, _, vt = np.linalg.svd(pose[:3, :3])
    rigid = np.eye(4)
    rigid[:3, :3], rigid[:3, 3] = u @ vt, pose[:3, 3]
    return rigid


def checked_intrinsics(k: Float[np.ndarray, "3 3"], where: str) -> Float[np.ndarray, "3 3"]:
    """The intrinsics, if they are a pinhole camera's. Raises BadInputError otherwise."""
    if not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
        raise BadInputError(f"{where} must hold intrinsics with finite, positive focal lengths")
    if abs(k[0, 1]) > 1e-6 * k[0, 0] or np.abs(k[[1, 2, 2, 2], [0, 0, 1, 2]] - [0, 0, 0, 1]).any():
        raise BadInputError(
            f"{where} must hold intrinsics of the form fx 0 cx / 0 fy cy / 0 0 1 (no skew)"
        )
    return k


def evenly(count: int, limit: int = MAX_VIEWS) -> list[int]:
    """At most ``limit`` of ``range(count)``, evenly spaced, first and last among them."""
    if count <= limit:
        return list(range(count))
    return [int(index) for index in np.linspace(0, count - 1, limit).round()]


# Resampling. -----------------------------------------------------------------------------------


def undistort(
    rgb: UInt8[np.ndarray, "h w 3"],
    depth: Float32[np.ndarray, "h w"] | None,
    intrinsics: Float[np.ndarray, "3 3"],
    coefficients: tuple[float, float, float, float, float],
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "h w"] | None]:
    """Picture and depth as a pinhole with the same intrinsics would have taken them.

    ``coefficients`` are k1, k2, p1, p2, k3 of the Brown-Conrady model, as OpenCV orders them.
    Colour is interpolated, depth takes the nearest pixel; what was not seen is black and 0.
    """
    height, width = rgb.shape[:2]
    fx, fy, (cx, cy) = intrinsics[0, 0], intrinsics[1, 1], intrinsics[:2, 2]
    pixels = _bent(float(fx), float(fy), float(cx), float(cy), coefficients, height, width)
    straight = None if depth is None else sample_nearest(depth, pixels)
    return sample_bilinear(rgb, pixels), straight


@lru_cache(maxsize=1)
def _bent(
    fx: float,
    fy: float,
    cx: float,
    cy: float,
    coefficients: tuple[float, ...],
    height: int,
    width: int,
) -> Float[np.ndarray, "h w 2"]:
    """Where each pixel of the pinhole lies in the distorted picture; one camera has many frames."""
    k1, k2, p1, p2, k3 = coefficients
    x = ((np.arange(width) + 0.5 - cx) / fx)[None, :]
    y = ((np.arange(height) + 0.5 - cy) / fy)[:, None]
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return np.stack([bent_x * fx + cx, bent_y * fy + cy], axis=-1)


def colour_on_depth_pixels(
    rgb: UInt8[np.ndarray, "hc wc 3"],
    intrinsics: Float[np.ndarray, "3 3"],
    depth: Float32[np.ndarray, "h w"],
    depth_intrinsics: Float[np.ndarray, "3 3"],
    colour_from_depth: Float[np.ndarray, "4 4"],
) -> UInt8[np.ndarray, "h w 3"]:
    """The colour picture as seen through the depth camera's pixels.

    Where the two cameras stand apart each pixel is carried over at its own depth, and at the
    picture's median depth where it has none.
    """
    # Shrink first, with smoothing: sampling a picture twice as fine would pick every other pixel.
    shrink = min(1.0, depth_intrinsics[0, 0] / intrinsics[0, 0])
    if shrink < 0.9:
        height, width = (max(1, round(side * shrink)) for side in rgb.shape[:2])
        small = Image.fromarray(rgb).resize((width, height), Image.Resampling.BOX)
        scale = np.array([width / rgb.shape[1], height / rgb.shape[0], 1.0])
        rgb, intrinsics = np.array(small), intrinsics * scale[:, None]
    known = depth > 0
    filled = np.where(known, depth, np.median(depth[known]) if known.any() else 1.0)
    points = rays(pixel_centers(*depth.shape), depth_intrinsics) * filled[..., None]
    return sample_bilinear(rgb, project(transform(colour_from_depth, points), intrinsics))


def sample_nearest(
    image: Float32[np.ndarray, "h w"], pixels: Float[np.ndarray, "h2 w2 2"]
) -> Float32[np.ndarray, "h2 w2"]:
    """Values of the pixels that hold the points (x, y); 0 outside the image."""
    x, y = np.moveaxis(np.floor(pixels), -1, 0)
    inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
    found = image[np.where(inside, y, 0).astype(int), np.where(inside, x, 0).astype(int)]
    return np.where(inside, found, np.float32(0))


def sample_bilinear(
    image: UInt8[np.ndarray, "h w 3"], pixels: Float[np.ndarray, "h2 w2 2"]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Values between pixel centres at the points (x, y); black outside the image."""
    height, width = image.shape[:2]
    x, y = np.moveaxis(pixels, -1, 0)
    inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    # Between the outermost centres and the border the nearest pixel goes on.
    place = np.stack([y - 0.5, x - 0.5])
    channels = [
        map_coordinates(image[..., channel], place, order=1, mode="nearest", output=np.float32)
        for channel in range(3)
    ]
    mixed = np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
    return np.where(inside[..., None], mixed, np.uint8(0))
