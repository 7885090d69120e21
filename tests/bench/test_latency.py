"""The latency bench: what it counts, what it measures, what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from stillroom import api, cli, registry
from stillroom.bench import contestants, latency
from stillroom.bench.asked import count_equal
from stillroom.bench.latency import lines, measure
from stillroom.bench.machine import measure_machine, peak_memory, resident_bytes
from stillroom.bench.options import LatencyOptions
from stillroom.bench.results_page import page
from stillroom.engine.decoder import decoder_of
from stillroom.engine.prefix import prefill
from stillroom.geometry.cameras import unproject
from stillroom.records import Answer, BadInputError
from stillroom.students.model import StillroomStudent
from stillroom.students.processor import StillroomProcessor
from stillroom.students.session import StudentAnswerer
from stillroom.teachers.llava3d import LLaVA3DTeacher
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
    assert work.token_bytes == 4 * (layers + head + 2 * 5 * 120 * 128)


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
    assert record["parameters"]["student"] == 1_728_604
    assert [entry.get("views", entry.get("batch")) for entry in student["sweep"]] == [1, 2, 1, 3]
    stages = ("prepare", "see", "read", "answer")
    for one in (teacher, student):
        assert one["cold"]["total_ms"]["median"] >= max(
            one["cold"][f"{stage}_ms"]["median"] for stage in stages
        )
        assert one["peak_bytes"] is None or one["peak_bytes"] >= one["weight_bytes"]
        assert one["share_of_copy"] is None or one["share_of_copy"] > 0
    parts = [
        sum(one["cold"][f"{stage}_ms"]["median"] for stage in stages[1:])
        for one in (teacher, student)
    ]
    without = record["ratio_without_prepare"]["cold"]
    assert without == pytest.approx(parts[0] / parts[1], abs=1e-3)
    text = "\n".join(lines(record))
    assert "times as fast cold" in text
    assert f"without the photos' way to tensors {without:.2f} times" in text
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


@pytest.mark.parametrize("name", list(MAKE))
def test_operations_are_those_of_the_photos_that_were_seen(name: str) -> None:
    scene = tiny_scene(1, views=3, size=112)
    run = latency._Run(name, QUICK, CPU)
    run.begin(latency._Loaded(replace(MAKE[name](), views=8), None), scene, first=True)
    assert run.about["views"] == 3
    assert run.work == replace(MAKE[name](), views=3).work(run.about["scene_tokens"], run.question)
    assert run.work.see < MAKE[name]().work(run.about["scene_tokens"], 7, views=8).see


def test_the_bench_looks_without_gradients_as_sessions_do() -> None:
    looked: list[bool] = []

    def watched(name: str) -> contestants.Contestant:
        one = MAKE[name]()
        assert any(weight.requires_grad for weight in one.model.parameters())
        assert not one.see(one.prepare(tiny_scene(1, size=112))).requires_grad

        def see(inputs: Any) -> Any:
            seen = one.see(inputs)
            looked.append(torch.is_grad_enabled() or seen.requires_grad)
            return seen

        return replace(one, see=see)

    makers = {name: (lambda name=name: watched(name)) for name in MAKE}
    measure(makers, [tiny_scene(1, size=112)], QUICK, CPU)
    assert looked
    assert not any(looked)


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

    def run(words: str) -> int:
        with pytest.raises(SystemExit) as stop:
            cli.main(["bench", "latency", *words.split(), "--out", str(tmp_path)])
        return int(str(stop.value.code))

    assert run(words) == 0
    said = capsys.readouterr().out.strip().splitlines()
    record = json.loads(said[-1])
    asked = record["ratio_as_asked"]
    assert any(line.endswith(f"{asked['warm']:.2f} times warm") for line in said[:-1])
    # Again it is finished; with other settings nothing is touched.
    assert run(words) == 0
    again = capsys.readouterr().out.strip().splitlines()
    assert again == [f"{tmp_path} was finished already", *said]
    for other in (words.replace("--tokens 2", "--tokens 3"), words + " --teacher-views 2"):
        assert run(other) == 2
        assert "holds a record of other models or settings" in capsys.readouterr().err
    assert json.loads((tmp_path / "latency.json").read_text()) == record
    assert record["answers_equal"] is True
    assert record["answers_compared"]["student"] == {"equal": 24, "of": 24}
    assert record["parameters"] == {"teacher": 5_323_264, "student": 1_728_604}
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


def quantised_folder(folder: Path) -> Path:
    student = StillroomStudent.from_pretrained(registry.locate("student_mini"))
    config = copy.deepcopy(student.config)
    config.weights = "int4"
    StillroomStudent(config).to(torch.bfloat16).save_pretrained(folder)
    StillroomProcessor.from_pretrained(registry.locate("student_mini")).save_pretrained(folder)
    return folder


def test_weights_of_few_bits_are_counted_as_a_checkpoint_counts_them(tmp_path: Path) -> None:
    answerer = StudentAnswerer.from_folder(quantised_folder(tmp_path))
    small = contestants.student(answerer.student, views=2, question_tokens=7, name="student")
    assert small.parameters == registry.count_parameters(tmp_path) == 1_728_604
    file = sum(part.stat().st_size for part in tmp_path.glob("*.safetensors"))
    assert 0.97 * file < small.weight_bytes <= file
    full, work = mini_student().work(100, 20), small.work(100, 20)
    assert (work.read, work.ask, work.token) == (full.read, full.ask, full.token)
    # Half a byte and a scale's share for a number of a layer, one and a scale's for the head's.
    cached = 2 * 5 * 120 * 128
    lm = small.lm
    numbers = 5 * (4 * 128 * 128 + 2 * 128 * 240)
    least = numbers / 2 + 1024 * 128 + 2 * cached
    assert least < work.token_bytes < 1.4 * least
    assert lm.config.num_hidden_layers == 5
    with pytest.raises(BadInputError, match=r"has int4 weights.*add --dtype bfloat16"):
        api.bench_latency(QUICK, student=str(tmp_path), scene_count=2)


def test_a_cache_is_counted_by_the_width_that_heads_have() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    lm = LlamaForCausalLM(config).eval()
    prefix = prefill(lm, torch.randn(1, 10, 32), visibility="prefix", plain=True)
    assert contestants._cache_bytes(lm, 10) == sum(k.nbytes + v.nbytes for k, v in prefix.layers)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"threads": 99_999_999_999}, r"threads must be at most the \d+ cores .* got 99999999999"),
        ({"teacher_views": 0}, "teacher_views must be at least 1, got 0"),
        ({"sweep_batch": (4, 0)}, "sweep_batch must be at least 1, got 0"),
        ({"sweep_views": (0,)}, "sweep_views must be at least 1, got 0"),
        ({"at_student_views": 0}, "at_student_views must be at least 1, got 0"),
        ({"warm_up": -1}, "warm_up must be at least 0, got -1"),
    ],
)
def test_numbers_that_cannot_be_measured_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        replace(QUICK, **given)


def test_what_would_fail_late_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("stillroom.bench.run.measure", never)
    monkeypatch.setattr(StudentAnswerer, "from_folder", never)
    monkeypatch.setattr(LLaVA3DTeacher, "from_folder", never)
    file = tmp_path / "out.json"
    file.write_text("{}")
    with pytest.raises(BadInputError, match="is a file; --out names a folder"):
        api.bench_latency(QUICK, out=file)
    with pytest.raises(BadInputError, match=r"out\.json is a file; --out names a folder"):
        api.bench_latency(QUICK, out=file / "deeper" / "still")
    with pytest.raises(BadInputError, match=r"scene_count must be at least 2.*got 1"):
        api.bench_latency(QUICK, scene_count=1)
    for name, given in (
        ("sweep_views", (2, 9)),
        ("at_teacher_views", 9),
        ("at_student_views", 9),
    ):
        asked = replace(QUICK, **{name: given})
        with pytest.raises(
            BadInputError, match=f"{name} asks for 9 photos, the first scene has 6; name fewer"
        ):
            api.bench_latency(asked, scene_count=2)


def test_a_token_that_seems_to_take_no_time_is_not_told() -> None:
    run = latency._Run("student", QUICK, CPU)
    run.cold = [dict.fromkeys(("prepare", "see", "read", "answer", "total"), 0.01)] * 2
    run.warm = [{"first_token": 0.004, "total": 0.003, "per_token": -0.0005}] * 2
    run.work = contestants.Work(see=1e9, read=1e9, ask=1e6, token=1e6, token_bytes=1000)
    machine = latency.Machine(
        name="", device="cpu", dtype="float32", threads=1, copy_gb_s=1.0, matmul_tflop_s=1.0
    )
    found = run.result(machine)
    assert found["warm"]["per_token_ms"] is found["share_of_copy"] is None
    assert latency._time(None) == latency._share(None) == "not told"


def test_an_answer_of_one_token_cannot_be_timed() -> None:
    with pytest.raises(BadInputError, match="tokens must be at least 2"):
        LatencyOptions(tokens=1)


def test_more_photos_than_the_scene_has_are_refused() -> None:
    options = replace(QUICK, sweep_views=(9,))
    with pytest.raises(BadInputError, match="asks for 9 photos, the scene has 2"):
        measure(dict(MAKE), [tiny_scene(1, size=112)], options, CPU)
