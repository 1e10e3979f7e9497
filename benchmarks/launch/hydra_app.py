"""The smallest Hydra application, for hydra-submitit-launcher: it checks, reads and copies nothing."""

import time

import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(cfg) -> None:
    time.sleep(0.1)


if __name__ == "__main__":
    main()
