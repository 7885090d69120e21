"""Photos and text to a student's input, and ids back to text; numpy and Pillow only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from stillroom.geometry.cameras import crop_intrinsics, resize_intrinsics
from stillroom.records import MAX_QUESTION_CHARS, BadInputError
from stillroom.text.tokenizer import Tokenizer, load_tokenizer

Photo = Path | str | Image.Image | UInt8[np.ndarray, "h w 3"]

CONFIG_FILE = "processor_config.json"
TOKENIZER_FILE = "tokenizer.json"
_SPECIAL_IDS = ("bos_id", "eos_id", "pad_id")


class StillroomProcessor:
    """Any number of photos of any size to squares; questions to ids that end with ``<bos>``.

    Of each photo the middle square is kept and resized. Of more than ``max_views`` photos that
    many are taken, evenly spread, the first always among them: it sets the frame.
    """

    def __init__(self, *, image_size: int, max_views: int, tokenizer: Tokenizer | None = None):
        self.image_size, self.max_views = image_size, max_views
        self.tokenizer = load_tokenizer() if tokenizer is None else tokenizer

    # Photos. ------------------------------------------------------------------------------------

    def chosen(self, count: int) -> list[int]:
        """Which of ``count`` photos are looked at, in order."""
        if count <= self.max_views:
            return list(range(count))
        return [int(index * count / self.max_views) for index in range(self.max_views)]

    def images(self, photos: Sequence[Photo]) -> Float32[np.ndarray, "v 3 s s"]:
        """The chosen photos as RGB in 0..1.

        Raises:
            BadInputError: no photo, or one that cannot be read.
        """
        if not len(photos):
            raise BadInputError("no photos given; a student needs at least one")
        squares = [self._square(_open(photos[index])) for index in self.chosen(len(photos))]
        return np.stack(squares).transpose(0, 3, 1, 2) / np.float32(255.0)

    def _square(self, image: Image.Image) -> UInt8[np.ndarray, "s s 3"]:
        box = _middle(image.width, image.height)
        size = (self.image_size, self.image_size)
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
        return np.asarray(image)

    def depth(self, maps: Sequence[Float[np.ndarray, "h w"]]) -> Float32[np.ndarray, "v s s"]:
        """Depth maps in metres of the chosen photos, cut and sampled as the photos are.

        The nearest pixel is taken: a mean over an edge is a depth that nothing has.
        """
        cut = []
        for index in self.chosen(len(maps)):
            height, width = maps[index].shape
            left, top, right, bottom = _middle(width, height)
            place = (np.arange(self.image_size) + 0.5) / self.image_size
            rows = np.minimum((top + place * (bottom - top)).astype(int), height - 1)
            columns = np.minimum((left + place * (right - left)).astype(int), width - 1)
            cut.append(maps[index][np.ix_(rows, columns)].astype(np.float32))
        return np.stack(cut)

    def intrinsics(
        self, intrinsics: Float[np.ndarray, "3 3"], hw: tuple[int, int]
    ) -> Float[np.ndarray, "3 3"]:
        """Intrinsics [px] of the square that ``images`` makes of a photo of height and width."""
        left, top, right, bottom = _middle(hw[1], hw[0])
        cropped = crop_intrinsics(intrinsics, left, top)
        side = (round(bottom - top), round(right - left))
        return resize_intrinsics(cropped, side, (self.image_size, self.image_size))

    # Text. --------------------------------------------------------------------------------------

    def question_ids(self, text: str) -> list[int]:
        """Ids of a question, without ``<bos>``.

        Raises:
            BadInputError: the text is empty or too long.
        """
        if not text.strip():
            raise BadInputError("the question is empty; ask something about the photos")
        if len(text) > MAX_QUESTION_CHARS:
            raise BadInputError(
                f"the question has {len(text)} characters, at most {MAX_QUESTION_CHARS} are "
                "taken; shorten it"
            )
        return self.tokenizer.encode(text)

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """Text of an answer's ids, up to ``<eos>``."""
        return self.tokenizer.decode([int(token) for token in ids])

    def batch_decode(self, rows: Sequence[Sequence[int]], **_: Any) -> list[str]:
        """Texts of several answers."""
        return [self.decode(row) for row in rows]

    # As transformers calls it. ------------------------------------------------------------------

    def __call__(
        self,
        images: Sequence[Photo] | Sequence[Sequence[Photo]] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: Literal["np", "pt"] = "np",
        **_: Any,
    ) -> dict[str, Any]:
        """``input_ids`` and ``attention_mask`` of questions, ``pixel_values`` of their photos.

        ``images`` is one scene's photos, or a list of them per question; scenes of one call must
        have equally many.
        """
        out: dict[str, Any] = {}
        if text is not None:
            out |= self._texts([text] if isinstance(text, str) else text)
        if images is not None:
            nested = len(images) > 0 and isinstance(images[0], list | tuple)
            scenes: Any = images if nested else [images]
            arrays = [self.images(scene) for scene in scenes]
            if len({len(array) for array in arrays}) > 1:
                raise BadInputError("scenes of one call must have equally many photos")
            out["pixel_values"] = np.stack(arrays)
        if return_tensors == "pt":
            import torch

            return {name: torch.from_numpy(array) for name, array in out.items()}
        return out

    def _texts(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        rows = [[*self.question_ids(text), self.tokenizer.bos_id] for text in texts]
        width = max(len(row) for row in rows)
        ids = np.full((len(rows), width), self.tokenizer.pad_id, dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)], mask[index, : len(row)] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    # Keeping. -----------------------------------------------------------------------------------

    def save_pretrained(self, folder: Path | str, **_: Any) -> None:
        """Write the settings and the tokenizer beside a student's weights."""
        home = Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        settings = {
            "processor_class": type(self).__name__,
            "image_size": self.image_size,
            "max_views": self.max_views,
            **{name: getattr(self.tokenizer, name) for name in _SPECIAL_IDS},
        }
        (home / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        self.tokenizer.save(home / TOKENIZER_FILE)

    @classmethod
    def from_pretrained(cls, where: Path | str, **_: Any) -> StillroomProcessor:
        """The processor of a student's folder or hub id.

        Raises:
            BadInputError: nothing there, or settings that cannot be read.
        """
        try:
            settings = json.loads(_find(where, CONFIG_FILE).read_text())
            counts = {name: int(settings[name]) for name in ("image_size", "max_views")}
            for name, count in counts.items():
                if count < 1:
                    raise ValueError(f"{name} must be at least 1, got {count}")
            return cls(
                **counts,
                tokenizer=Tokenizer(
                    _find(where, TOKENIZER_FILE),
                    # Folders older than these settings have the made worlds' tokenizer.
                    **{name: int(settings[name]) for name in _SPECIAL_IDS if name in settings},
                ),
            )
        except BadInputError:
            raise
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise BadInputError(
                f"{where} holds no student's {CONFIG_FILE} ({error}); save the processor again"
            ) from error


def _find(where: Path | str, name: str) -> Path:
    """A file of a local folder or of a repository on the hub."""
    if Path(where).is_dir():
        path = Path(where) / name
        if not path.is_file():
            raise BadInputError(f"{where} holds no {name}; name a student's folder")
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(str(where), name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadInputError(
            f"{where} is no folder, and the hub gave no {name}; name a student's folder"
        ) from error


def _middle(width: int, height: int) -> tuple[float, float, float, float]:
    """The largest centred square: left, top, right, bottom in pixels."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def photo_identity(photo: Photo) -> str | bytes:
    """What tells a photo from others: its file and when that was written, or its pixels."""
    if isinstance(photo, np.ndarray):
        return str(photo.shape).encode() + np.ascontiguousarray(photo).tobytes()
    if isinstance(photo, Image.Image):
        return f"{photo.size} {photo.mode}".encode() + photo.tobytes()
    path = Path(photo).absolute()
    written = path.stat().st_mtime_ns if path.exists() else 0
    return f"{path} {written}"


def _open(photo: Photo) -> Image.Image:
    """The photo upright and as RGB; transparent pixels are laid on white."""
    if isinstance(photo, np.ndarray):
        return Image.fromarray(photo).convert("RGB")
    if isinstance(photo, Image.Image):
        return _upright_rgb(photo)
    try:
        with Image.open(photo) as image:
            return _upright_rgb(image)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise BadInputError(f"{photo} is not a readable picture ({error})") from None


def _upright_rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16 bits a channel: Pillow would cut them off at 255.
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
