"""A recipe for every row of the paper's tables II and III (specs/hidden_cot.md, section 6).

Table II takes something away from the run without slots, as the paper does; its first two rows are
``BASE_no_slots`` (all losses) and BASE itself (+ Hidden CoT). Table III changes K; its K = 8 is
BASE. All rows of a base have equal data, steps and seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from stillroom.distill.config import DistillConfig, SlotConfig
from stillroom.recipes.mini import mini_cpu
from stillroom.recipes.paper import paper_h100, tiny_10gb

Recipe = Callable[[], DistillConfig]
Change = Callable[[DistillConfig], DistillConfig]


def mini_cpu_paper() -> DistillConfig:
    """mini_cpu with all eight terms of the paper beside its own two: the base of its tables.

    Its slots learn from the answer alone, as the paper's do.
    """
    base = mini_cpu()
    every = replace(base.losses, detection=True, spatial=True, multi_view=True, feature=True)
    return replace(base, losses=every, slots=replace(base.slots, supervision="answer"))


def _no_slots(config: DistillConfig) -> DistillConfig:
    return replace(config, slots=SlotConfig(kind="none", count=0))


def _without(term: str) -> Change:
    off: dict[str, Any] = {term: False}

    def change(config: DistillConfig) -> DistillConfig:
        return _no_slots(replace(config, losses=replace(config.losses, **off)))

    return change


def _static_weights(config: DistillConfig) -> DistillConfig:
    return _no_slots(replace(config, losses=replace(config.losses, weighting="static")))


def _slots(count: int) -> Change:
    return lambda config: replace(config, slots=replace(config.slots, count=count))


#: What follows the base's name, what the row is, and what it changes.
ROWS: Mapping[str, tuple[str, Change]] = {
    "no_slots": ("Table II, all losses: no slots", _no_slots),
    "no_detection": ("Table II, no detection: neither its term nor slots", _without("detection")),
    "no_depth": ("Table II, no depth: none of its three terms, no slots", _without("depth")),
    "no_spatial": ("Table II, no spatial: neither its term nor slots", _without("spatial")),
    "no_multi_view": (
        "Table II, no multi-view: neither its term nor slots",
        _without("multi_view"),
    ),
    "no_feature": ("Table II, no feature: neither its term nor slots", _without("feature")),
    "static_weights": ("Table II, static weights: all terms weigh 1, no slots", _static_weights),
    "k2": ("Table III: K = 2", _slots(2)),
    "k4": ("Table III: K = 4", _slots(4)),
    "k16": ("Table III: K = 16", _slots(16)),
}
BASES: Mapping[str, Recipe] = {
    "mini_cpu_paper": mini_cpu_paper,
    "tiny_10gb": tiny_10gb,
    "paper_h100": paper_h100,
}


def _recipe(base: str, title: str, change: Change) -> Recipe:
    def make() -> DistillConfig:
        return change(BASES[base]())

    make.__doc__ = f"{title}, else {base}."
    return make


DISTILL: Mapping[str, Recipe] = {
    "mini_cpu_paper": mini_cpu_paper,
    **{
        f"{base}_{row}": _recipe(base, title, change)
        for base in BASES
        for row, (title, change) in ROWS.items()
    },
}
