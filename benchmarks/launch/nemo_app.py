"""The smallest NeMo-Run experiment on Slurm, detached: one inline script without packaging."""

import sys

import nemo_run as run


def main() -> None:
    folder = sys.argv[1]
    executor = run.SlurmExecutor(
        account="root", partition="batch", nodes=1, ntasks_per_node=1, mem="1G", time="00:10:00",
        container_image="none", container_mounts=[],
        tunnel=run.LocalTunnel(job_dir=f"{folder}/experiments"), packager=run.Packager(),
    )  # fmt: skip
    with run.Experiment("bench", executor=executor) as experiment:
        experiment.add(run.Script(inline="sleep 0.1"), name="bench")
        experiment.run(detach=True, tail_logs=False)


if __name__ == "__main__":
    main()
