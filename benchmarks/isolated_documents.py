"""CPU time of an iteration of the quickstart with document_boundaries=cross and isolate, alternated in one process:

python -m nano3.data_prep data_blend=sample output_dir=DATA valid_fraction=0.05 [max_doc_tokens=200]
python benchmarks/isolated_documents.py DATA
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

from omegaconf import OmegaConf

from nano3.config import ModelConfig, PretrainConfig
from nano3.training.dataset import open_data
from nano3.training.hf.backend import mutable_settings, run_identity
from nano3.training.hf.batch import plan_batches
from nano3.training.hf.components import RunInputs, assemble
from nano3.training.hf.loop import Loop
from nano3.training.run.outcome import no_hook
from nano3.training.run.resume import ResumePoint

MODEL = Path(__file__).parents[1] / "conf/model/quickstart.yaml"
ITERATIONS = 8


def make_loop(data_dir: Path, run_dir: Path, boundaries: str) -> Loop:
    """Return the quickstart's loop, ready for its first iteration."""
    config = PretrainConfig(backend="transformers", model=ModelConfig(**OmegaConf.load(MODEL)))
    config.run.name, t = boundaries, config.train
    t.train_iters, t.global_batch_size, t.micro_batch_size, t.seq_length = 40, 4, 2, 256
    t.eval_interval, t.threads, t.document_boundaries = 0, 1, boundaries
    config.scheduler.lr_warmup_iters = config.scheduler.lr_wsd_decay_iters = 2
    data, plan = open_data(data_dir), plan_batches(4, 2, 1)
    identity, settings = run_identity(config, data), mutable_settings(config)
    return assemble(RunInputs(config, data, plan, run_dir, ResumePoint(), 1, identity, settings, no_hook))


def main() -> None:
    data_dir = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        loops = {kind: make_loop(data_dir, Path(folder) / kind, kind) for kind in ("cross", "isolate")}
        seconds: dict[str, list[float]] = {kind: [] for kind in loops}
        for loop_iteration in range(ITERATIONS):
            for kind, loop in loops.items():
                loop.iteration = loop_iteration
                begin = time.process_time()
                loop.step()
                seconds[kind].append(time.process_time() - begin)
    for kind, found in seconds.items():
        print(f"{kind}: {statistics.median(found):.3f} CPU s per iteration ({min(found):.3f} to {max(found):.3f})")


if __name__ == "__main__":
    main()
