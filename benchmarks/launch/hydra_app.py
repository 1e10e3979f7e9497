"""The smallest Hydra application, for hydra-submitit-launcher: it checks, reads and copies nothing."""

import hydra


@hydra.main(version_base="1.3", config_path=None)
def main(cfg) -> None:
    print("first line", flush=True)


if __name__ == "__main__":
    main()
