"""Photos and a question to what a transformers vision-language model reads.

A processor is put together from its tokenizer and its Pillow image processor, asked for by name:
``AutoProcessor`` wants torchvision for models that could also take videos, and pixels would
depend on whether it happens to be installed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import transformers
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from stillroom.records import BadInputError, Question
from stillroom.teachers.llava3d_config import read_json
from stillroom.teachers.photos import with_instruction

#: Prompts of models without a chat template: LLaVA's, unless the model is named. ``text`` is the
#: question with how to answer it, which PaliGemma (short by nature) has no words for.
PLAIN_PROMPTS = {"paligemma": "{images}answer en {question}"}
PLAIN_PROMPT = "USER: {images}\n{text} ASSISTANT:"
#: Input tensors of one token each, by which a prompt can be cut.
_BY_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")


@runtime_checkable
class ScenePrompts(Protocol):
    """The photos of one scene, ready to be asked about."""

    def whole(self, question: Question) -> dict[str, Tensor]:
        """All that the model takes for one question, a batch of one."""
        ...

    def tail(self, question: Question) -> list[int] | None:
        """Ids behind the last visual token; None where the prompt cannot be cut there."""
        ...

    def reference(self, question: Question) -> list[int]:
        """Ids of the true answer as it would follow the prompt, with its end."""
        ...


@runtime_checkable
class PromptMaker(Protocol):
    """Tokenizer and image processor of one model."""

    image_token_id: int
    #: Tokens that end an answer; the first is the one that ours end with.
    eos_ids: tuple[int, ...]

    def open(self, images: Sequence[Image.Image]) -> ScenePrompts:
        """Prompts about these photos."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and outer spaces."""
        ...


def prefix_of(whole: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """The inputs of the first ``length`` tokens, pictures included."""
    return {
        name: value[:, :length] if name in _BY_TOKEN else value for name, value in whole.items()
    }


def visual_places(ids: Int[Tensor, "t"], image_token_id: int) -> Int[Tensor, "n"]:
    """Where the visual tokens stand in a prompt."""
    return (ids == image_token_id).nonzero()[:, 0]


class TransformersPrompts:
    """``PromptMaker`` of a transformers model, by its own processor and chat template.

    Raises:
        BadInputError: the folder holds no usable tokenizer or image processor.
    """

    def __init__(
        self, folder: Path, *, eos_ids: Sequence[int], instruction: str, image_token_id: int
    ) -> None:
        self.processor = open_processor(folder)
        self.tokenizer: Any = self.processor.tokenizer
        self.instruction, self.image_token_id = instruction, image_token_id
        own = self.tokenizer.eos_token_id
        self.eos_ids = tuple(eos_ids) or ((own,) if own is not None else ())
        if not self.eos_ids:
            raise BadInputError(f"{folder} names no token that ends an answer (eos_token_id)")
        self._plain = PLAIN_PROMPTS.get(_model_type(folder), PLAIN_PROMPT)
        #: The one piece of text that stands for a photo, if this processor has one.
        self.marker: str | None = getattr(self.processor, "image_token", None)

    def open(self, images: Sequence[Image.Image]) -> TransformersScene:
        """Prompts about these photos, which are prepared with the first question."""
        return TransformersScene(self, list(images))

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and outer spaces."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def text(self, question: Question, images: int) -> str:
        """The prompt as text, with a marker for every photo.

        Raises:
            BadInputError: the question holds a control token of the model.
        """
        control = [*self.tokenizer.all_special_tokens, self.marker or ""]
        found = next((token for token in control if token and token in question.prompt), None)
        if found is not None:
            raise BadInputError(
                f"the question holds {found!r}, which this teacher reads as a command; reword it"
            )
        asked = with_instruction(question, self.instruction)
        if self.processor.chat_template is None:
            markers = (self.marker or "<image>") * images
            return self._plain.format(images=markers, text=asked, question=question.prompt)
        content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": asked}]
        return str(
            self.processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        )

    def plain_ids(self, text: str) -> list[int]:
        """Ids of a piece of text, nothing added."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def begins_itself(self, text: str) -> bool:
        """Whether a prompt brings its own begin-of-sequence token."""
        bos = self.tokenizer.bos_token
        return bool(bos) and text.startswith(bos)


class TransformersScene:
    """Photos of one scene with a processor: prompts whole, or cut behind the last photo."""

    def __init__(self, maker: TransformersPrompts, images: list[Image.Image]) -> None:
        self.maker, self.images = maker, images
        self._cuts: bool | None = None
        # The question last prepared: it is asked for twice when a scene is opened.
        self._last: tuple[Question, dict[str, Tensor]] | None = None

    def whole(self, question: Question) -> dict[str, Tensor]:
        """All that the model takes for one question, pictures included.

        Raises:
            BadInputError: the processor cannot take these photos.
        """
        if self._last is not None and self._last[0] is question:
            return dict(self._last[1])
        text = self.maker.text(question, len(self.images))
        more = {"add_special_tokens": False} if self.maker.begins_itself(text) else {}
        try:
            with warnings.catch_warnings():
                # PaliGemma's processor makes an array of tensors in a way that numpy 2 warns of.
                warnings.simplefilter("ignore", DeprecationWarning)
                inputs = self.maker.processor(
                    text=[text], images=[self.images], return_tensors="pt", **more
                )
        except (ValueError, TypeError, IndexError) as error:
            raise BadInputError(
                f"this teacher's processor cannot take {len(self.images)} photos and a question: "
                f"{first_line(error)}"
            ) from None
        # PaliGemma's processor makes training targets, too.
        kept = {name: value for name, value in inputs.items() if name != "labels"}
        self._last = question, kept
        return dict(kept)

    def tail(self, question: Question) -> list[int] | None:
        """Ids behind the last visual token; None where the pieces do not add up to the whole."""
        if self._cuts is None:
            whole = self.whole(question)
            ids = whole["input_ids"][0]
            places = visual_places(ids, self.maker.image_token_id)
            self._cuts = (
                "token_type_ids" not in whole
                and len(places) > 0
                and self._pieces(question) == ids[int(places[-1]) + 1 :].tolist()
            )
        return self._pieces(question) if self._cuts else None

    def _pieces(self, question: Question, answer: str = "") -> list[int] | None:
        """Ids of the text behind the last photo's marker, encoded without what is before it."""
        marker = self.maker.marker
        text = self.maker.text(question, len(self.images))
        if marker is None or marker not in text:
            return None
        behind = self.maker.plain_ids(marker + text.rpartition(marker)[2] + answer)
        if self.maker.image_token_id not in behind:
            return None
        return behind[behind.index(self.maker.image_token_id) + 1 :]

    def reference(self, question: Question) -> list[int]:
        """Ids of the true answer as it would follow the prompt, with its end."""
        text = self.maker.text(question, len(self.images))
        answer = question.answer if text[-1:].isspace() else f" {question.answer}"
        before, both = self._pieces(question), self._pieces(question, answer)
        if before is None or both is None or both[: len(before)] != before:
            ids = self.maker.plain_ids(question.answer)
        else:
            ids = both[len(before) :]
        return [*ids, self.maker.eos_ids[0]]


def open_processor(folder: Path) -> Any:
    """A checkpoint's processor with Pillow's pixels; parts for video or sound stay empty.

    Raises:
        BadInputError: a part is missing or needs a package that is not here.
    """
    cls = _processor_class(folder)
    lenient: Any = type(cls.__name__, (cls,), {"check_argument_for_proper_class": _allow_none})
    try:
        settings, _ = cls.get_processor_dict(folder)
        parts = [_part(folder, name) for name in cls.get_attributes()]
        processor = lenient.from_args_and_dict(parts, settings)
    except ImportError as error:
        raise BadInputError(
            f"the processor of {folder.name} needs a package that is not installed "
            f"({first_line(error)}); pip install torchvision"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BadInputError(
            f"{folder} holds no usable tokenizer and image processor: {first_line(error)}"
        ) from None
    if processor.chat_template is None:
        processor.chat_template = processor.tokenizer.chat_template
    return processor


def _part(folder: Path, name: str) -> Any:
    if name == "tokenizer":
        return AutoTokenizer.from_pretrained(folder)
    if name == "image_processor":
        return AutoImageProcessor.from_pretrained(folder, backend="pil")
    return None


def _allow_none(self: Any, name: str, argument: Any) -> Any:
    """``check_argument_for_proper_class``, but a part that is not there passes."""
    if argument is None:
        return None
    return super(type(self), self).check_argument_for_proper_class(name, argument)


def _processor_class(folder: Path) -> Any:
    """The processor's class: as the checkpoint names it, or as transformers does."""
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            name = read_json(folder / file, file).get("processor_class")
            if isinstance(name, str) and hasattr(transformers, name):
                return getattr(transformers, name)
    model_type = _model_type(folder)
    name = PROCESSOR_MAPPING_NAMES.get(model_type)
    cls = getattr(transformers, name, None) if name else None
    if cls is None:
        raise BadInputError(f"transformers knows no processor for a {model_type!r}")
    return cls


def _model_type(folder: Path) -> str:
    return str(AutoConfig.from_pretrained(folder).model_type)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
