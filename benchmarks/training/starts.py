"""Measure what cuts of a start are worth, in CPU seconds of a start of backend=transformers until its data is open:

    python benchmarks/training/starts.py DATA_DIR [ROUNDS]

DATA_DIR is prepared data. Variants alternate. `not compiled`: the modules are compiled at this start, as at every
start of an installation without compiled modules that cannot be written to. `kept`: they are read from the folder in
which an earlier start kept them. `tokenizer`: as `kept`, and Megatron loads the tokenizer for every set of samples, as
nano3 did before.
"""

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

VARIANTS = ("not compiled", "kept", "tokenizer")


def start(data_dir: Path, cache: Path, variant: str) -> None:
    """Import what a run imports, and open its data."""
    from nano3.training.dataset import open_data
    from nano3.training.hf import datasets

    if variant == "tokenizer":
        from megatron.core.tokenizers import MegatronTokenizer

        datasets.TokenizerFacts = lambda path, *_: MegatronTokenizer.from_pretrained(  # type: ignore[misc,assignment]
            path, metadata_path={"library": "huggingface"}
        )
    from nano3.training.hf.components import make_accelerator
    from nano3.training.hf.model import build_model  # noqa: F401

    make_accelerator(1)
    builder = datasets.DatasetBuilder(open_data(data_dir), 256, 1234, cache)
    builder.valid(3, 4)
    builder.train(100)


def cpu_seconds(data_dir: str, variant: str, modules: Path) -> float:
    """Return the CPU seconds of a process that starts."""
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "modules" if variant == "not compiled" else modules
        env = {**os.environ, "PYTHONPYCACHEPREFIX": str(own)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        if variant == "not compiled":
            env["PYTHONDONTWRITEBYTECODE"] = "1"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-W", "ignore", __file__, data_dir, variant, str(Path(folder) / "index")]
        subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    if len(sys.argv) == 4:
        start(Path(sys.argv[1]), Path(sys.argv[3]), sys.argv[2])
        return
    data_dir, rounds = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 3
    with tempfile.TemporaryDirectory() as folder:
        cpu_seconds(data_dir, "kept", Path(folder))  # fills the folder
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(rounds):
            for variant in VARIANTS:
                seconds[variant].append(cpu_seconds(data_dir, variant, Path(folder)))
                print(f"{variant:13} {seconds[variant][-1]:5.1f}", flush=True)
    for variant, found in seconds.items():
        print(f"RESULT {variant:13} median {median(found):5.1f} s CPU")


if __name__ == "__main__":
    main()
