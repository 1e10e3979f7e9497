"""Create a Hugging Face NemotronH with random weights from a conf/model file: fresh.py MODEL.yaml DATA_DIR OUT_DIR"""

import shutil
import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from nano3.config import ModelConfig
from nano3.training.checks.model_stats import padded_vocab_size
from nano3.training.dataset import open_data
from nano3.training.hf.model import hf_config


def main() -> None:
    model, data_dir, output = map(Path, sys.argv[1:4])
    data = open_data(data_dir)
    config = hf_config(ModelConfig(**OmegaConf.load(model)), padded_vocab_size(data.vocab_size), 1024, data.eod_id)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(output)
    for file in data.tokenizer.iterdir():
        shutil.copy(file, output / file.name)


if __name__ == "__main__":
    main()
