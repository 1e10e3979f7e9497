"""Compare two checkouts of nano3 in alternated runs: data preparation, a rerun without work, and `--cfg job`.

    python benchmarks/data/two_checkouts.py OLD_CHECKOUT NEW_CHECKOUT [--rounds N] [--new-words "KEY=VALUE ..."]

Both run under this Python, each with its own checkout first on the module path. The text is the installed Python
sources, up to 240 MB as JSON lines; the tokenizer is that of the other benchmarks (131,072 ids). Prints medians and
ratios, and compares the .bin and .idx files.
"""

import argparse
import filecmp
import json
import os
import resource
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import tokenizer

WORK = Path(__file__).resolve().parents[2] / ".bench"
QUIET = {"PYTHONDONTWRITEBYTECODE": "", "HF_HUB_OFFLINE": "1"}


def main() -> None:
    """Measure all commands and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--new-words", default="", help="further words for data_prep of the new checkout")
    options = parser.parse_args()
    text = build_text(WORK / "installed.jsonl")
    tokenizer_dir = tokenizer.build(WORK / "tekken")
    checkouts = {"old": options.old.resolve(), "new": options.new.resolve()}
    times: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        for number in range(options.rounds):
            order = ("old", "new") if number % 2 else ("new", "old")
            commands = {name: build_commands(Path(scratch) / f"{name}{number}", text, tokenizer_dir) for name in order}
            for label in commands["old"]:
                for name in order:
                    words = options.new_words.split() if name == "new" and "data_prep" in label else []
                    took = measure([*commands[name][label], *words], checkouts[name], Path(scratch))
                    times.setdefault((label, name), []).append(took)
            same = same_files(Path(scratch) / f"old{number}", Path(scratch) / f"new{number}")
    print(f"text: {text.stat().st_size:,} bytes; {options.rounds} rounds; equal files: {same}; medians, seconds")
    print(f"{'command':<38} {'old wall':>9} {'new wall':>9} {'ratio':>6} {'old CPU':>9} {'new CPU':>9} {'ratio':>6}")
    for label in dict.fromkeys(label for label, _ in times):
        row = [statistics.median(t[kind] for t in times[label, name]) for kind in (0, 1) for name in ("old", "new")]
        ratios = row[1] / row[0], row[3] / row[2]
        print(f"{label:<38} {row[0]:9.3f} {row[1]:9.3f} {ratios[0]:6.3f} {row[2]:9.3f} {row[3]:9.3f} {ratios[1]:6.3f}")


def build_commands(output: Path, text: Path, tokenizer_dir: Path) -> dict[str, list[str]]:
    """Return the measured commands by their label, in the order in which they run."""
    source = f"data_blend.datasets=[{{name: text, path: {text}}}]"
    prep = ["-m", "nano3.data_prep", source, "data_blend.name=text", f"tokenizer_model={tokenizer_dir}"]
    prep.append(f"output_dir={output}")
    return {
        "data_prep": prep,
        "data_prep again, nothing to do": prep,
        "pretrain --cfg job +experiment=tiny": ["-m", "nano3.pretrain", "--cfg", "job", "+experiment=tiny"],
    }


def build_text(path: Path, limit: int = 240_000_000) -> Path:
    """Write the installed Python sources as JSON lines, in order of their names, until `limit` bytes."""
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        size = 0
        with path.open("wb") as f:
            for source in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
                size += f.write(json.dumps({"text": source.read_text(errors="replace")}).encode() + b"\n")
                if size > limit:
                    break
    return path


def same_files(old: Path, new: Path) -> bool:
    """Return whether two outputs have the same .bin and .idx files."""
    names = {folder: sorted(p.relative_to(folder) for p in folder.rglob("data_*.*")) for folder in (old, new)}
    return names[old] == names[new] and all(filecmp.cmp(old / n, new / n, shallow=False) for n in names[old])


def measure(command: list[str], checkout: Path, folder: Path) -> tuple[float, float]:
    """Run a command of one checkout and return its wall time and CPU time in seconds, children included."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    home = str(folder / f"home_{checkout.name}")  # an older version need not read the records of a newer one
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(checkout), "NANO3_HOME": home}
    subprocess.run([sys.executable, *command], check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
