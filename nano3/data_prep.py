"""Turn raw text into Megatron .bin/.idx, on this machine or on a cluster.

    python -m nano3.data_prep data_blend=sample                               # the bundled corpus
    python -m nano3.data_prep blend_path=my.json tokenizer_model=path/to/tokenizer
    python -m nano3.data_prep data_blend=math sample=100000                   # the first 100,000 rows of each dataset
    python -m nano3.data_prep data_blend=nemotron cluster=slurm cluster.tasks=64
    python -m nano3.data_prep data_blend=math cluster=slurm --then +experiment=tiny     # prepare, then train

Run the same command again to resume an interrupted preparation; a complete one is left untouched.
"""

import os
import sys


def main() -> None:
    """Run the command line. Start loading the tokenizer first, as the other imports take half a second."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # no linear algebra here: its threads would only spin
    from nano3.prep.preload import preload_tokenizer
    from nano3.utils.command_line import CommandLine, fold_then
    from nano3.utils.gc_pause import gc_paused

    sys.argv[1:] = fold_then(sys.argv[1:])
    preload_tokenizer(CommandLine.parse(sys.argv[1:]))
    with gc_paused(freeze=True):
        from nano3.cli.app import run_app
        from nano3.data.build.worker_client import WorkerServerClient
        from nano3.prep.run import data_prep
    try:
        run_app("data_prep", data_prep, sweep="nano3.prep.sweep")
    finally:
        WorkerServerClient.cancel_preload()


if __name__ == "__main__":
    main()
