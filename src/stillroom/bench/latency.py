"""How long teacher and student take for the same scene and question, side by side.

Time for a scene and time for an answer are bound by different things. A cold question looks at the
photos, reads the scene with the language model and then answers: many operations on few weights,
so that the rate of matrix products is its limit. A warm one, of a scene that is open, reads a few
words and then says one token after another, each of which has to bring every weight of the language
model from memory: the rate of copies is its limit. Both are measured here end to end and stage by
stage, teacher and student in turns, with the same engine, device, precision, words and answer
length, and held against what the machine was seen to do (``machine.py``).
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from stillroom.bench.contestants import Contestant
from stillroom.bench.machine import (
    Machine,
    measure_machine,
    peak_memory,
    resident_bytes,
    synchronise,
)
from stillroom.bench.options import LatencyOptions
from stillroom.records import BadInputError, Scene

#: Stages of a cold question, in order: photos to tensors, to visual tokens, these through the
#: language model, and the answer.
STAGES = ("prepare", "see", "read", "answer")
#: Rounds of each other number of photos or questions that is tried.
SWEPT = 3
Maker = Callable[[], Contestant]


@torch.no_grad()
def measure(
    makers: Mapping[str, Maker],
    scenes: Sequence[Scene],
    options: LatencyOptions,
    device: torch.device,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Latency of each contestant on the same scenes: what ``record`` and ``lines`` show.

    ``makers`` load them when their turn comes, under the names ``teacher`` and ``student``.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    machine = measure_machine(device, getattr(torch, options.dtype))
    runs: dict[str, _Run] = {}
    rounds = -(-options.repeats // options.turns)
    total = options.turns * rounds * len(makers)
    done = 0
    for turn in range(options.turns):
        together = options.resident == "together"
        for names in [list(makers)] if together else [[name] for name in makers]:
            loaded = {name: _loaded(makers[name], device) for name in names}
            for name in names:
                run = runs.setdefault(name, _Run(name, options, device))
                run.begin(loaded[name], scenes[0], first=turn == 0)
            for number in range(rounds):
                for name in names:
                    runs[name].round(loaded[name].contestant, scenes[number % len(scenes)])
                    done += 1
                    if progress is not None:
                        progress(done, total)
            if turn == 0:
                for name in names:
                    runs[name].sweep(loaded[name].contestant, scenes[0])
            del loaded
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return _record({name: run.result(machine) for name, run in runs.items()}, machine, options)


@dataclass(frozen=True)
class _Loaded:
    contestant: Contestant
    # Memory that the process had before it was loaded.
    before: int | None


def _loaded(make: Maker, device: torch.device) -> _Loaded:
    before = _held_bytes(device)
    return _Loaded(make(), before)


def _held_bytes(device: torch.device) -> int | None:
    return resident_bytes() if device.type == "cpu" else torch.cuda.memory_allocated(device)


class _Run:
    """The times of one contestant."""

    def __init__(self, role: str, options: LatencyOptions, device: torch.device) -> None:
        self.role, self.options, self.device = role, options, device
        self.cold: list[dict[str, float]] = []
        self.warm: list[dict[str, float]] = []
        self.swept: list[dict[str, Any]] = []
        self.about: dict[str, Any] = {}
        self.at: int | None = None

    def begin(self, loaded: _Loaded, scene: Scene, *, first: bool) -> None:
        """Warm up, and note what the model is and how much memory it needs."""
        one, options = loaded.contestant, self.options
        started = _held_bytes(self.device)
        with peak_memory(self.device) as peak:
            for _ in range(max(1, options.warm_up)):
                self._cold(one, scene, options.tokens)
        if not first:
            return
        prefix = one.read(one.see(one.prepare(scene)))
        self.question = len(one.prompt())
        seen = min(one.views, len(scene.views))
        self.work = one.work(prefix.length, self.question, views=seen)
        self.about = {
            "name": one.name,
            "parameters": one.parameters,
            "weight_bytes": one.weight_bytes,
            "views": seen,
            "scene_tokens": prefix.length,
            "question_tokens": self.question,
            "scene_bytes": prefix.nbytes,
            "peak_bytes": _peak(one, peak.bytes, started, loaded.before),
        }
        self.at = getattr(options, f"at_{self.role}_views")
        if self.at is not None:
            self.tokens_there = one.tokens_of(scene, self.at)
            self.work_there = one.work(self.tokens_there, self.question, views=self.at)

    def round(self, one: Contestant, scene: Scene) -> None:
        """One cold question, then a warm one about the same scene."""
        stages, prefix = self._cold(one, scene, self.options.tokens)
        self.cold.append(stages)
        self.warm.append(self._warm(one, prefix, 1, self.options.tokens))

    def sweep(self, one: Contestant, scene: Scene) -> None:
        """Other numbers of photos and of questions at once."""
        options = self.options
        for views in options.sweep_views:
            fewer = _with_views(one, scene, views)
            taken = [self._cold(one, fewer, options.tokens)[0] for _ in range(SWEPT)]
            self.swept.append({"views": views, **_summary(taken)})
        prefix = one.read(one.see(one.prepare(scene)))
        for batch in options.sweep_batch:
            taken = [self._warm(one, prefix, batch, options.tokens) for _ in range(SWEPT)]
            self.swept.append({"batch": batch, **_summary(taken)})

    def _cold(self, one: Contestant, scene: Scene, tokens: int) -> tuple[dict[str, float], Any]:
        clock = _Clock(self.device)
        inputs = one.prepare(scene)
        clock.lap("prepare")
        embeds = one.see(inputs)
        clock.lap("see")
        prefix = one.read(embeds)
        clock.lap("read")
        prompt = one.prompt()
        one.say(prefix, [prompt], tokens)
        clock.lap("answer")
        return {**clock.laps, "total": clock.total}, prefix

    def _warm(self, one: Contestant, prefix: Any, batch: int, tokens: int) -> dict[str, float]:
        clock = _Clock(self.device)
        one.say(prefix, [one.prompt() for _ in range(batch)], 1)
        clock.lap("first_token")
        one.say(prefix, [one.prompt() for _ in range(batch)], tokens)
        clock.lap("total")
        laps = clock.laps
        return laps | {"per_token": (laps["total"] - laps["first_token"]) / (tokens - 1)}

    def result(self, machine: Machine) -> dict[str, Any]:
        """Everything about the contestant, in milliseconds, operations and bytes."""
        cold, warm = _summary(self.cold), _summary(self.warm)
        # Of a few noisy tokens the rest may seem to take less than nothing: then nobody knows.
        if warm["per_token_ms"]["median"] <= 0:
            warm["per_token_ms"] = None
        token = warm["per_token_ms"]
        read = self.work.token_bytes / 1e9
        token_share = None if token is None else read / (token["median"] / 1000) / machine.copy_gb_s
        rates = {
            "see": self.work.see / _seconds(cold, "see"),
            "read": self.work.read / _seconds(cold, "read"),
        }
        best = machine.matmul_tflop_s * 1e12
        found = {
            **self.about,
            "cold": cold,
            "warm": warm,
            "work": asdict(self.work),
            "share_of_matmul": {stage: round(rate / best, 4) for stage, rate in rates.items()},
            "share_of_copy": None if token_share is None else round(token_share, 4),
            "sweep": self.swept,
        }
        if self.at is not None:
            found["extrapolated"] = self._extrapolated(cold, warm)
        return found

    def _extrapolated(self, cold: Mapping[str, Any], warm: Mapping[str, Any]) -> dict[str, Any]:
        """The same about more photos: each stage grows as what it has to do does."""
        assert self.at is not None
        here, there = self.work, self.work_there
        ways = {
            "prepare": self.at / self.about["views"],
            "see": there.see / here.see,
            "read": there.read / here.read,
        }
        stages = {name: cold[f"{name}_ms"]["median"] * way for name, way in ways.items()}
        first = warm["first_token_ms"]["median"] * there.ask / here.ask
        later = max(0.0, warm["total_ms"]["median"] - warm["first_token_ms"]["median"])
        answer = first + later * there.token_bytes / here.token_bytes
        return {
            "views": self.at,
            "scene_tokens": self.tokens_there,
            "cold_ms": round(sum(stages.values()) + answer, 4),
            "warm_ms": round(answer, 4),
            **{f"{name}_ms": round(value, 4) for name, value in stages.items()},
            "work": asdict(there),
        }


class _Clock:
    """Laps between which a GPU is waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.laps = device, dict[str, float]()
        synchronise(device)
        self.began = self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Seconds since the last lap, under this name."""
        synchronise(self.device)
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now

    @property
    def total(self) -> float:
        """Seconds of all laps."""
        return self.last - self.began


def _with_views(one: Contestant, scene: Scene, views: int) -> Scene:
    if views > len(scene.views):
        raise BadInputError(
            f"sweep_views asks for {views} photos, the scene has {len(scene.views)}; name fewer"
        )
    return replace(scene, views=scene.views[:views])


def _peak(one: Contestant, peak: int | None, started: int | None, before: int | None) -> int | None:
    """What a model needs at most: the peak over what was there before it was loaded.

    A process keeps memory that others gave back, and fills it first: at least it is the weights and
    what a question took besides.
    """
    if peak is None or started is None or before is None:
        return None
    return max(peak - before, one.weight_bytes + max(peak - started, 0))


def _summary(taken: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Median and 95th percentile of each figure, in milliseconds."""
    found = {}
    for name in taken[0]:
        values = sorted(1000 * one[name] for one in taken)
        high = values[min(len(values) - 1, int(0.95 * len(values)))]
        found[f"{name}_ms"] = {"median": round(statistics.median(values), 4), "p95": round(high, 4)}
    return found


def _seconds(summary: Mapping[str, Any], stage: str) -> float:
    return float(summary[f"{stage}_ms"]["median"]) / 1000


# What is shown. -----------------------------------------------------------------------------------


def _record(
    models: Mapping[str, dict[str, Any]], machine: Machine, options: LatencyOptions
) -> dict[str, Any]:
    teacher, student = models["teacher"], models["student"]
    found: dict[str, Any] = {
        "kind": "latency",
        "ratio": {
            kind: round(_total(teacher, kind) / _total(student, kind), 3)
            for kind in ("cold", "warm")
        },
        # Without the photos' way from files to tensors, which is the host's and not the model's.
        "ratio_without_prepare": {"cold": round(_on_device(teacher) / _on_device(student), 3)},
        "parameters": {name: one["parameters"] for name, one in models.items()},
        "parameter_ratio": round(teacher["parameters"] / student["parameters"], 3),
        "models": dict(models),
        "device": asdict(machine),
        "options": asdict(options),
    }
    if any("extrapolated" in one for one in models.values()):
        found["ratio_extrapolated"] = {
            kind: round(_total(teacher, kind, far=True) / _total(student, kind, far=True), 3)
            for kind in ("cold", "warm")
        }
    return found


def _total(one: Mapping[str, Any], kind: str, *, far: bool = False) -> float:
    """Milliseconds of a cold or warm question, about more photos where that was asked for."""
    if far and "extrapolated" in one:
        return float(one["extrapolated"][f"{kind}_ms"])
    return float(one[kind]["total_ms"]["median"])


def _on_device(one: Mapping[str, Any]) -> float:
    """Milliseconds of a cold question from tensors on."""
    return float(sum(one["cold"][f"{stage}_ms"]["median"] for stage in STAGES[1:]))


def lines(record: Mapping[str, Any]) -> list[str]:
    """The record as a table for people."""
    machine, options = record["device"], record["options"]
    models = record["models"]
    names = list(models)
    found = [
        f"{machine['name']}, {machine['device']}, {machine['dtype']}, {machine['threads']} threads",
        f"copies {machine['copy_gb_s']:.1f} GB/s, matrix products "
        f"{machine['matmul_tflop_s']:.3f} TFLOP/s",
        f"a question of {options['question_tokens']} words' tokens, an answer of "
        f"{options['tokens']}; median (p95), {options['repeats']} rounds in turns",
        "",
        f"{'':26}" + "".join(f"{models[name]['name'] + ', ' + name:>30}" for name in names),
    ]

    def row(title: str, cell: Callable[[Mapping[str, Any]], str]) -> None:
        found.append(f"{title:26}" + "".join(f"{cell(models[name]):>30}" for name in names))

    row("parameters", lambda one: f"{one['parameters']:,}")
    row("weights, MB", lambda one: f"{one['weight_bytes'] / 1e6:,.1f}")
    row("photos, tokens of scene", lambda one: f"{one['views']}, {one['scene_tokens']}")
    row("open scene holds, MB", lambda one: f"{one['scene_bytes'] / 1e6:,.2f}")
    row("peak above the start, MB", lambda one: _megabytes(one["peak_bytes"]))
    row("cold question, ms", lambda one: _time(one["cold"]["total_ms"]))
    for stage in STAGES:
        row(f"  {stage}", lambda one, stage=stage: _time(one["cold"][f"{stage}_ms"]))  # type: ignore[misc]
    row("warm question, ms", lambda one: _time(one["warm"]["total_ms"]))
    row("  first token", lambda one: _time(one["warm"]["first_token_ms"]))
    row("  each token behind it", lambda one: _time(one["warm"]["per_token_ms"]))
    row("see, GFLOP", lambda one: f"{one['work']['see'] / 1e9:,.2f}")
    row("read, GFLOP", lambda one: f"{one['work']['read'] / 1e9:,.2f}")
    row("question, GFLOP", lambda one: f"{one['work']['ask'] / 1e9:,.3f}")
    row("a token reads, MB", lambda one: f"{one['work']['token_bytes'] / 1e6:,.1f}")
    row("see, of matrix rate", lambda one: f"{100 * one['share_of_matmul']['see']:.0f} %")
    row("read, of matrix rate", lambda one: f"{100 * one['share_of_matmul']['read']:.0f} %")
    row("tokens, of copy rate", lambda one: _share(one["share_of_copy"]))
    found += _swept(models, names)
    if "ratio_extrapolated" in record:
        for kind in ("cold", "warm"):
            row(
                f"by operations: {kind}, ms",
                lambda one, kind=kind: (  # type: ignore[misc]
                    f"{_total(one, kind, far=True):,.1f} at {_views_there(one)} photos"
                ),
            )
        found.append(_ratios("by operations, ", record["ratio_extrapolated"], record))
    if "as_asked" in record:
        for kind in ("cold", "warm"):
            cells = [f"{record['as_asked'][name][f'{kind}_ms']:,.2f}" for name in names]
            title = f"real questions: {kind}, ms"
            found.append(f"{title:26}" + "".join(f"{cell:>30}" for cell in cells))
    found.append(_ratios("", record["ratio"], record))
    cold = record["ratio_without_prepare"]["cold"]
    found.append(f"cold without the photos' way to tensors {cold:.2f} times")
    if "ratio_as_asked" in record:
        asked = record["ratio_as_asked"]
        found.append(
            "real questions, answers as long as they are: "
            f"{asked['cold']:.2f} times as fast cold, {asked['warm']:.2f} times warm"
        )
    return found


def _ratios(before: str, ratio: Mapping[str, float], record: Mapping[str, Any]) -> str:
    return (
        f"{before}the student is {ratio['cold']:.2f} times as fast cold and {ratio['warm']:.2f} "
        f"times warm, with {record['parameter_ratio']:.2f} times fewer parameters"
    )


def _views_there(one: Mapping[str, Any]) -> int:
    return int(one.get("extrapolated", one)["views"])


def _swept(models: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    found = []
    for index, entry in enumerate(models[names[0]]["sweep"]):
        what = "cold, photos" if "views" in entry else "warm, questions at once"
        count = entry.get("views", entry.get("batch"))
        cells = [_time(models[name]["sweep"][index]["total_ms"]) for name in names]
        found.append(f"{what + ' ' + str(count):26}" + "".join(f"{cell:>30}" for cell in cells))
    return found


def _share(value: float | None) -> str:
    return "not told" if value is None else f"{100 * value:.0f} %"


def _time(entry: Mapping[str, float] | None) -> str:
    if entry is None:
        return "not told"
    return f"{entry['median']:,.2f} ({entry['p95']:,.2f})"


def _megabytes(count: int | None) -> str:
    return "not told here" if count is None else f"{count / 1e6:,.1f}"
