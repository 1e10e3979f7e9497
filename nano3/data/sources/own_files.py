"""Names of the files and folders that nano3 writes, so that they are never read as text.

An output folder may lie inside an input folder, as may runs and artifact stores of earlier commands.
"""

import re
from collections.abc import Collection
from pathlib import Path

PREP = ".prep"  # subfolder of an output folder for everything unfinished
PUBLISHED = ("train", "valid", "test", "tokenizer", "blend.json", "manifest.json")


def prep_dir(output: Path) -> Path:
    """Return the folder for everything unfinished in an output folder."""
    return output / PREP


def is_publishing(output: Path) -> bool:
    """Return whether a run was killed while it moved its build into the output folder."""
    return (prep_dir(output) / "publish").is_file()


def own_file_names(output: Path) -> tuple[str, ...]:
    """Return the names that nano3 uses in an output folder, or () if no data was ever published there."""
    return PUBLISHED if (output / "manifest.json").exists() or is_publishing(output) else ()


def non_text_names(names: Collection[str]) -> Collection[str]:
    """Return the names in a folder that an earlier preparation, a run, or an artifact store of nano3 wrote.

    Args:
        names: Names of everything in the folder; they show what kind of folder it is.
    """
    if PREP in names and "manifest.json" in names:
        return PUBLISHED
    is_run = "starts" in names and "config.yaml" in names
    is_store = "places" in names and any(re.fullmatch(r"v[1-9]\d*\.json", name) for name in names)
    return names if is_run or is_store else ()
