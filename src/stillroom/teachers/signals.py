"""What a teacher is asked for, which tensors that makes, and in which precision they are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stillroom.records import SIGNALS, BadInputError, FeatureTeacher, Signal, Teacher, TeacherLabel

#: What is outside the k largest logits of a position is one outcome of its own.
TAIL_RULE = "one outcome: log(exp(logsumexp) - sum(exp(topk_logits)))"

#: By signal: the tensors of its rows, laid end to end.
ROW_TENSORS: dict[Signal, tuple[str, ...]] = {
    "topk_logits": ("topk_ids", "topk_logits", "logsumexp"),
    "reference_logits": (
        "reference_topk_ids",
        "reference_topk_logits",
        "reference_logsumexp",
    ),
    "last_hidden": ("last_hidden",),
    "attention": ("attention", "attention_mass"),
}


@dataclass(frozen=True, kw_only=True)
class SignalConfig:
    """The signals of one labelling, in the order of ``records.SIGNALS``; answers always."""

    signals: tuple[Signal, ...] = ("answers", "topk_logits")

    def __post_init__(self) -> None:
        unknown = [name for name in self.signals if name not in SIGNALS]
        if unknown:
            raise BadInputError(
                f"unknown signal {unknown[0]!r}; a teacher can be asked for {', '.join(SIGNALS)}"
            )
        wanted = {"answers", *self.signals}
        object.__setattr__(self, "signals", tuple(name for name in SIGNALS if name in wanted))

    @classmethod
    def of(cls, signals: Sequence[Signal]) -> SignalConfig:
        """From names in any order, doubled or not."""
        return cls(signals=tuple(signals))

    @property
    def row_tensors(self) -> tuple[str, ...]:
        """Names of the tensors that rows have under these signals."""
        return tuple(name for signal in self.signals for name in ROW_TENSORS.get(signal, ()))

    @property
    def scene_features(self) -> bool:
        """Whether the features of a scene's visual tokens are kept."""
        return "scene_features" in self.signals

    def require_of(self, teacher: Teacher, name: str) -> None:
        """Refuse a teacher that has no features to give.

        Raises:
            BadInputError: naming the teacher.
        """
        if self.scene_features and not isinstance(teacher, FeatureTeacher):
            raise _lacks(name, "scene_features")

    def require_in(self, label: TeacherLabel, name: str) -> None:
        """Refuse a label that leaves out what was asked for.

        Raises:
            BadInputError: naming the teacher and the signal.
        """
        given = {
            "answers": label.answer,
            "topk_logits": label.topk_logits,
            "reference_logits": label.reference,
            "last_hidden": label.last_hidden,
            "attention": label.attention,
        }
        for signal in self.signals:
            if signal in given and given[signal] is None:
                raise _lacks(name, signal)
        if label.answer_ids is None and self.row_tensors:
            raise BadInputError(
                f"the teacher {name} gives no ids of its answers, so that nothing can stand at "
                "their positions; label with --signals answers"
            )


def _lacks(name: str, signal: str) -> BadInputError:
    return BadInputError(f"the teacher {name} gives no {signal}; leave it out of --signals")
