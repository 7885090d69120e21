"""Where a LLaVA-3D computes: int8 and offload on a tiny checkpoint, and what is refused here.

int4 and bitsandbytes need a GPU: of them only the refusals are tested.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released import write_released

from stillroom.records import SIGNALS, BadInputError, TeacherLabel
from stillroom.teachers.llava3d import LLaVA3DTeacher
from stillroom.teachers.options import TeacherOptions
from stillroom.testing import tiny_questions, tiny_scene


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place") / "llava-3d"
    write_released(folder)
    return folder


def placed(checkpoint: Path, **options: Any) -> tuple[LLaVA3DTeacher, list[TeacherLabel]]:
    """A teacher on the CPU with the labels of one scene."""
    chosen = TeacherOptions(device="cpu", max_new_tokens=4, **options)
    teacher = LLaVA3DTeacher.from_folder(checkpoint, chosen)
    scene = tiny_scene(1)
    wanted = [signal for signal in SIGNALS if signal != "scene_features"]
    return teacher, teacher.label(scene, tiny_questions(scene), wanted)


def test_int8_quantises_the_language_model_s_linear_layers_alone(checkpoint: Path) -> None:
    pytest.importorskip("torchao", reason="int8 needs torchao")
    _, plain = placed(checkpoint)
    teacher, quantised = placed(checkpoint, dtype="int8")
    linears = {
        name: type(module.weight.data).__name__
        for name, module in teacher.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    inner = {name for name, kind in linears.items() if "Int8" in kind or "Quantized" in kind}
    assert inner == {name for name in linears if name.startswith("model.layers.")}
    assert len(inner) == 4 * 7
    for one, other in zip(plain, quantised, strict=True):
        np.testing.assert_allclose(one.topk_logits[0], other.topk_logits[0], atol=0.05)
        assert not np.array_equal(one.topk_logits, other.topk_logits)
        assert other.last_hidden.shape == (len(other.answer_ids), 32)


def test_offloaded_weights_give_the_same_labels(checkpoint: Path) -> None:
    pytest.importorskip("accelerate", reason="offload needs accelerate")
    _, plain = placed(checkpoint)
    teacher, offloaded = placed(checkpoint, offload=True)
    assert {parameter.device.type for parameter in teacher.model.parameters()} == {"meta"}
    for one, other in zip(plain, offloaded, strict=True):
        assert one.answer == other.answer
        np.testing.assert_array_equal(one.topk_ids, other.topk_ids)
        # Weights that stay are packed for the CPU, whose sums are rounded in another order.
        for name in ("topk_logits", "last_hidden", "attention"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"dtype": "int4"}, "int4 needs a GPU; choose int8 with the quantizer torchao"),
        *(
            (
                {"dtype": dtype, "quantizer": "bitsandbytes"},
                f"{dtype} through bitsandbytes needs a GPU; choose int8 with the quantizer torchao",
            )
            for dtype in ("int8", "int4")
        ),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(
    options: dict[str, Any], sentence: str, checkpoint: Path
) -> None:
    with pytest.raises(BadInputError, match=sentence):
        placed(checkpoint, **options)
