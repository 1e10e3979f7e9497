"""Checks of a recipe and its overrides that read Megatron-Bridge's source instead of importing it."""

import ast
import difflib
import hashlib
import importlib.util
from pathlib import Path

from nano3.training.dataset import TrainingData, eod_problems
from nano3.training.megatron import schema
from nano3.training.megatron.settings import Setting
from nano3.utils.errors import did_you_mean, nearest_hint


def recipe_problems(target: str) -> list[str]:
    """Return why the installed Megatron-Bridge has no such recipe; empty if Megatron-Bridge is not installed."""
    bridge = _bridge_folder()
    if bridge is None:
        return []
    module, _, name = target.removeprefix("megatron.bridge.").rpartition(".")
    base = bridge.joinpath(*module.split("."))
    file = next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)
    if file is None:
        hint = nearest_hint(target, _all_recipes(bridge))
        return [f"recipe._target_={target}: there is no module megatron.bridge.{module}.{hint}"]
    names = _names(file)
    if name in names or "*" in names:
        return []
    choices = [n for n in names if n.endswith("_config")]
    there = module.partition(".")[2] or "that package"
    return [f"recipe._target_={target}: {there} has no {name!r}.{did_you_mean(name, choices)}"]


def similar_recipe_hint(target: str) -> str:
    """Return " Did you mean X?" if the name of a recorded recipe is close to `target`, else ""."""
    near = difflib.get_close_matches(target, schema.RECIPES, n=1, cutoff=0.9)
    return f" Did you mean {near[0]!r}?" if near else ""


def unrecorded_warning(target: str) -> str | None:
    """Return the sentence that says that a recipe's values are not known here, or None if it is recorded."""
    if schema.is_bundled(target):
        return None
    return (
        f"recipe._target_={target} is not recorded: sizes are estimated without its values, and it is checked when the "
        f"run starts.{similar_recipe_hint(target)}"
    )


def tokenizer_problems(overrides: list[Setting], data: TrainingData) -> list[str]:
    """Return why the tokenizer in the `megatron:` dict is not the data's. Only an identical one is allowed.

    Args:
        overrides: The settings of the `megatron:` dict.
        data: The prepared data, with its tokenizer.
    """
    problems = []
    data_hash = hashlib.sha256((data.tokenizer / "tokenizer.json").read_bytes()).hexdigest()
    for s in overrides:
        if s.path != "tokenizer.tokenizer_model":
            continue
        file = Path(str(s.value)) / "tokenizer.json"
        if not file.is_file():
            problems.append(
                f"{s.origin}={s.value}: not a folder with a tokenizer.json. Leave it out: the data's own is used."
            )
        elif hashlib.sha256(file.read_bytes()).hexdigest() != data_hash:
            problems.append(
                f"{s.origin}={s.value}: this is not the tokenizer that made the data in {data.folder}. Leave it "
                "out, or prepare the data with it."
            )
        else:
            problems += eod_problems(file.parent, data.eod_token, data.eod_id)
    return problems


def _bridge_folder() -> Path | None:
    """Return the folder of the installed Megatron-Bridge without importing it, or None."""
    spec = importlib.util.find_spec("megatron")
    for path in (spec.submodule_search_locations or []) if spec else []:
        if (folder := Path(path) / "bridge" / "recipes").is_dir():
            return folder.parent
    return None


def _names(file: Path) -> set[str]:
    """Return the names a module defines or imports at its top level; `*` stands for a star import."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(t.id for t in node.targets if isinstance(t, ast.Name))
    return names


def _all_recipes(bridge: Path) -> list[str]:
    found = []
    for file in (file for name in ("recipes", "perf_recipes") for file in (bridge / name).rglob("*.py")):
        module = ".".join(("megatron.bridge", *file.relative_to(bridge).with_suffix("").parts))
        found += [f"{module}.{name}" for name in _names(file) if name.endswith("_config")]
    return found
