"""What the benchmarks of lettered choices share: an official letter rule, and ours beside it."""

from __future__ import annotations

from stillroom.evaluate.letters import LETTER_RULES
from stillroom.evaluate.suites.base import Column, FiguresOf, Item, bare_options, item_column

CORRECTED_ID = "letter/stillroom-1"


def letter_column(rule_id: str, figures: FiguresOf) -> Column:
    """A column in which an answer is right when the rule of that id finds the right letter."""
    rule = LETTER_RULES[rule_id]

    def parse(item: Item, text: str) -> str | None:
        return rule(text, bare_options(item))

    def score(item: Item, text: str) -> float:
        return float(parse(item, text) == item.question.answer)

    return item_column(rule_id, parse, score, figures)


def letter_columns(rule_id: str, figures: FiguresOf) -> dict[str, Column]:
    """The columns of a choice benchmark: by the published rule, and by ours."""
    return {
        "official": letter_column(rule_id, figures),
        "corrected": letter_column(CORRECTED_ID, figures),
    }
