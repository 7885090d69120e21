"""What the benchmarks of lettered choices share: an official letter rule, and ours beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stillroom.evaluate.letters import LETTER_RULES, LetterRule, stated_letter
from stillroom.evaluate.suites.base import Item, Table, bare_options

#: Right or wrong, item by item -> figures.
Figures = Callable[[Sequence[Item], Sequence[float]], dict[str, float]]

CORRECTED_ID = "letter/stillroom-1"


def official_score(rule_id: str) -> Callable[[Item, str], float]:
    """1 where the rule of that id finds the right letter."""
    rule = LETTER_RULES[rule_id]
    return lambda item, text: _right(item, text, rule)


def _right(item: Item, text: str, rule: LetterRule) -> float:
    return float(rule(text, bare_options(item)) == item.question.answer)


def two_columns(rule_id: str, figures: Figures) -> Callable[[Sequence[Item], Sequence[str]], Table]:
    """The table of a choice benchmark: by the published rule, and by ours."""

    def table(items: Sequence[Item], answers: Sequence[str]) -> Table:
        columns: Table = {}
        for column, rule in (("official", LETTER_RULES[rule_id]), ("corrected", stated_letter)):
            right = [_right(item, text, rule) for item, text in zip(items, answers, strict=True)]
            columns[column] = figures(items, right)
        return columns

    return table
