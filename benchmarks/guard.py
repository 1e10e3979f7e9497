"""Poison the sample data, train with and without the guard, and draw docs/guard.png.

    python benchmarks/guard.py FOLDER [--output docs/guard.png] [KEY=VALUE...]

Two data sets differ in one document: real text, or one rare token repeated as often as the text has tokens. So every
other sample is the same at every iteration. FOLDER keeps data and runs; what is there already is not made again.
"""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer

from nano3.training.reports.plot import BLUE, GREY, ORANGE, style_axes
from nano3.training.run.guard import read_events
from nano3.training.run.metrics import read_metrics
from nano3.training.run.skips import read_skips

SAMPLE = Path(__file__).parents[1] / "nano3" / "sample"
# Share of the samples that come from the poisoned document.
WEIGHT = 0.004
POISON_BYTES = 100_000
SETTINGS = [
    "+experiment=quickstart", "train.train_iters=160", "scheduler.lr_wsd_decay_iters=40", "logger.log_interval=1",
    "logger.sample_prompts=[]", "train.eval_interval=20", "checkpoint.save_interval=20", "guard.window=40",
    "optimizer.clip_grad=0",  # one poisoned sample in a batch of four is then enough to see what follows
    "train.skip_iterations=[[2,2]]",  # a blend reads the first sample of each dataset at its beginning
]  # fmt: skip
RUNS = {
    "clean": ("clean", ["guard.action=none"]),
    "unguarded": ("poisoned", ["guard.action=none"]),
    "guarded": ("poisoned", ["guard.action=rollback"]),
}


def write_documents(folder: Path) -> None:
    """Write FOLDER/clean.jsonl and FOLDER/poisoned.jsonl: one document each, of equally many tokens."""
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))
    with gzip.open(SAMPLE / "math.jsonl.gz", "rt") as f:
        texts = [json.loads(line)["text"] for line in f]
    rare = tokenizer.decode([tokenizer.get_vocab_size() - 1])
    poison = rare * (POISON_BYTES // len(rare.encode()))
    wanted = len(tokenizer.encode(poison).ids)
    ids = tokenizer.encode("\n".join(texts)[: 6 * wanted]).ids[:wanted]
    while len(tokenizer.encode(tokenizer.decode(ids)).ids) != wanted:  # a cut inside a word
        ids[-1] = ids[0]
        ids = ids[1:] + ids[:1]
    for name, text in (("clean", tokenizer.decode(ids)), ("poisoned", poison)):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": text}) + "\n")


def prepare(folder: Path, name: str) -> None:
    """Prepare the sample blend with one more dataset, `web`."""
    share = 1 - WEIGHT
    sample = {"docs": ("docs.parquet", 0.4), "code": ("code.jsonl.zst", 0.4), "math": ("math.jsonl.gz", 0.2)}
    datasets = [
        {"name": key, "path": str(SAMPLE / file), "weight": weight * share} for key, (file, weight) in sample.items()
    ]
    blend = folder / f"{name}.json"
    web = {"name": "web", "path": str(folder / f"{name}.jsonl"), "weight": WEIGHT}
    blend.write_text(json.dumps({"datasets": [*datasets, web]}))
    command = [
        sys.executable, "-m", "nano3.data_prep", f"blend_path={blend}", f"output_dir={folder / name}",
        f"tokenizer_model={SAMPLE / 'tokenizer'}", "num_shards=8", "valid_fraction=0.05", "test_fraction=0",
        "split_by=position",
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=folder)


def train(folder: Path, run: str, words: list[str]) -> None:
    """Train one of `RUNS`."""
    data, guard = RUNS[run]
    where = [f"run.name={run}", f"run.data={folder / data}"]
    subprocess.run([sys.executable, "-m", "nano3.pretrain", *SETTINGS, *where, *guard, *words], check=True, cwd=folder)


def draw(folder: Path, output: Path) -> None:
    """Draw the training losses of the runs and what the guard did."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    losses, differences = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    curves = {run: loss_by_iteration(folder, run) for run in RUNS}
    for run, color, label in (
        ("unguarded", ORANGE, "poisoned data, no guard"),
        ("clean", GREY, "the same data with real text instead"),
        ("guarded", BLUE, "poisoned data, guard.action=rollback"),
    ):
        losses.plot(*zip(*curves[run].items(), strict=True), color=color, linewidth=1.5, label=label)
        if run != "clean":
            gaps = {i: loss - curves["clean"][i] for i, loss in curves[run].items() if i in curves["clean"]}
            differences.plot(*zip(*gaps.items(), strict=True), color=color, linewidth=1.5)
    for one in read_skips(folder / "output/nano3/runs/guarded").ranges:
        for axes in (losses, differences):
            axes.axvspan(one.first - 0.5, one.last + 0.5, color=BLUE, alpha=0.2, linewidth=1)
    losses.set(ylabel="training loss (nats per token)")
    differences.set(ylabel="minus the clean run", xlabel="iteration (shaded: left out)")
    losses.legend(frameon=False)
    for axes in (losses, differences):
        style_axes(axes)
    figure.savefig(output, format="png")


def loss_by_iteration(folder: Path, run: str) -> dict[int, float]:
    """Return the training loss of each logged iteration."""
    lines = read_metrics(folder / "output/nano3/runs" / run)
    return {line["iteration"]: line["loss"] for line in lines if "loss" in line}


def main() -> None:
    """Make what is missing, print the figures, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("words", nargs="*", help="settings of the runs")
    parser.add_argument("--output", type=Path, default=Path("docs/guard.png"))
    args = parser.parse_args()
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "poisoned.jsonl").exists():
        write_documents(folder)
    for name in ("clean", "poisoned"):
        prepare(folder, name)
    for run in RUNS:
        train(folder, run, args.words)
    guarded = folder / "output/nano3/runs/guarded"
    for event in read_events(guarded):
        print({key: value for key, value in event.items() if key != "documents"})
    curves = {run: loss_by_iteration(folder, run) for run in RUNS}
    for run in ("unguarded", "guarded"):
        shared = [abs(curves[run][i] - curves["clean"][i]) for i in curves[run] if i in curves["clean"]]
        print(f"{run}: largest difference from the clean run {max(shared):.3f}, at the end {shared[-1]:.4f}")
    draw(folder, args.output)


if __name__ == "__main__":
    main()
