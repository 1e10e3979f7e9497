"""Data preparation against its peers: the same text, the same tokenizer, alternated runs.

    python benchmarks/data/bench.py                  # small and medium with all, large with the fast ones
    python benchmarks/data/bench.py --quick          # every contender once on 4 MB: does it still work?
    python benchmarks/data/bench.py --only nano3,dolma --sizes large --rounds 1 --append   # these on the large text too

Text, tokenizer and environments are made on first use under .bench/ (about 30 GB with the peers' own packages).
Results: data.json (every run), data.md and data.png in benchmarks/results.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import corpus
import environments
import ids
import measure
import report
import tokenizer
from contenders import CONTENDERS, Contender, Job

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / ".bench"
SPENT = WORK / "spent"  # emptied outputs of earlier runs
# Size of the text, rounds, only the fast contenders?
PLAN = [("small", 2, False), ("medium", 1, False), ("large", 3, True)]
QUICK = [("tiny", 1, False)]
# No hub; and Python keeps its compiled modules, as it does for users, whatever this shell says.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(WORK / "hf"), "PYTHONDONTWRITEBYTECODE": ""}
OWN_VERSIONS = ["nano3", "fastokens", "tokenizers", "pyarrow", "numpy", "mistral-common"]


def main() -> None:
    """Parse the command line, measure, write the report."""
    options = parse()
    plan = QUICK if options.quick else [row for row in PLAN if not options.sizes or row[0] in options.sizes]
    names = options.only or list(CONTENDERS)
    needed = {CONTENDERS[name].environment for name in names} - {None}
    pythons = {name: environments.python(WORK, name) for name in ["fetch", *sorted(filter(None, needed))]}
    texts = {size: corpus.load(WORK, size, [str(pythons["fetch"]), "-m", "pip"]) for size, _, _ in plan}
    folder = tokenizer.build(WORK / "tekken")
    result = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "code": code(),
        "sample_s": measure.INTERVAL,
        "machine": machine(),
        "workers": options.workers,
        "versions": versions(names),
        "corpus": {
            size: {"documents": t.documents, "text_bytes": t.text_bytes, "sha256": t.sha256}
            for size, t in texts.items()
        },
        "sources": corpus.sources(WORK),
        "runs": [],
        "engine": [],
    }
    if options.append:
        earlier = json.loads((options.out / "data.json").read_text())
        result |= {key: earlier[key] for key in ("runs", "engine")}
        result["corpus"] = earlier["corpus"] | result["corpus"]
        result["versions"] = earlier["versions"] | result["versions"]
    for size, rounds, only_fast in plan:
        for round_number in range(1, (options.rounds or rounds) + 1):
            for name in names:
                contender = CONTENDERS[name]
                if contender.fast or not only_fast or options.only:
                    python = pythons[contender.environment or "fetch"]
                    job = Job(texts[size], folder, WORK / "out" / name, python, options.workers, options.patience)
                    row = one_run(contender, job)
                    which = {"contender": name, "size": size, "round": round_number, "code": result["code"]}
                    result["runs"].append(which | row)
                    report.save(result, options.out)
            if only_fast or options.quick:
                result["engine"] += engine(texts[size], folder, size, round_number, options.workers)
    shutil.rmtree(SPENT, ignore_errors=True)
    report.save(result, options.out)
    report.write(result, options.out)
    print((options.out / "data.md").read_text())


def one_run(contender: Contender, job: Job) -> dict[str, Any]:
    """Run a contender into an empty folder with its input in the page cache; usage, ids and the command."""
    put_aside(job.output)
    job.output.mkdir(parents=True)
    for path in [job.text.jsonl, job.text.parquet, *job.text.parts.iterdir()]:
        warm(path)
    os.sync()
    measure.wait_for_quiet(0.1, job.patience)
    command = contender.command(job)
    usage = measure.run(command, job.output.with_suffix(".log"), ENVIRONMENT, WORK)
    found = asdict(ids.read(job.output))
    size = job.text.text_bytes / 1e6
    print(
        f"{contender.title:55s} {size:6.0f} MB {usage.wall_s:7.1f} s {usage.cpu_s:7.1f} CPU-s {found['tokens']} tokens",
        flush=True,
    )
    put_aside(job.output)
    shown = [word.replace(str(ROOT) + "/", "") for word in command]
    return {**{key: round(value, 3) for key, value in asdict(usage).items()}, **found, "command": " ".join(shown)}


def put_aside(output: Path) -> None:
    """Empty the files of a run and move its folder away; they are removed when all runs are done.

    ext4 looks at every inode that was freed in the last minutes when it makes a file: with the outputs of earlier runs
    removed, a run that makes hundreds of files takes more CPU time from round to round.
    """
    if not output.exists():
        return
    for path in output.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.truncate(path, 0)
    SPENT.mkdir(parents=True, exist_ok=True)
    output.rename(SPENT / f"{output.name}.{time.time_ns()}")


def warm(path: Path) -> None:
    """Read a file once, so that every contender finds its input in the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def engine(text: corpus.Corpus, folder: Path, size: str, round_number: int, workers: int) -> list[dict[str, Any]]:
    """The bare engine in memory, with one process and with as many as there are workers."""
    rows = []
    for processes in sorted({1, workers}):
        script = [
            str(Path(__file__).with_name("engine.py")),
            str(text.jsonl),
            str(folder / "tokenizer.json"),
            str(processes),
        ]
        done = subprocess.run([sys.executable, *script], check=True, capture_output=True, text=True)
        rows.append({"size": size, "round": round_number, "processes": processes, **json.loads(done.stdout)})
        print(f"bare engine, {processes} process(es): {rows[-1]}", flush=True)
    return rows


def code() -> str:
    """The commit that is measured, with a "+" when files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "not a git checkout"


def machine() -> dict[str, object]:
    """Processor, cores, memory, kernel."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu[0],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9),
        "system": platform.platform(),
    }


def versions(names: list[str]) -> dict[str, dict[str, str]]:
    """Package versions of every contender's environment."""
    used = sorted({CONTENDERS[name].environment or "" for name in names} - {""})
    own = {"nano3": {package: version(package) for package in OWN_VERSIONS} | {"python": platform.python_version()}}
    return own | {name: environments.versions(WORK, name) for name in used}


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="every contender once on 4 MB of text")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), help=f"these contenders on every size, of {','.join(CONTENDERS)}"
    )
    parser.add_argument("--sizes", type=lambda text: text.split(","), help="of small,medium,large")
    parser.add_argument("--rounds", type=int, help="rounds of every size (2 on small, 1 on medium, 3 on large)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="worker processes (2)")
    parser.add_argument("--append", action="store_true", help="add to the runs that are in data.json already")
    parser.add_argument(
        "--patience", type=float, default=60, help="seconds to wait for a quiet machine before a run (60)"
    )
    parser.add_argument("--out", type=Path, help="folder of data.json, data.md, data.png (benchmarks/results)")
    options = parser.parse_args()
    unknown = set(options.only or []) - set(CONTENDERS) | set(options.sizes or []) - {row[0] for row in PLAN}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if options.out is None:
        options.out = WORK / "quick" if options.quick else ROOT / "benchmarks" / "results"
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
