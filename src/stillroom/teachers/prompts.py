"""The words around a question, and how they become ids with stand-ins for scene and points."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from stillroom.records import BadInputError, Question
from stillroom.teachers.llava3d_config import TemplateName, read_json
from stillroom.text.tokenizer import RESERVED, Tokenizer
from stillroom.text.vocabulary import Vocabulary

#: Stand-ins among token ids: the visual block, and one coordinate.
VISUAL_ID = -200
COORDINATE_ID = -300
_PLACEHOLDERS = {"<image>": VISUAL_ID, "<boxes>": COORDINATE_ID}

#: What makes the 7B answer in few words; its scores fall without it.
SHORT_ANSWER = "Answer the question using one word or one phrase."


@dataclass(frozen=True, kw_only=True)
class Template:
    """A conversation's fixed words. Stops and spaces are part of them."""

    system: str
    user: str
    # Between the user's text and the answer.
    assistant: str
    # After an answer.
    stop: str
    # Between the visual block and the user's text.
    after_image: str
    # Whether a question is worded by its task; else its own text stands alone.
    worded: bool
    # Where BOS stands: in front of all, or between the question and its answer.
    bos: Literal["first", "before_answer"]

    def render(self, rounds: Sequence[tuple[str, str | None]]) -> str:
        """The text of a conversation; an answer of None is still to be given."""
        text = self.system
        for question, answer in rounds:
            text += f"{self.user}{question}{self.assistant}"
            if answer is not None:
                text += f" {answer}{self.stop}"
        return text

    def prefix_ids(self, tokenizer: PromptTokenizer) -> list[int]:
        """Ids before the visual block: the same for every question of every scene."""
        words = self.system + self.user
        start = [tokenizer.bos_id] if self.bos == "first" else []
        return start + (tokenizer.encode(words) if words else [])

    def question_ids(
        self, tokenizer: PromptTokenizer, question: Question, *, task: str = "auto"
    ) -> list[int]:
        """Ids between the visual block and the answer, -300 for every object of the question.

        ``task`` is a name in ``TASKS``, or auto: the question's family, where a task bears its
        name. Nothing in the question's own text is taken for a placeholder.

        Raises:
            BadInputError: the task speaks of objects and the question names none.
        """
        asked = TASKS[self._task(question) if task == "auto" else task]
        if asked.needs_objects and not question.object_ids:
            raise BadInputError(
                f"question {question.question_id} names no object, but its task speaks of where "
                "one lies; give it object_ids or choose another task"
            )
        words = f"{self.after_image}{asked.words(len(question.object_ids))}{self.assistant}"
        ids: list[int] = []
        for number, piece in enumerate(words.split("<boxes>")):
            # Each piece by itself, as in ``placeholder_ids``.
            ids += ([COORDINATE_ID] if number else []) + tokenizer.encode(
                piece.replace("{question}", question.prompt)
            )
        return ids + ([tokenizer.bos_id] if self.bos == "before_answer" else [])

    def _task(self, question: Question) -> str:
        if not self.worded or question.family in ("description", "asked"):
            return "plain"
        return question.family if question.family in TASKS else "short"


@dataclass(frozen=True, kw_only=True)
class Task:
    """The release's wording of one task; ``{question}`` stands for the question's own text.

    ``{located}`` stands for the sentence that says where the question's objects lie.
    """

    text: str

    @property
    def needs_objects(self) -> bool:
        """Whether the question must name objects whose place is known."""
        return "{located}" in self.text

    def words(self, objects: int) -> str:
        """The text, with one ``<boxes>`` for each of ``objects``."""
        kind = "object is" if objects == 1 else "objects are"
        located = name_objects(f"The related {kind} located at <boxes>.", objects)
        return self.text.replace("{located}", located)


#: Wordings of the release, by task; a question's text and situation stand joined by a space.
TASKS: dict[str, Task] = {
    "plain": Task(text="{question}"),
    "short": Task(text=f"{{question}} {SHORT_ANSWER}"),
    "scanqa": Task(text=f"{{question}} {SHORT_ANSWER}"),
    "sqa3d": Task(text=f"{{question}} {SHORT_ANSWER}"),
    "object_qa": Task(text="{located} {question}"),
    "object_caption": Task(text="{located} Describe the object in detail."),
    "scan2cap": Task(
        text="{located} Describe the object first: begin by detailing the visual aspects of this "
        "object before delving into its spatial context among other elements within the scene, "
        "and then localize the object in the 3D scene."
    ),
    "localise": Task(
        text="{located} Please output the 3D bounding box of the object and then describe the "
        "object."
    ),
    "scene_caption": Task(text="Describe the scene concisely."),
    "grounding": Task(
        text='"{question}" Which object best matches the given description? Please provide its '
        "coordinates."
    ),
}


def _vicuna(human: str) -> Template:
    return Template(
        system=(
            f"A chat between a curious {human} and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the "
            f"{human}'s questions. "
        ),
        user="USER: ",
        assistant=" ASSISTANT:",
        stop="</s>",
        after_image="\n",
        worded=True,
        bos="first",
    )


#: llava_v1 is what the release evaluates with, v1 what it was trained with; mini has no words.
TEMPLATES: dict[TemplateName, Template] = {
    "llava_v1": _vicuna("human"),
    "v1": _vicuna("user"),
    "mini": Template(
        system="",
        user="",
        assistant="",
        stop="",
        after_image="",
        worded=False,
        bos="before_answer",
    ),
}


def placeholder_ids(text: str, encode: Callable[[str], list[int]], *, bos_id: int) -> list[int]:
    """Ids of a prompt with -200 for ``<image>`` and -300 for ``<boxes>``, one BOS in front.

    Each piece between placeholders is encoded by itself, as the release does it: encoding the
    text in one go gives other ids around them.
    """
    ids = [bos_id]
    for piece in re.split(r"(<image>|<boxes>)", text):
        if piece in _PLACEHOLDERS:
            ids.append(_PLACEHOLDERS[piece])
        elif piece:
            ids += encode(piece)
    return ids


def name_objects(question: str, count: int) -> str:
    """A question about ``count`` clicked points: its ``<boxes>`` repeated once for each."""
    return question.replace("<boxes>", ", ".join(["<boxes>"] * count))


def box_text(rows: Sequence[Sequence[float | int]]) -> str:
    """Numbers as the release's formatter prints them: three decimals, rows apart by semicolons."""
    return "[" + ";".join(",".join(f"{value:.3f}" for value in row) for row in rows) + "]"


@runtime_checkable
class PromptTokenizer(Protocol):
    """What a teacher needs of a tokenizer; ``encode`` adds nothing."""

    bos_id: int
    eos_id: int
    # Ids that ``encode`` can give.
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of one piece of text."""
        ...

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer as the model was taught it, its end included."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and outer spaces."""
        ...

    def vocabulary(self, *, rows: int | None = None) -> Vocabulary:
        """Which token stands behind which id; ``rows`` is how many logits the model has."""
        ...


class HubTokenizer:
    """A Llama tokenizer from transformers, piece by piece."""

    def __init__(self, folder: Path, *, bos_id: int, eos_id: int) -> None:
        from transformers import AutoTokenizer, LlamaConfig

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                folder,
                # Without it transformers reads config.json, whose llava_llama it does not know.
                config=LlamaConfig(),
                # Without the split a user's "</s>" would be a real end of sequence.
                split_special_tokens=True,
            )
        except Exception as error:  # tokenizers raises nothing narrower
            if (folder / "tokenizer.model").is_file() and not _can_read_sentencepiece():
                raise BadInputError(
                    f"{folder / 'tokenizer.model'} needs sentencepiece: "
                    "pip install 'stillroom[teacher]'"
                ) from None
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "unreadable"
            raise BadInputError(f"{folder} holds no usable tokenizer: {reason}") from None
        self.bos_id, self.eos_id = bos_id, eos_id
        # Special tokens are never encoded: one beyond the model's entries does no harm.
        special = set(self._tokenizer.all_special_ids)
        ids = [i for i in self._tokenizer.get_vocab().values() if i not in special]
        self.vocab_size = max(ids, default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of one piece of text; SentencePiece puts its space marker before every piece."""
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_answer(self, text: str) -> list[int]:
        """Ids of an answer and its end; SentencePiece marks the space before it."""
        return [*self.encode(text), self.eos_id]

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens and outer spaces."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def vocabulary(self, *, rows: int | None = None) -> Vocabulary:
        """Which token stands behind which id; ``rows`` is how many logits the model has."""
        return Vocabulary.of(self._tokenizer.get_vocab(), rows=rows)


def open_tokenizer(folder: Path, *, bos_id: int, eos_id: int, vocab_size: int) -> PromptTokenizer:
    """The tokenizer of a checkpoint folder: stillroom's own by its reserved tokens, or Llama's.

    Raises:
        BadInputError: there is none, or it has more entries than the model.
    """
    file = folder / "tokenizer.json"
    own = _stillroom_tokenizer(file) if file.is_file() else None
    tokenizer: PromptTokenizer = own or HubTokenizer(folder, bos_id=bos_id, eos_id=eos_id)
    if tokenizer.vocab_size > vocab_size:
        raise BadInputError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size} entries, the model only "
            f"{vocab_size}; they belong to different checkpoints"
        )
    return tokenizer


def _can_read_sentencepiece() -> bool:
    return find_spec("sentencepiece") is not None and find_spec("google") is not None


def _stillroom_tokenizer(file: Path) -> Tokenizer | None:
    added = read_json(file, "tokenizer.json").get("added_tokens") or []
    ids = {entry.get("content"): entry.get("id") for entry in added if isinstance(entry, dict)}
    if any(ids.get(token) != number for number, token in enumerate(RESERVED)):
        return None
    return Tokenizer(file)
