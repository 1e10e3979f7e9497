"""One virtual environment per peer, made with uv from the package registry, cached under the work folder."""

import os
import shutil
import subprocess
from pathlib import Path

# Peers are pinned: a ratio is worth something only against a version with a name.
PACKAGES = {
    "fetch": ["pip==26.2"],
    "megatron": ["megatron-core==0.19.2", "torch==2.11.0", "transformers==5.17.0", "gigatoken==0.10.0"],
    "datatrove": ["datatrove[io,processing]==0.10.1"],
    "dolma": ["dolma==1.2.1"],
    # NeMo Curator 1.4.0 calls batch_encode_plus, which transformers 5 no longer has.
    "curator": ["nemo-curator[text_cpu]==1.4.0", "transformers<5"],
    "datasets": ["datasets==5.2.0", "megatron-core==0.19.2", "torch==2.11.0", "transformers==5.17.0"],
}


def python(folder: Path, name: str) -> Path:
    """The interpreter of the environment `name`, made on first use.

    Raises: SystemExit when uv is missing or a package cannot be installed.
    """
    home = folder / "envs" / name
    interpreter, stamp = home / "bin" / "python", home / "packages.txt"
    wanted = "\n".join(PACKAGES[name])
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    uv(["venv", "--quiet", "--clear", "--python", "3.12", str(home)])
    uv(["pip", "install", "--quiet", "--compile-bytecode", "--python", str(interpreter), *PACKAGES[name]])
    stamp.write_text(wanted)
    return interpreter


def versions(folder: Path, name: str) -> dict[str, str]:
    """Installed versions of the packages that matter for the speed of a peer."""
    named = [requirement.split("=")[0].split("[")[0].split("<")[0] for requirement in PACKAGES[name]]
    script = "import sys; from importlib.metadata import version; [print(p, version(p)) for p in sys.argv[1:]]"
    packages = [*named, "tokenizers"]
    done = subprocess.run(
        [str(python(folder, name)), "-c", script, *packages], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def uv(arguments: list[str]) -> str:
    """Run uv and return what it prints."""
    own = Path(".uv/bin/uv")
    found = os.environ.get("UV") or (str(own) if own.exists() else shutil.which("uv"))
    if found is None:
        raise SystemExit("uv was not found: start this with `make bench-data`, or name it with UV=/path/to/uv")
    done = subprocess.run([found, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"uv {' '.join(arguments)} failed: {done.stderr.strip()[-800:]}")
    return done.stdout
