"""What torchrun starts in test_train.py: python torchrun_worker.py DATA RUN_DIR"""

import sys
from pathlib import Path

from training_processes import tiny_config

from nano3.training.hf.backend import train

if __name__ == "__main__":
    sys.exit(train(tiny_config(), Path(sys.argv[1]), Path(sys.argv[2])).exit_code())
