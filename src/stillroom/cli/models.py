"""The verbs that train, count and write models: every config field is a flag."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from stillroom.cli import parsing
from stillroom.cli.parsing import ModelName, RecipeName
from stillroom.console import process_number, progress_bar
from stillroom.records import BadInputError

_SCENES = (Path, MISSING, "Scene store to train on.")
_OUT = (Path, MISSING, "Run folder; the same command goes on where it stopped.")


def pretrain_encoder(words: Sequence[str]) -> int:
    """Train a miniature encoder."""
    return _train_verb("pretrain-encoder", words, {"scenes": _SCENES, "out": _OUT})


def teach(words: Sequence[str]) -> int:
    """Train a miniature teacher."""
    return _train_verb("teach", words, {"scenes": _SCENES, "out": _OUT})


def distill(words: Sequence[str]) -> int:
    """Train a student."""
    labels = (Path, MISSING, "Label store of the teacher.")
    return _train_verb("distill", words, {"scenes": _SCENES, "labels": labels, "out": _OUT})


def _train_verb(verb: str, words: Sequence[str], extra: Mapping[str, Any]) -> int:
    recipe, options = _recipe_options(words, verb, extra)
    from stillroom import api

    logging.getLogger("stillroom").setLevel(logging.INFO)
    runs: dict[str, Callable[..., str]] = {
        "pretrain-encoder": api.pretrain_encoder,
        "teach": api.teach,
        "distill": partial(api.distill, recipe=recipe),
    }
    folders = {name: getattr(options, name) for name in extra}
    from stillroom.training.handed import TrainingDiverged

    try:
        with progress_bar(verb) as progress:
            parsing.say(runs[verb](options.config, **folders, progress=progress))
    except TrainingDiverged as error:
        if not process_number():
            sys.stderr.write(f"stillroom: {error}\n")
        return 1
    return 0


def _recipe_options(words: Sequence[str], verb: str, extra: Mapping[str, Any]) -> tuple[str, Any]:
    """The recipe named first, and its options: every config field is a flag.

    A wrong recipe name is reported before anything else is.
    """
    from stillroom import recipes

    known = recipes.table(verb)
    if not words or words[0].startswith("-"):
        if "--help" in words or "-h" in words:
            names = "\n".join(f"  {name:24} {_first_line(make)}" for name, make in known.items())
            parsing.say(f"usage: stillroom {verb} RECIPE [options]\n\nrecipes\n{names}")
            sys.exit(0)
        raise BadInputError(f"name a recipe first: stillroom {verb} {'|'.join(known)} ...")
    if words[0] not in known:
        raise BadInputError(parsing.unknown("recipe", words[0], known))
    config = known[words[0]]()
    entries: list[Any] = []
    for name, (kind, default, text) in extra.items():
        annotated = Annotated[kind, tyro.conf.arg(help=text)]  # type: ignore[valid-type]
        entries.append((name, annotated, field(default=default, kw_only=True)))
    flat = Annotated[type(config), tyro.conf.arg(name="")]  # type: ignore[valid-type]
    entries.append(("config", flat, field(default=config, kw_only=True)))
    options = make_dataclass("Options", entries, frozen=True)
    options.__doc__ = _first_line(known[words[0]])
    return words[0], parsing.parse(options, words[1:], f"{verb} {words[0]}")


def _first_line(thing: Any) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def params(words: Sequence[str]) -> int:
    """Count parameters."""
    from stillroom import api, recipes

    known = recipes.table("distill")
    if words and not words[0].startswith("-") and words[0] not in known:
        raise BadInputError(parsing.unknown("recipe", words[0], known))

    def options(
        recipe: Positional[RecipeName],
        /,
        *,
        quant: Literal["int8", "int4"] | None = None,
        json: bool = False,
    ) -> dict[str, Any]:
        """Parameters of a recipe's student by part, counted without allocating.

        Args:
            recipe: Name of a distillation recipe.
            quant: Also the bytes of each part with weights of so many bits.
            json: Print one flat JSON object.
        """
        return locals()

    given = parsing.parse(options, words, "params")
    table = api.params(given["recipe"], quant=given["quant"])
    if given["json"]:
        parsing.say(json.dumps(table))
    else:
        parsing.say("\n".join(f"{name:24} {count:>15,}" for name, count in table.items()))
    return 0


def export(words: Sequence[str]) -> int:
    """Write a student in another form."""

    def options(
        model: Positional[ModelName],
        /,
        *,
        to: Literal["int8", "int4", "onnx", "executorch"],
        out: Path,
        json: bool = False,
    ) -> dict[str, Any]:
        """Write a student in another form: weights of 8 or 4 bits (a folder like any other), ONNX
        graphs for ask --runtime onnx, or programs for ExecuTorch's runtime on a device.

        Args:
            model: student_mini, a checkpoint folder, or a hub id.
            to: The form.
            out: Folder to write.
            json: Print one JSON object.
        """
        return locals()

    from stillroom import api

    given = parsing.parse(options, words, "export")
    had = given["out"].is_dir() and any(given["out"].iterdir())
    written = api.export(given["model"], to=given["to"], out=given["out"])
    if given["json"]:
        parsing.say(json.dumps(written))
        return 0
    before, after = (written[name] / 1e6 for name in ("bytes_before", "bytes"))
    if had:
        parsing.say(f"{given['out']} was finished already")
    parsing.say(
        f"{given['out']} holds {given['model']} as {given['to']}: {after:,.2f} MB of {before:,.2f}"
    )
    return 0
