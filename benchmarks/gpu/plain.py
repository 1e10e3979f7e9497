"""Counterpart of train.py: the same container in Megatron-Bridge's `pretrain` without nano3 in the loop."""

import sys
from pathlib import Path

from train import build, wait_for_turn

from nano3.training.dataset import open_data
from nano3.training.megatron.backend import prepare, set_environment


def main() -> None:
    run_dir, data_dir, *arguments = sys.argv[1:]
    wait_for_turn()
    set_environment()
    container = prepare(build(data_dir, run_dir, arguments), open_data(Path(data_dir)), Path(run_dir))
    container.checkpoint.load = None
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    pretrain(config=container, forward_step_func=forward_step)


if __name__ == "__main__":
    main()
