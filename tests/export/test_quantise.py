"""Weights of 8 and 4 bits: the arithmetic, a student's folder there and back, sizes counted."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from stillroom import api, cli, registry
from stillroom.records import BadInputError, Question
from stillroom.students.quantised import (
    GROUP,
    Int4Linear,
    Int8Embedding,
    Int8Linear,
    TiedHead,
    pack_quantised,
)
from stillroom.students.session import StudentAnswerer

CAPTURE = Path(__file__).parents[1] / "fixtures" / "captures" / "tum_fr3_cabinet"


# Modules: what they compute is said by their own numbers; torchao is not asked. ------------------


def an_int4(inputs: int = 64, outputs: int = 96) -> Int4Linear:
    torch.manual_seed(0)
    layer = Int4Linear(inputs, outputs, bias=True)
    layer.weight_int4.random_(0, 256)
    layer.weight_zero.random_(0, 16)
    with torch.no_grad():
        layer.weight_scale.uniform_(0.01, 0.05)
        layer.bias.normal_()
    return layer


def an_int8(inputs: int = 64, outputs: int = 96) -> Int8Linear:
    torch.manual_seed(0)
    layer = Int8Linear(inputs, outputs, bias=True)
    layer.weight_int8.random_(-127, 128)
    with torch.no_grad():
        layer.weight_scale.uniform_(0.001, 0.005)
        layer.bias.normal_()
    return layer


def test_four_bits_are_read_as_they_are_written_down() -> None:
    layer = Int4Linear(GROUP, 1, bias=False)
    layer.weight_int4[0] = torch.tensor([0x21] + [0x00] * (GROUP // 2 - 1))
    layer.weight_zero[0] = 1
    with torch.no_grad():
        layer.weight_scale[0] = 0.5
    # The low half of a byte first: 1 and 2, then 0s, each less the zero, times the scale.
    want = torch.tensor([[0.0, 0.5] + [-0.5] * (GROUP - 2)])
    torch.testing.assert_close(layer.unfolded(torch.float32), want)


@pytest.mark.parametrize("rows", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True])
def test_few_rows_and_many_give_what_the_unfolded_weight_gives(
    rows: int, dtype: torch.dtype, packed: bool
) -> None:
    for layer in (an_int4(), an_int8()):
        layer.to(dtype)
        if packed:
            pack_quantised(layer)
        x = torch.randn(2, rows, 64).to(dtype)
        want = nn.functional.linear(x.float(), layer.unfolded(torch.float32), layer.bias.float())
        close = (
            {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 0.1}
        )
        torch.testing.assert_close(layer(x).float(), want, **close)


def test_numbers_that_were_packed_are_let_go_when_others_are_loaded() -> None:
    layer = an_int4().to(torch.bfloat16)
    pack_quantised(layer)
    other = an_int4().to(torch.bfloat16)
    other.weight_int4.random_(0, 256)
    layer.load_state_dict(other.state_dict())
    x = torch.randn(3, 64).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), other(x), rtol=2e-2, atol=0.1)
    assert layer.to("meta")(x.to("meta")).device.type == "meta"


def test_sizes_that_a_kernel_does_not_take_are_unfolded() -> None:
    layer = an_int8(inputs=20, outputs=33).to(torch.bfloat16)
    x = torch.randn(3, 20, dtype=torch.bfloat16)
    want = x @ layer.unfolded(torch.bfloat16).T + layer.bias
    torch.testing.assert_close(layer(x), want, rtol=2e-2, atol=5e-2)


def test_a_table_of_eight_bits_is_embedding_and_output() -> None:
    table = Int8Embedding(40, 64)
    table.weight_int8.random_(-127, 128)
    with torch.no_grad():
        table.weight_scale.uniform_(0.01, 0.02)
    ids = torch.tensor([[3, 39], [0, 3]])
    whole = table.unfolded(torch.float32)
    torch.testing.assert_close(table(ids), whole[ids])
    x = torch.randn(2, 64)
    torch.testing.assert_close(TiedHead(table)(x), x @ whole.T, rtol=1e-4, atol=1e-4)
    assert not list(TiedHead(table).parameters())


# Students. ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["int8", "int4"])
def form(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(form: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torchao")
    out = tmp_path_factory.mktemp("quantised") / form
    api.export("student_mini", to=form, out=out)  # type: ignore[arg-type]
    return out


def test_weights_are_off_by_at_most_half_a_step(folder: Path, form: str) -> None:
    full = StudentAnswerer.from_folder(registry.locate("student_mini")).student
    quantised = type(full).from_pretrained(folder, dtype=torch.float32)
    counted = {4: 0, 8: 0}
    for name, module in quantised.named_modules():
        if isinstance(module, Int8Linear | Int4Linear):
            weight = full.get_submodule(name).weight.detach()
            step = module.weight_scale.float()
            if isinstance(module, Int4Linear):
                step = step.repeat_interleave(GROUP, dim=1)
                counted[4] += 1
            else:
                step = step[:, None]
                counted[8] += 1
            gap = (module.unfolded(torch.float32) - weight.float()).abs()
            # The largest of a row or group may lie a rounding of the scale outside.
            assert (gap <= 0.51 * step + 0.005 * weight.abs().max()).all(), name
    # Four layers in each of five blocks, of which those beside the inner width of 240 keep 8 bits;
    # ten blocks of four in the encoder.
    assert counted == ({4: 0, 8: 60} if form == "int8" else {4: 10, 8: 50})


def test_the_folder_is_small_and_says_what_it_is(folder: Path, form: str) -> None:
    before = (registry.MODELS / "student_mini" / "model.safetensors").stat().st_size
    size = (folder / "model.safetensors").stat().st_size
    assert size < {"int8": 0.6, "int4": 0.54}[form] * before
    assert json.loads((folder / "config.json").read_text())["weights"] == form
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        kinds = {str(file.get_tensor(name).dtype) for name in file.keys()}  # noqa: SIM118
    assert kinds == {"torch.int8", "torch.bfloat16"} | (
        {"torch.uint8"} if form == "int4" else set()
    )
    assert registry.count_parameters(folder) == 1_728_604


def test_it_is_loaded_asked_and_saved_like_any_other(folder: Path, tmp_path: Path) -> None:
    scene = api.open_photos(CAPTURE)
    answerer = StudentAnswerer.from_folder(folder)
    assert answerer.student.dtype == torch.bfloat16
    session = answerer.open(scene)
    questions = [
        Question(
            scene_id=scene.scene_id,
            question_id=f"{one} {other}",
            split="test",
            family="size",
            question=f"Which is bigger, the {one} or the {other}?",
            answer=one,
            options=(one, other),
        )
        for one in ("cabinet", "lamp", "red chair")
        for other in ("table", "blue box", "bed")
    ]
    said = session.answer(questions)
    assert said == session.plain_answer(questions)
    assert len({answer.text for answer in said}) > 1
    assert session.ask("Is the floor dark?")
    # Half precision apart it says what the full student says.
    full = (
        StudentAnswerer.from_folder(registry.locate("student_mini")).open(scene).answer(questions)
    )
    assert sum(a == b for a, b in zip(said, full, strict=True)) >= 7
    again = type(answerer.student).from_pretrained(folder)
    again.save_pretrained(tmp_path)
    answerer.processor.save_pretrained(tmp_path)
    assert StudentAnswerer.from_folder(tmp_path).open(scene).answer(questions) == said


def test_computing_in_full_precision_is_possible_too(folder: Path) -> None:
    scene = api.open_photos(CAPTURE)
    answerer = StudentAnswerer.from_folder(folder, dtype=torch.float32)
    assert {p.dtype for p in answerer.student.parameters()} == {torch.float32}
    assert answerer.open(scene).ask("Is the floor dark?")


def test_a_quantised_student_is_not_quantised_again(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="quantise the one it was made of"):
        api.export(str(folder), to="int8", out=tmp_path / "again")


def test_the_verb_says_how_large_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    out = tmp_path / "a"
    for code, form, where in ((0, "int8", out), (0, "int8", out), (2, "int4", out)):
        with pytest.raises(SystemExit) as stop:
            cli.main(["export", "student_mini", "--to", form, "--out", str(where), "--json"])
        assert stop.value.code == code
    said = capsys.readouterr()
    first, again = map(json.loads, said.out.strip().splitlines())
    assert first == again
    assert first["bytes"] == (out / "model.safetensors").stat().st_size
    assert "holds something else already" in said.err
    with pytest.raises(BadInputError, match="holds something else already"):
        api.export("student_mini", to="int8", out=tmp_path / "full")


def test_a_teacher_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="'teacher_mini' is no student"):
        api.export("teacher_mini", to="int8", out=tmp_path)


def test_without_torchao_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(BadInputError, match=r"pip install 'stillroom\[quant\]'"):
        api.export("student_mini", to="int4", out=tmp_path / "a")
