"""`nano3 export RUN`: a run's checkpoint as a Hugging Face model folder."""

import argparse
from pathlib import Path

from nano3.console import say

HELP = "write a run's checkpoint as a Hugging Face model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="run folder (run.output_dir), or the folder of one checkpoint")
    parser.add_argument("--output", type=Path, help="folder to write; default RUN/hf")
    parser.add_argument("--iteration", type=int, help="which checkpoint; default the newest")


def run(args: argparse.Namespace) -> int:
    from nano3.training.export import export

    folder = export(args.run, args.output or args.run / "hf", args.iteration)
    say(f"{folder}: load it with transformers' AutoModelForCausalLM.from_pretrained")
    return 0
