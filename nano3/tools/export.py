"""A run's checkpoint as a Hugging Face model folder.

nano3 export tiny
nano3 export output/nano3/runs/tiny --iteration 1000 --output tiny-hf
"""

import argparse
from pathlib import Path

from nano3.tools._folders import RUNS, run_folder
from nano3.utils.console import say

HELP = "write a run's checkpoint as a Hugging Face model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help=f"run folder, its name under {RUNS}, or the folder of one checkpoint")
    parser.add_argument("--output", type=Path, help="folder to write; default RUN/hf")
    parser.add_argument("--iteration", type=int, help="which checkpoint; default the newest")


def run(args: argparse.Namespace) -> int:
    from nano3.training.export import export

    run_dir = run_folder(args.run)
    folder = export(run_dir, args.output or run_dir / "hf", args.iteration)
    say(f"{folder}: load it with transformers' AutoModelForCausalLM.from_pretrained")
    return 0
