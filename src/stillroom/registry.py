"""A model is a name: shipped, a folder, a hub id, or ``kind:where``.

Shipped: ``encoder_mini``, ``teacher_mini``, ``student_mini``. Kinds: ``llava3d:``, ``vlm:``,
``http:``, ``shuffled:`` and ``no_depth:`` take a place, an address or a name behind the colon;
``blind``, ``majority`` and ``truth`` stand alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from stillroom.records import Answerer, BadInputError, Teacher, weights_digest
from stillroom.scenes.store import SceneStore
from stillroom.teachers.options import TOPK, TeacherOptions
from stillroom.text.vocabulary import Vocabulary

MODELS = Path(__file__).with_name("models")
SHIPPED = ("encoder_mini", "teacher_mini", "student_mini")
BASELINES = ("blind", "majority", "truth")
#: Kinds that take something away from the model named behind the colon.
CONTROLS = ("shuffled", "no_depth")
#: Kinds that look at photos and label.
LOOKING_TEACHERS = ("llava3d", "vlm", "http")
#: Of these, kinds that take one scene at a time: nothing is gained by keeping several back.
ONE_BY_ONE = ("vlm", "http")


def locate(name: str) -> Path | str:
    """The folder of a model name, or the hub id as it is.

    Raises:
        BadInputError: neither a shipped model, nor a folder, nor of a hub id's form.
    """
    if name in SHIPPED:
        return MODELS / name
    if Path(name).is_dir():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/")) and not name.endswith("/"):
        return name
    raise BadInputError(
        f"model not found: {name!r} is no shipped model ({', '.join(SHIPPED)}), no folder, and no "
        "hub id (owner/name)"
    )


def kind_of(name: str) -> tuple[str, str]:
    """("llava3d" | "vlm" | "http" | "student" | a control | a baseline, where)."""
    head, colon, where = name.partition(":")
    if name in BASELINES:
        return name, ""
    if colon and head in (*LOOKING_TEACHERS, "student", *CONTROLS):
        if not where:
            raise BadInputError(f"{name!r} names no model behind the colon")
        return head, where
    place = locate(name)
    if isinstance(place, Path) and _model_type(place) in ("llava_llama", "llava3d"):
        return "llava3d", name
    return "student", name


def answerer(name: str, store: SceneStore, *, split: str) -> Answerer:
    """Load whatever answers under that name; baselines are fitted on the store's train split."""
    kind, where = kind_of(name)
    if kind in BASELINES:
        from stillroom.evaluate.baselines import baseline

        return baseline(kind, store, split=split)
    if kind == "shuffled":
        from stillroom.evaluate.baselines import Shuffled

        return Shuffled(answerer(where, store, split=split), store, split=split)
    if kind == "no_depth":
        from stillroom.evaluate.baselines import NoDepth

        return NoDepth(answerer(where, store, split=split))
    if kind in LOOKING_TEACHERS:
        return _looking_teacher(kind, where, TeacherOptions())
    from stillroom.students.session import StudentAnswerer

    return StudentAnswerer.from_folder(locate(where))


def teacher(name: str, options: TeacherOptions | None = None) -> Teacher:
    """Load a teacher that labels.

    Raises:
        BadInputError: the name is no teacher's, or its kind has not what the options ask for.
    """
    options = options or TeacherOptions()
    kind, where = _teacher_kind(name)
    if kind == "truth":
        from stillroom.teachers.truth import TruthTeacher

        options.only((), of="the teacher 'truth'")
        return TruthTeacher()
    return _looking_teacher(kind, where, options)


def teacher_loader(name: str, options: TeacherOptions | None = None) -> Callable[[], Teacher]:
    """``teacher(name, options)`` as an object that can be sent to another process.

    Raises:
        BadInputError: the name is no teacher's.
    """
    _teacher_kind(name)
    return partial(teacher, name, options)


def vocabulary(name: str) -> Vocabulary | None:
    """The tokens behind a teacher's ids, read without its weights; None where it tells none."""
    kind, where = kind_of(name)
    if kind == "vlm":
        from stillroom.teachers.vlm_words import read_vocabulary

        return read_vocabulary(locate(where))
    if kind != "llava3d":
        return None
    from stillroom.teachers.hub import fetch
    from stillroom.teachers.llava3d_config import LLaVA3DConfig
    from stillroom.teachers.prompts import open_tokenizer

    folder = fetch(locate(where), weights=False)
    config = LLaVA3DConfig.read(folder)
    tokenizer = open_tokenizer(
        folder,
        bos_id=config.bos_token_id,
        eos_id=config.eos_token_id,
        vocab_size=config.vocab_size,
    )
    return tokenizer.vocabulary(rows=config.vocab_size)


def predicting(loader: Callable[[], Teacher], encoder: str) -> Callable[[], Teacher]:
    """``loader`` whose teacher gets an encoder's geometry where a scene has none; picklable too."""
    return _PredictingLoader(loader, encoder)


class _PredictingLoader:
    def __init__(self, loader: Callable[[], Teacher], encoder: str) -> None:
        self.loader, self.encoder = loader, encoder

    def __call__(self) -> Teacher:
        from stillroom.students.encoders.photo_geometry import VGGTEstimator
        from stillroom.teachers.predicted_geometry import PredictedGeometry

        estimator = VGGTEstimator.from_folder(locate(self.encoder))
        return PredictedGeometry(self.loader(), estimator)


def describe(name: str, options: TeacherOptions | None = None) -> dict[str, Any]:
    """What identifies a model in a fingerprint: its name, the hash of its weights and config (of a
    hub id the commit), and of a teacher how it reads scenes and questions.

    Raises:
        BadInputError: no such model, or an option that its kind has not.
    """
    options = options or TeacherOptions()
    kind, where = kind_of(name)
    if kind in BASELINES:
        options.only((), of=f"the teacher {name!r}")
        return {"name": name, "kind": kind}
    if kind in CONTROLS:
        return describe(where) | {"name": name, "kind": kind}
    if kind == "http":
        from stillroom.teachers.http import HttpOptions, split_address

        url, model = split_address(where)
        told = {"name": f"http:{url}#{model}", "kind": kind, "revision": f"{url}#{model}"}
        return told | HttpOptions.of(options).describe()
    place = locate(where)
    revision = weights_digest(place)
    name = unpinned(name)
    shown = name if name in SHIPPED or not isinstance(place, Path) else place.name
    about: dict[str, Any] = {
        "name": shown,
        "kind": kind,
        "revision": revision,
        "decoding": "greedy",
    }
    if kind == "vlm":
        from stillroom.teachers.hub import commit_of
        from stillroom.teachers.mobilevlm import outside_tower as mobilevlm_tower
        from stillroom.teachers.vlm import VlmOptions

        about = (
            about | {"revision": commit_of(place) or revision} | VlmOptions.of(options).describe()
        )
        return about | _tower(mobilevlm_tower(place) if _is_mobilevlm(place) else None)
    if kind != "llava3d":
        return about
    from stillroom.teachers.hub import commit_of, fetch
    from stillroom.teachers.llava3d_config import LLaVA3DConfig
    from stillroom.teachers.llava3d_load import outside_tower

    config = LLaVA3DConfig.read(fetch(place, weights=False))
    chosen = options.fingerprint()
    about = about | {
        "topk": chosen.pop("topk", TOPK),
        "revision": commit_of(place) or revision,
        "options": chosen,
        "reads": config.adjusted(options).habits(),
    }
    return about | _tower(outside_tower(place))


def _tower(place: Path | str | None) -> dict[str, str]:
    """What identifies a vision tower that lies outside of its checkpoint."""
    if place is None:
        return {}
    return {"tower": weights_digest(place)}


def _is_mobilevlm(place: Path | str) -> bool:
    from stillroom.teachers.hub import fetch

    return _model_type(fetch(place, weights=False)) == "mobilevlm"


def pinned(name: str) -> str:
    """The same name with the commit that its hub id means now; all others as they are.

    Raises:
        BadInputError: no such model, or the hub cannot tell.
    """
    kind, where = kind_of(name)
    if kind not in ("llava3d", "vlm") or isinstance(locate(where), Path):
        return name
    from stillroom.teachers.hub import commit_of

    return f"{unpinned(name)}@{commit_of(where)}"


def require_usable(name: str, options: TeacherOptions | None = None) -> None:
    """Refuse what a teacher's files and config tell without loading it.

    Raises:
        BadInputError: a weight file in a folder is missing or cut, or the options ask for layers
            that a LLaVA-3D has not.
    """
    kind, where = kind_of(name)
    if kind not in ("llava3d", "vlm"):
        return
    from stillroom.teachers.hub import fetch
    from stillroom.teachers.llava3d_config import LLaVA3DConfig
    from stillroom.teachers.llava3d_files import require_whole

    place = locate(where)
    if isinstance(place, Path):
        require_whole(place)
    if kind == "llava3d" and options is not None:
        config = LLaVA3DConfig.read(fetch(place, weights=False))
        options.layer_groups(config.num_hidden_layers)


def unpinned(name: str) -> str:
    """A name without the commit, tag or branch of its hub id."""
    from stillroom.teachers.hub import without_revision

    head, colon, where = name.rpartition(":")
    return f"{head}{colon}{without_revision(where)}"


def parameters(name: str) -> int | None:
    """All that a model's checkpoint holds; None for baselines and hub ids."""
    kind, where = kind_of(name)
    if kind in (*BASELINES, *CONTROLS, "http"):
        return None
    place = locate(where)
    return count_parameters(place) if isinstance(place, Path) else None


def count_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors, read from their headers.

    Of quantised weights the numbers that they stand for count, and not their scales.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="np") as tensors:
                shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise BadInputError(f"{file} is truncated or damaged ({error})") from None
        for name, shape in shapes.items():
            if not name.endswith(("weight_scale", "weight_zero")):
                # Two numbers of 4 bits share a byte.
                total += math.prod(shape) * (2 if name.endswith("weight_int4") else 1)
    return total


def _teacher_kind(name: str) -> tuple[str, str]:
    kind, where = kind_of(name)
    if kind not in ("truth", *LOOKING_TEACHERS):
        raise BadInputError(
            f"{name!r} cannot label: a teacher is teacher_mini, llava3d:WHERE, vlm:WHERE, "
            "http:ADDRESS#MODEL or truth"
        )
    return kind, where


def _looking_teacher(kind: str, where: str, options: TeacherOptions) -> Any:
    if kind == "http":
        from stillroom.teachers.http import HttpOptions, HttpTeacher

        return HttpTeacher(where, HttpOptions.of(options))
    if kind == "vlm":
        from stillroom.teachers.vlm import VlmOptions, VlmTeacher

        return VlmTeacher.from_folder(locate(where), VlmOptions.of(options))
    from stillroom.teachers.llava3d import LLaVA3DTeacher

    return LLaVA3DTeacher.from_folder(locate(where), options)


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    if not file.is_file():
        raise BadInputError(f"{folder} holds no model: config.json is missing")
    try:
        config = json.loads(file.read_text())
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInputError(f"{file} is not readable JSON ({error})") from None
    return str(config.get("model_type", "")) if isinstance(config, dict) else ""
