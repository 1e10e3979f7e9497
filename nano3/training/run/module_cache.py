"""Compiled Python modules of the training stack, kept where the installation cannot keep them.

The stack has thousands of modules. Compiling them takes three times as long as loading them, at every start on every
node, if the packages are installed without `__pycache__` in a folder that the ranks cannot write to (some images, some
shared environments), or if PYTHONDONTWRITEBYTECODE is set. Then they are kept under $NANO3_CACHE, which nodes may
share.
"""

import importlib.util
import os
import sys
from pathlib import Path


def keep_compiled_modules(package: str, folder: Path) -> Path | None:
    """Make this process and its children keep compiled modules in `folder` if nothing else keeps them.

    Call it before the stack is imported. A file there belongs to the path, time and size of its source, so several
    environments may share the folder.

    Args:
        package: A package of the stack; if it is compiled, all of it is taken to be.
        folder: The folder, which need not exist.

    Returns:
        `folder`, or None if nothing was changed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin or sys.pycache_prefix:
        return None
    kept_by_python = not sys.dont_write_bytecode and os.access(Path(spec.origin).parent, os.W_OK)
    if kept_by_python or Path(importlib.util.cache_from_source(spec.origin)).is_file():
        return None
    sys.pycache_prefix, sys.dont_write_bytecode = str(folder), False
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return folder
