"""Measure the cost of nano3's callback in Megatron-Bridge's loop, in one process to exclude the host's changing load:

    python benchmarks/gpu/hooks.py RUN_DIR DATA_DIR MODEL.yaml key=value...

Ten steps with the callback alternate with ten without (off, on, on, off). Every block ends with the log line of
Megatron-Bridge, and blocks with the callback also with that of nano3. After half of the steps, the garbage collector
searches the imported objects again (`gc.unfreeze`).
"""

import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from train import build

from nano3.training.dataset import open_data
from nano3.training.megatron.backend import prepare, set_environment
from nano3.training.megatron.callbacks import RunContext, TrainingHooks
from nano3.training.run import index_cache
from nano3.training.run.outcome import no_hook
from nano3.training.run.stop import StopRequest
from nano3.utils.gc_pause import gc_paused

BLOCK = 10


class AlternatingHooks:
    """Passes events to nano3's callback in every other block and records the time of each block."""

    def __init__(self, hooks: TrainingHooks, half: int) -> None:
        self.hooks, self.half = hooks, half
        self.blocks: dict[tuple[bool, bool], list[float]] = {}
        self._started = 0.0
        self._on = False

    def on_train_start(self, context: Any) -> None:
        self.hooks.on_train_start(context)

    def on_train_step_start(self, context: Any) -> None:
        step = int(context.state.train_state.step)
        if step % BLOCK == 0:
            self._end_block(step)
            self._on = step // BLOCK % 4 in (1, 2)
            if step == self.half:
                gc.unfreeze()
            self._started = time.perf_counter()
        if self._on:
            self.hooks.on_train_step_start(context)

    def on_train_step_end(self, context: Any) -> None:
        if self._on:
            self.hooks.on_train_step_end(context)

    def _end_block(self, step: int) -> None:
        if step < 2 * BLOCK:  # compilation
            return
        ms = (time.perf_counter() - self._started) / BLOCK * 1e3
        frozen = step <= self.half
        self.blocks.setdefault((frozen, self._on), []).append(ms)
        collector = "on" if gc.isenabled() else "off"
        full = gc.get_stats()[2]["collections"]
        state = f"frozen {gc.get_freeze_count()}, collector {collector}, {full} full collections"
        print(f"BLOCK to {step} callback {'on ' if self._on else 'off'} {ms:.1f} ms a step; {state}", flush=True)


def main() -> None:
    run_dir, data_dir, *arguments = sys.argv[1:]
    config, data, folder = build(data_dir, run_dir, arguments), open_data(Path(data_dir)), Path(run_dir)
    set_environment()
    with gc_paused(freeze=True):
        container = prepare(config, data, folder)
    container.checkpoint.load = None
    cache = index_cache.cache_folder(folder, data.fingerprint)
    index_cache.prepare_cache(cache)
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    from nano3.training.run.metrics import Metrics

    train = config.train
    run = RunContext(
        metrics=Metrics(folder, 0, 0, config, train.train_iters),
        stop=StopRequest(),
        on_save=no_hook,
        save_folder=folder,
        index_cache=cache,
        log_interval=config.logger.log_interval,
        global_batch_size=train.global_batch_size,
        seq_length=train.seq_length,
        save_interval=0,
        train_iters=train.train_iters,
    )
    hooks = AlternatingHooks(TrainingHooks(run), half=train.train_iters // 2)
    pretrain(config=container, forward_step_func=forward_step, callbacks=[hooks])
    for (frozen, on), blocks in sorted(hooks.blocks.items()):
        result = f"{len(blocks)} blocks, median {statistics.median(blocks):.1f} ms a step, least {min(blocks):.1f}"
        print(f"RESULT callback {'on' if on else 'off'}, imports {'frozen' if frozen else 'searched'}: {result}")


if __name__ == "__main__":
    main()
