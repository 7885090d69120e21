"""Learning curves of a training as a PNG: what a run's log says, by scene passes.

    python benchmarks/curves.py docs/runs/teacher_mini.jsonl --out docs/images/teacher_mini.png

The left half shows the held-out measures that are shares (accuracy by family), the right half the
terms of the loss (means over each hundredth of the run, logarithmic).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from stillroom.records import FAMILIES
from stillroom.training.runlog import read_log

PORTIONS = 100


def main() -> None:
    """Draw one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("log", type=Path, help="log.jsonl of a run")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--scenes-per-step", type=int, default=4, help="scenes of one step")
    parser.add_argument("--all", action="store_true", help="every family, not only the four")
    chosen = parser.parse_args()
    steps, evaluations = read_log(chosen.log, kind="step"), read_log(chosen.log, kind="eval")
    figure, (held_out, terms) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    names = dict.fromkeys(name for row in evaluations for name in row["metrics"])
    for name in names:
        if name in FAMILIES or (chosen.all and name not in ("answer_ce", "grounding")):
            known = [row for row in evaluations if name in row["metrics"]]
            passes = [row["step"] * chosen.scenes_per_step for row in known]
            shares = [100 * row["metrics"][name] for row in known]
            held_out.plot(passes, shares, marker="o", markersize=3, label=name.replace("_", " "))
    held_out.axhline(50, color="#9aa1a9", linestyle=":", linewidth=1)
    held_out.set(xlabel="scene passes", ylabel="right, % (held out, teacher-forced)", ylim=(0, 100))
    held_out.legend(fontsize=8, loc="lower right")
    passes = np.array([row["step"] for row in steps]) * chosen.scenes_per_step
    parts = np.array_split(np.arange(len(steps)), min(PORTIONS, len(steps)))
    for name in dict.fromkeys(name for row in steps for name in row["terms"]):
        values = np.array([row["terms"].get(name, np.nan) for row in steps], dtype=float)
        means = [float(np.nanmean(values[part])) for part in parts]
        terms.plot([passes[part].mean() for part in parts], means, label=name.replace("_", " "))
    terms.set(xlabel="scene passes", ylabel="term of the loss", yscale="log")
    terms.legend(fontsize=8, ncols=2)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(chosen.out, dpi=110)
    print(chosen.out)


if __name__ == "__main__":
    main()
