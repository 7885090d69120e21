"""The import floors of docs/design: who may import whom, walked with ast."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stillroom"

GROUND = {"records", "geometry", "cpu"}
SCENES = GROUND | {"scenes"}
STUDENTS = GROUND | {"text", "engine", "students"}
TEACHERS = GROUND | {"text", "engine", "training", "scenes", "teachers"}
EVALUATE = SCENES | {"text", "evaluate", "verify"}
DISTILL = STUDENTS | TEACHERS | {"distill"}
BENCH = DISTILL | EVALUATE | {"recipes", "bench"}
TOP = {
    "bench_models",
    "registry",
    "api",
    "asking",
    "asking_onnx",
    "console",
    "demo",
    "cli",
    "verify",
    "testing",
}
EVERYTHING = BENCH | TOP | {"export"}

#: part -> parts it may import. A part may always import itself.
MAY_IMPORT = {
    "geometry": set(),
    "cpu": set(),
    "records": {"geometry"},
    "verify": {"records"},
    "text": {"records"},
    "engine": {"records", "cpu"},
    "training": GROUND,
    "scenes": GROUND,
    "teachers": TEACHERS | {"verify"},
    "students": STUDENTS | {"verify"},
    "evaluate": EVALUATE,
    "distill": DISTILL,
    "recipes": DISTILL,
    "export": STUDENTS,
    "bench": BENCH,
    "bench_models": EVERYTHING,
    "testing": DISTILL,
    "console": set(),
    "registry": EVERYTHING,
    "api": EVERYTHING,
    "asking": EVERYTHING,
    "asking_onnx": EVERYTHING,
    "demo": EVERYTHING,
    "cli": EVERYTHING,
    "lmms_eval_plugin": EVERYTHING,
    "__init__": {"records", "api"},
    "__main__": {"cli"},
}

FILES = sorted(SOURCE.rglob("*.py"))


def part_of(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> set[str]:
    """Parts of stillroom that a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            if node.module == "stillroom":
                names = [f"stillroom.{alias.name}" for alias in node.names]
            else:
                names = [node.module or ""]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("stillroom.")}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_file_imports_only_from_the_floors_below(file: Path) -> None:
    part = part_of(file)
    above = imports_of(file) - MAY_IMPORT[part] - {part, "__version__"}
    assert not above, f"{file.relative_to(SOURCE)} ({part}) may not import {sorted(above)}"


@pytest.mark.parametrize(
    "part",
    ["records", "geometry", "text", "scenes", "cli", "api", "asking", "registry"],
)
def test_a_part_without_torch_imports_no_torch_at_module_level(part: str) -> None:
    for file in FILES:
        if part_of(file) != part:
            continue
        for node in ast.parse(file.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            heavy = [name for name in names if name.split(".")[0] in ("torch", "transformers")]
            assert not heavy, f"{file} imports {heavy}"


def test_the_walk_sees_imports_inside_functions(tmp_path: Path) -> None:
    file = tmp_path / "sample.py"
    file.write_text("def f():\n    from stillroom.scenes import store\n    import stillroom.text\n")
    assert imports_of(file) == {"scenes", "text"}
