"""Imports point one way: entry point → room → primitive, and ground rooms do not know one another."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
GROUND = {"nano3.config", "nano3.utils"}
# What a room may import besides itself. What is not named here is an entry point or a part of one.
ALLOWED = {
    "nano3.utils": set(),
    "nano3.config": {"nano3.utils"},
    "nano3.data": GROUND,
    "nano3.artifacts": {"nano3.utils"},
    "launch": GROUND,
    "nano3.training": GROUND | {"nano3.data", "nano3.artifacts"},
    "nano3.cli": GROUND | {"nano3.artifacts", "launch"},
    "nano3.tools": GROUND | {"nano3.cli", "nano3.data", "nano3.artifacts", "nano3.training", "launch"},
}
# Rooms of nano3.data from top to bottom; each may import the ones below it.
DATA_ROOMS = ("build", "dataset", "planning", "tokenization", "sources")
# Rooms and modules of nano3.training from top to bottom; each may import those on lower lines.
TRAINING_ROOMS = (
    {"preflight", "rank_main", "export", "evaluation", "index_ahead"},
    {"backend"},
    {"reports"},
    {"hf", "megatron"},
    {"cost"},
    {"checks"},
    {"run"},
    {"order"},
    {"dataset"},
)
# Started by torchrun and Slurm: entry points that lie in a room.
ENTRIES = {"nano3/training/__main__.py"}


def room_of(module: str) -> str:
    """The room or the primitive that a module belongs to; "" outside this project."""
    parts = module.split(".")
    if parts[0] == "launch":
        return "launch"
    return ".".join(parts[:2]) if parts[0] == "nano3" and len(parts) > 1 else ""


def imported_modules(path: Path) -> set[str]:
    """Names that a file imports, also inside functions; those of a `from` import with their module in front."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")}
    return found


def imports(path: Path) -> set[str]:
    """Rooms that a file imports, also inside functions."""
    return {room_of(module) for module in imported_modules(path)} - {""}


def files_of(room: str) -> list[Path]:
    """Source files of a room."""
    place = ROOT / room.replace(".", "/")
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    return [f for f in files if str(f.relative_to(ROOT)) not in ENTRIES]


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_one_way(room: str) -> None:
    files = files_of(room)
    assert files
    for path in files:
        wrong = imports(path) - ALLOWED[room] - {room}
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_data_imports_point_down() -> None:
    for height, room in enumerate(DATA_ROOMS):
        files = files_of(f"nano3.data.{room}")
        assert files, room
        for path in files:
            modules = [module.split(".") for module in imported_modules(path)]
            above = {m[2] for m in modules if len(m) > 2 and m[:2] == ["nano3", "data"] and m[2] in DATA_ROOMS[:height]}
            assert not above, f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("level", range(len(TRAINING_ROOMS)))
def test_training_imports_point_down(level: int) -> None:
    below = set().union(*TRAINING_ROOMS[level + 1 :])
    for room in TRAINING_ROOMS[level]:
        for path in files_of(f"nano3.training.{room}"):
            modules = [module.split(".") for module in imported_modules(path)]
            wrong = {m[2] for m in modules if len(m) > 2 and m[:2] == ["nano3", "training"]} - below - {room}
            assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


def test_every_module_of_training_has_its_level() -> None:
    found = {path.stem for path in (ROOT / "nano3" / "training").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__init__", "__main__", "__pycache__"} == set().union(*TRAINING_ROOMS)


def test_no_module_and_no_function_grows_too_long() -> None:
    for path in [*(ROOT / "nano3").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        text = path.read_text()
        assert text.count("\n") <= 600, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"
