"""Real runs on the real Slurm: the same losses as here, through requeues, sweeps and chained jobs."""

import subprocess
from pathlib import Path

import pytest
from commands import SMALL, Commands, losses
from launch_helpers import eventually, last_id

pytestmark = pytest.mark.slurm
SLURM = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.poll_s=0.5", "cluster.time=10", "cluster.mem=4G"]
SLURM += ["cluster.ntasks_per_node=1"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory, slurm_conf: str) -> Commands:
    commands = Commands(tmp_path_factory.mktemp("on slurm"))
    commands.env["SLURM_CONF"] = slurm_conf
    return commands


@pytest.fixture(scope="module")
def data(cli: Commands) -> Path:
    """Prepared by three tasks of a job array."""
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", *SLURM, "cluster.tasks=3")
    return cli.folder / "data"


@pytest.fixture(scope="module")
def undisturbed(cli: Commands, data: Path) -> dict[int, float]:
    """The losses of one local rank."""
    cli("-m", "nano3.pretrain", *SMALL, "run.name=local")
    return losses(cli.run_dir("local"))


def test_an_array_prepares_the_bytes_that_one_machine_does(cli: Commands, data: Path) -> None:
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=here")
    files = sorted(p.relative_to(data) for p in data.glob("*/data_*"))
    assert len(files) == 24
    assert all((data / f).read_bytes() == (cli.folder / "here" / f).read_bytes() for f in files)


def test_two_nodes_of_two_ranks_have_the_losses_of_one_rank(cli: Commands, undisturbed: dict[int, float]) -> None:
    words = [*SMALL, *SLURM, "run.name=wide", "train.micro_batch_size=1"]
    done = cli("-m", "nano3.pretrain", *words, "cluster.nodes=2", "cluster.ntasks_per_node=2")
    assert done.stdout.count("fresh start") == 1
    assert "4 rank(s)" in done.stdout
    assert losses(cli.run_dir("wide")) == pytest.approx(undisturbed, abs=1e-4)


def test_a_signal_saves_requeues_and_resumes_to_the_same_losses(cli: Commands, undisturbed: dict[int, float]) -> None:
    longer = ["train.train_iters=400", "train.exit_iteration=200", "train.eval_interval=0"]
    whole = cli("-m", "nano3.pretrain", *SMALL, *longer, "run.name=uncut")
    assert "stopped at iteration 200" in whole.stdout
    cli("-m", "nano3.pretrain", *SMALL, *longer, *SLURM, "run.name=cut", "cluster.mode=detached")
    run = cli.run_dir("cut")
    eventually(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 5, seconds=120)
    subprocess.run(["scancel", "--signal=USR2", last_id(run)], env=cli.env, check=True)
    eventually(lambda: (run / "finished.json").exists(), seconds=240)
    assert losses(run) == losses(cli.run_dir("uncut"))
    assert [p.name for p in (run / "starts").iterdir()] == ["0001"]


def test_a_sweep_is_one_array(cli: Commands, undisturbed: dict[int, float]) -> None:
    cli("-m", "nano3.pretrain", "-m", *SMALL, *SLURM, "run.name=sweep", "optimizer.lr=1e-3,3e-3")
    points = sorted(cli.run_dir("sweep").glob("*/finished.json"))
    assert len(points) == 2
    assert any(losses(p.parent) == undisturbed for p in points)


def test_prepare_then_train_as_dependent_jobs(cli: Commands, undisturbed: dict[int, float]) -> None:
    prepare = ["-m", "nano3.data_prep", "data_blend=sample", "output_dir=chained", *SLURM, "cluster.tasks=2"]
    cli(*prepare, "--then", *SMALL, *SLURM, "run.name=chained")
    assert losses(cli.run_dir("chained")) == undisturbed
