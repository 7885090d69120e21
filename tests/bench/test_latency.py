"""The latency bench: what it counts, what it measures, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from stillroom import api, cli, registry
from stillroom.bench import contestants
from stillroom.bench.asked import count_equal
from stillroom.bench.latency import lines, measure
from stillroom.bench.machine import measure_machine, peak_memory, resident_bytes
from stillroom.bench.options import LatencyOptions
from stillroom.bench.results_page import page
from stillroom.engine.decoder import decoder_of
from stillroom.engine.prefix import prefill
from stillroom.geometry.cameras import unproject
from stillroom.records import Answer, BadInputError
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.llava3d_config import LLaVA3DConfig
from stillroom.testing import tiny_questions, tiny_scene

CPU = torch.device("cpu")
QUICK = LatencyOptions(device="cpu", repeats=2, warm_up=1, tokens=3, question_tokens=5)


def mini_teacher(**changes: Any) -> contestants.Contestant:
    config = LLaVA3DConfig.read(registry.MODELS / "teacher_mini")
    model = contestants.random_teacher(config, dtype=torch.float32, device=CPU)
    return contestants.teacher(model, views=2, question_tokens=7, name="teacher", **changes)


def mini_student() -> contestants.Contestant:
    answerer = StudentAnswerer.from_folder(registry.locate("student_mini"))
    return contestants.student(answerer.student, views=2, question_tokens=7, name="student")


MAKE: dict[str, Callable[[], contestants.Contestant]] = {
    "teacher": mini_teacher,
    "student": mini_student,
}


@pytest.mark.parametrize("name", list(MAKE))
def test_operations_are_those_that_torch_counts(name: str) -> None:
    one = MAKE[name]()
    scene = tiny_scene(1, size=112)
    inputs = one.prepare(scene)
    with torch.no_grad():
        embeds = one.see(inputs)
    length, question = embeds.shape[1], len(one.prompt())
    work = one.work(length, question)
    meta: Any = type(one.lm)(one.model.settings if name == "teacher" else one.lm.config).to("meta")
    meta.eval()
    counted = []
    position = torch.arange(length + question + 1, device="meta")
    width = one.lm.config.hidden_size
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            prefix = prefill(
                meta, torch.empty(1, length, width, device="meta"), visibility="prefix", plain=True
            )
        counted.append(counter.get_total_flops())
        row, decoder = prefix.row(question + 1), decoder_of(meta, plain=True)
        for count in (question, 1):
            start = row.length
            with FlopCounterMode(display=False) as counter:
                states = decoder.read(
                    torch.empty(1, count, width, device="meta"),
                    position=position[start : start + count],
                    cache=row,
                )
                decoder.logits(states[-1:])
            counted.append(counter.get_total_flops())
    assert counted == [work.read, work.ask, work.token]
    # Where weights are not packed torch sees every product of the encoder too.
    if name == "student":
        folder = registry.MODELS / "student_mini"
        plain: Any = type(one.model).from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            plain.vision_tokens(plain.features(inputs))
        # Attention is counted only where it is made of products that torch knows by name.
        assert 0.75 * work.see < counter.get_total_flops() <= work.see


def test_a_token_reads_the_layers_the_head_and_what_is_cached() -> None:
    one = mini_student()
    work = one.work(100, 20)
    lm: PreTrainedModel = one.lm
    layers = sum(p.numel() for p in lm.base_model.layers.parameters())
    head = lm.get_output_embeddings().weight.numel()
    assert work.token_bytes == 4 * (layers + head + 2 * 3 * 120 * 128)


def test_photos_of_the_empty_room_show_its_walls_at_their_depth() -> None:
    scene = contestants.empty_room(3, hw=(24, 32))
    for view in scene.views:
        assert view.depth is not None
        assert view.c2w is not None
        assert view.intrinsics is not None
        points = unproject(view.depth.astype(float), view.intrinsics) @ view.c2w[:3, :3].T
        points = points + view.c2w[:3, 3]
        walls = np.minimum(abs(points), abs(points - scene.room_size)).min(axis=-1)
        np.testing.assert_allclose(walls, 0, atol=1e-4)
        assert (points > -1e-4).all()
        assert (points < scene.room_size + 1e-4).all()


def test_both_models_are_measured_in_turns_and_the_ratios_are_theirs() -> None:
    order: list[str] = []

    def noting(name: str) -> contestants.Contestant:
        one = MAKE[name]()

        def prepare(scene: Any) -> Any:
            order.append(name)
            return one.prepare(scene)

        return replace(one, prepare=prepare)

    options = replace(QUICK, repeats=3, sweep_views=(1, 2), sweep_batch=(1, 3))
    makers = {name: (lambda name=name: noting(name)) for name in MAKE}
    scenes = [tiny_scene(seed, size=112) for seed in range(2)]
    record = measure(makers, scenes, options, CPU)
    # One to warm up and one to look at each; then in turns; then two numbers of photos and a scene.
    assert order[4:10] == ["teacher", "student"] * 3
    teacher, student = record["models"]["teacher"], record["models"]["student"]
    for kind in ("cold", "warm"):
        ratio = teacher[kind]["total_ms"]["median"] / student[kind]["total_ms"]["median"]
        assert record["ratio"][kind] == pytest.approx(ratio, abs=1e-3)
    assert record["parameters"]["student"] == 1_677_456
    assert [entry.get("views", entry.get("batch")) for entry in student["sweep"]] == [1, 2, 1, 3]
    stages = ("prepare", "see", "read", "answer")
    for one in (teacher, student):
        assert one["cold"]["total_ms"]["median"] >= max(
            one["cold"][f"{stage}_ms"]["median"] for stage in stages
        )
        assert one["peak_bytes"] is None or one["peak_bytes"] >= one["weight_bytes"]
        assert one["share_of_copy"] > 0
    text = "\n".join(lines(record))
    assert "times as fast cold" in text
    assert "photos 2" in text
    json.dumps(record)


def test_more_photos_take_what_their_operations_say() -> None:
    same = replace(QUICK, at_teacher_views=2, at_student_views=2)
    more = replace(QUICK, at_teacher_views=4, at_student_views=4)
    scene = tiny_scene(1, views=4, size=112)
    for options, factor in ((same, 1.0), (more, 2.0)):
        record = measure(dict(MAKE), [scene], options, CPU)
        for one in record["models"].values():
            far = one["extrapolated"]
            assert far["see_ms"] >= 0.97 * factor * one["cold"]["see_ms"]["median"]
            if factor == 1.0:
                assert far["scene_tokens"] == one["scene_tokens"]
                warm = one["warm"]["total_ms"]["median"]
                assert far["warm_ms"] == pytest.approx(warm, rel=1e-3)
            else:
                assert far["work"]["see"] >= 1.95 * one["work"]["see"]
        assert "by operations" in "\n".join(lines(record))


def test_models_that_do_not_fit_together_are_loaded_in_turn() -> None:
    loaded: list[str] = []

    def load(name: str) -> contestants.Contestant:
        loaded.append(name)
        return MAKE[name]()

    makers = {name: (lambda name=name: load(name)) for name in MAKE}
    options = replace(QUICK, resident="in_turn", turns=2, repeats=2)
    record = measure(makers, [tiny_scene(1, size=112)], options, CPU)
    assert loaded == ["teacher", "student"] * 2
    assert set(record["ratio"]) == {"cold", "warm"}


def test_answers_that_differ_from_the_plain_ones_are_counted() -> None:
    class Session:
        def __init__(self) -> None:
            self.calls = 0

        def answer(self, questions: Any) -> list[Answer]:
            self.calls += 1
            # Asked alone, the second question gets another answer.
            wrong = len(questions) == 1 and questions[0].question_id == second
            return [
                Answer(question_id=q.question_id, text="no" if wrong else "yes") for q in questions
            ]

        def plain_answer(self, questions: Any) -> list[Answer]:
            return [Answer(question_id=q.question_id, text="yes") for q in questions]

    class Model:
        def open(self, scene: Any) -> Session:
            return Session()

    scene = tiny_scene(1)
    questions = tiny_questions(scene, count=3)
    second = questions[1].question_id
    assert count_equal(Model(), [(scene, questions)]) == (2, 3)


def test_the_machine_has_rates_and_a_peak_is_above_what_is_there() -> None:
    found = measure_machine(CPU, torch.float32, repeats=1)
    assert found.copy_gb_s > 0.1
    assert found.matmul_tflop_s > 1e-4
    before = resident_bytes()
    with peak_memory(CPU) as peak:
        torch.ones(96 << 20).sum()
    if before is not None and peak.bytes is not None:
        assert peak.bytes > before


def test_the_verb_measures_the_shipped_models_and_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--repeats 1 --warm-up 1 --tokens 2 --scene-count 2 --sweep-batch 1 2 --device cpu"
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "latency", *words.split(), "--out", str(tmp_path)])
    assert stop.value.code == 0
    said = capsys.readouterr().out.strip().splitlines()
    record = json.loads(said[-1])
    assert record["answers_equal"] is True
    assert record["answers_compared"]["student"] == {"equal": 24, "of": 24}
    assert record["parameters"] == {"teacher": 5_323_264, "student": 1_677_456}
    assert set(record["ratio"]) == set(record["ratio_as_asked"]) == {"cold", "warm"}
    assert json.loads((tmp_path / "latency.json").read_text())["ratio"] == record["ratio"]
    assert f"{record['ratio']['cold']:.2f} times as fast cold" in page(tmp_path)
    for name in ("latency", "stages", "sweep"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_random_weights_need_no_checkpoint() -> None:
    record = api.bench_latency(
        replace(QUICK, dtype="bfloat16", teacher_views=2, student_views=2),
        student="mini_cpu",
        teacher="teacher_mini",
        random_weights=True,
    )
    assert record["random_weights"] is True
    assert record["models"]["teacher"]["views"] == 2
    assert record["models"]["student"]["weight_bytes"] == 2 * record["parameters"]["student"]


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"student": "teacher_mini"}, "is no student"),
        ({"teacher": "student_mini"}, "compares with a LLaVA-3D"),
        ({"random_weights": True}, "--student is a recipe, got 'student_mini'"),
        (
            {"random_weights": True, "student": "mini_cpu", "scenes": Path("rooms")},
            "leave --scenes out",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        api.bench_latency(QUICK, **given)


def test_an_answer_of_one_token_cannot_be_timed() -> None:
    with pytest.raises(BadInputError, match="tokens must be at least 2"):
        LatencyOptions(tokens=1)


def test_more_photos_than_the_scene_has_are_refused() -> None:
    options = replace(QUICK, sweep_views=(9,))
    with pytest.raises(BadInputError, match="asks for 9 photos, the scene has 2"):
        measure(dict(MAKE), [tiny_scene(1, size=112)], options, CPU)
