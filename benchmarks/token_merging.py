"""Would merging tokens where the encoder looks across views pay?

    python benchmarks/token_merging.py [--student student_mini] [--recipes edge paper_h100]
        [--rooms 40] [--out FILE]

Where an encoder looks across views, every second (or fourth) patch of a view, with all tokens that
are no patches, stays; each other one is merged into the most similar that stays (arXiv 2210.09461:
the mean of what is merged), attention is among these, and its result goes back to all that were
merged. For the student and for recipes of full size this counts operations, which need no weights:
of looking and of a whole cold question, as they are and merged, the search for what is similar
included; and what merging could save at most, were attention across views and its projections free.
The student, which was not trained for it, also answers questions about made rooms both ways
(``quant_accuracy.py`` says how they are compared; ``--rooms 0`` only counts). Nothing here is
timed. Prints a table, then one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quant_accuracy import QUESTIONS, SEED, compared
from record import circumstances, write
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from stillroom.students.config import StillroomConfig
from stillroom.students.model import StillroomStudent

#: Of so many tokens that are merged one stays.
KEEPS = (2, 4)
#: Photos that a recipe's student and the miniature look at; tokens of a question and its answer.
FULL_VIEWS, MINI_VIEWS, ASKED, SAID = 8, 6, 32, 64


def merged(block: nn.Module, x: Tensor, rotary: Any, *, keep: int, view: int) -> Tensor:
    """A block of the encoder with attention among merged tokens; ``view`` of them are a photo's."""
    own: Any = block
    seen = own.norm1(x)
    grid = int(view**0.5)
    place = torch.arange(x.shape[1]) % view - (view - grid**2)  # negative where it is no patch
    stays = (place < 0) | (place % keep == 0)
    kept, gone = (mask.nonzero()[:, 0].to(x.device) for mask in (stays, ~stays))
    like = F.normalize(seen, dim=-1)
    nearest = (like[:, gone] @ like[:, kept].transpose(1, 2)).argmax(dim=-1)[0]
    total = seen[:, kept].index_add(1, nearest, seen[:, gone])
    ones = torch.ones(len(gone), device=x.device, dtype=x.dtype)
    count = torch.ones(len(kept), device=x.device, dtype=x.dtype).index_add(0, nearest, ones)
    table = None if rotary is None else tuple(part.to(x.device)[kept] for part in rotary)
    few = own.attn(total / count[:, None], table)
    mixed = torch.empty_like(x)
    mixed[:, kept], mixed[:, gone] = few, few[:, nearest]
    x = x + own.ls1(mixed)
    return x + own.ls2(own.mlp(own.norm2(x)))


def across(student: StillroomStudent) -> list[nn.Module]:
    """The encoder's blocks that look across views."""
    encoder: Any = student.encoder
    if hasattr(encoder, "aggregator"):
        return list(encoder.aggregator.global_blocks)
    return [b for i, b in enumerate(encoder.blocks) if encoder.config.looks_across(i)]


@contextmanager
def merging(student: StillroomStudent, keep: int) -> Iterator[None]:
    """The student with merged tokens; with 1 as it is."""
    sizes: Any = student.config.encoder_sizes
    patches = (student.config.image_size // sizes.patch_size) ** 2
    special = 1 + getattr(sizes, "registers", 0)
    blocks = across(student) if keep > 1 else []
    for block in blocks:
        block.forward = partial(merged, block, keep=keep, view=patches + special)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def counted(config: StillroomConfig, views: int) -> dict[str, Any]:
    """Operations of looking and of a cold question, as they are and merged."""
    from stillroom.bench import contestants

    with torch.device("meta"):
        student = StillroomStudent(config).eval()
        photos = torch.empty(1, views, 3, config.image_size, config.image_size)
    one = contestants.student(student, views=views, question_tokens=ASKED, name="")
    work = one.work(student.vision_length(views), ASKED + config.slot_count + 1, views=views)
    rest = work.read + work.ask + (SAID - 1) * work.token
    see = {}
    for keep in (1, *KEEPS):
        with merging(student, keep), FlopCounterMode(display=False) as counter, torch.no_grad():
            student.vision_tokens(student.features(photos))
        see[keep] = float(counter.get_total_flops())
    sizes: Any = config.encoder_sizes
    special = 1 + getattr(sizes, "registers", 0)
    tokens = views * ((config.image_size // sizes.patch_size) ** 2 + special)
    free = (4.0 * tokens**2 * sizes.width + 8.0 * tokens * sizes.width**2) * len(across(student))
    return {
        "views": views,
        "tokens_across": tokens,
        "see": see[1],
        "cold": see[1] + rest,
        "attention_across": free,
        "at_most": {"see": free / see[1], "cold": free / (see[1] + rest)},
        "saved": {
            str(keep): {
                "see": 1 - see[keep] / see[1],
                "cold": (see[1] - see[keep]) / (see[1] + rest),
            }
            for keep in KEEPS
        },
    }


def answered(name: str, rooms: int) -> dict[str, dict[str, Any]]:
    """The student's share of right answers as it is and with merged tokens."""
    from stillroom import registry
    from stillroom.evaluate.run import evaluate
    from stillroom.scenes.make import make_scenes
    from stillroom.scenes.store import open_store
    from stillroom.students.session import StudentAnswerer

    class Merging:
        def __init__(self, keep: int) -> None:
            self.keep = keep
            self.plain = StudentAnswerer.from_folder(registry.locate(name))

        def open(self, scene: Any) -> Any:
            with merging(self.plain.student, self.keep):
                return self.plain.open(scene)

    makers: dict[str, Callable[[], Any]] = {
        f"one of {keep}": partial(Merging, keep) for keep in (1, *KEEPS)
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        make_scenes(work / "rooms", count=rooms, seed=SEED, questions=QUESTIONS, split="test")
        evaluate(
            makers,
            open_store(work / "rooms"),
            split="test",
            out=work / "answers",
            teacher_row=None,
            student_row="one of 1",
            meta={},
            identities={form: form for form in makers},
        )
        return compared(work / "answers" / "items.parquet", list(makers))


def main() -> None:
    """Count, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="student_mini", help="a shipped name or a folder")
    parser.add_argument("--recipes", nargs="*", default=["edge", "paper_h100"])
    parser.add_argument("--rooms", type=int, default=40, help="rooms asked about; 0 for none")
    parser.add_argument("--out", type=Path, help="file that the JSON line is also written to")
    chosen = parser.parse_args()

    from stillroom import recipes, registry
    from stillroom.distill.build import described_student

    found = {
        chosen.student: counted(
            StillroomConfig.from_pretrained(registry.locate(chosen.student)), MINI_VIEWS
        )
    }
    for name in chosen.recipes:
        recipe = recipes.table("distill")[name]()
        where = registry.locate(recipe.language_model) if recipe.language_model else ""
        config = described_student(recipe, registry.locate(recipe.encoder), where)
        found[name] = counted(config, FULL_VIEWS)
    for name, one in found.items():
        print(f"{name}: {one['see'] / 1e9:,.2f} GFLOP to look, {one['cold'] / 1e9:,.2f} cold")
        for title, less in (("free attention", one["at_most"]), *one["saved"].items()):
            print(f"  {title:16}{less['see']:8.1%} less to look {less['cold']:8.1%} less cold")
    rows = answered(chosen.student, chosen.rooms) if chosen.rooms else {}
    for form, row in rows.items():
        print(
            f"{form:10}{row['score']:8.1%} right {row['points']:+.2f} points "
            f"({row['points_low']:+.2f} to {row['points_high']:+.2f})"
        )
    record = {
        "benchmark": "token_merging",
        "student": chosen.student,
        "revision": registry.describe(chosen.student)["revision"],
        "operations": found,
        "rows": rows,
        "seed": SEED,
    }
    write(record | circumstances(["torch", "transformers"]), chosen.out)


if __name__ == "__main__":
    main()
