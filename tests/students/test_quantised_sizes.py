"""Sizes of quantised students at full size, counted without allocating and without torchao."""

from __future__ import annotations

import json

import pytest

from stillroom import api, cli


def test_the_papers_student_fits_two_gigabytes_in_four_bits_and_edge_half_a_one() -> None:
    paper = api.params("paper_h100", quant="int4")
    edge = api.params("edge", quant="int4")
    assert paper["total_bytes"] < 2.0e9
    assert edge["total_bytes"] < 0.5e9
    # Numbers are counted as ever.
    assert paper["total"] == api.params("paper_h100")["total"]
    # By hand: 24 layers of 12 d^2 numbers of half a byte, with 3 bytes to each group of 32; biases
    # and norms of 2 bytes; embedding and output of 1 byte a number and 2 a row.
    d = 2048
    matrices = 24 * 12 * d * d
    biases = 24 * (3 * d + d + 4 * d + d + 4 * d) + 2 * d
    tables = 2 * 32_000 * (d + 2)
    assert paper["language_model_bytes"] == matrices // 2 + 3 * matrices // 32 + 2 * biases + tables


def test_eight_bits_are_twice_four_where_it_is_the_language_model() -> None:
    four, eight = (api.params("edge", quant=form) for form in ("int4", "int8"))
    assert eight["encoder_bytes"] == four["encoder_bytes"]
    assert 1.3 < eight["language_model_bytes"] / four["language_model_bytes"] < 2
    # The tied table of 151,936 rows is there once, in 8 bits.
    assert four["language_model_bytes"] < 151_936 * 898 + 0.625 * 357_900_000


def test_the_verb_prints_numbers_and_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["params", "mini_cpu", "--quant", "int8", "--json"])
    table = json.loads(capsys.readouterr().out)
    assert table["total"] < table["total_bytes"] < 2 * table["total"]
    assert set(table) == {name for part in table for name in (part,)}
    assert {f"{part}_bytes" for part in table if not part.endswith("_bytes")} <= set(table)
