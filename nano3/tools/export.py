"""Write a run's checkpoint as a Hugging Face model folder.

nano3 export tiny
nano3 export output/nano3/runs/tiny --iteration 1000 --output tiny-hf
"""

import argparse

from nano3.tools._arguments import RUNS, at_least, find_run
from nano3.utils.console import say
from nano3.utils.files import expand_user

HELP = "write a run's checkpoint as a Hugging Face model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tool's arguments."""
    parser.add_argument("run", help=f"run folder, its name under {RUNS}, or the folder of one checkpoint")
    parser.add_argument("--output", type=expand_user, help="folder to write (default: RUN/hf)")
    parser.add_argument("--iteration", type=at_least(1), help="iteration of the checkpoint (default: the newest)")


def run(args: argparse.Namespace) -> int:
    """Run the tool and return its exit code."""
    from nano3.training.export import export
    from nano3.training.run.exports import read_export_info

    run_dir = find_run(args.run)
    folder = export(run_dir, args.output or run_dir / "hf", args.iteration)
    written = read_export_info(folder).iteration
    say(f"{folder}: iteration {written}; load it with AutoModelForCausalLM.from_pretrained of transformers")
    return 0
