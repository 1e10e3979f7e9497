"""Ranks in real Apptainer containers on a real Slurm. (The tests' pyxis is a stand-in: tests/slurm/fake_pyxis.c.)

The image is a file with an empty root; this machine's /usr and Python environment are mounted into it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SMALL, Commands, losses
from launch_helpers import HERE, eventually, last_id, log_of, state_of

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(900)]
INSTALL = HERE.parent / "slurm" / "apptainer.sh"
SLURM = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.ntasks_per_node=1", "cluster.poll_s=0.5"]
SLURM += ["cluster.time=10", "cluster.mem=4G"]
LONGER = ["train.train_iters=400", "train.exit_iteration=60", "train.eval_interval=0", "checkpoint.save_interval=10"]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory, slurm_conf: str) -> Commands:
    """Commands with apptainer on the PATH of the jobs."""
    commands = Commands(tmp_path_factory.mktemp("in containers"))
    commands.env["SLURM_CONF"] = slurm_conf
    installed = tmp_path_factory.mktemp("apptainer")
    subprocess.run([INSTALL, installed], check=True)
    commands.env["PATH"] = f"{installed}/usr/bin{os.pathsep}{commands.env['PATH']}"
    return commands


@pytest.fixture(scope="module")
def image(cli: Commands) -> Path:
    """An image file: links and mount points, users, and one file that only the container has."""
    root = cli.folder / "root"
    for folder in ("usr", "proc", "sys", "dev", "tmp", "var/tmp", "home", "etc"):
        (root / folder).mkdir(parents=True)
    for folder in ("bin", "sbin", "lib", "lib64"):
        (root / folder).symlink_to(f"usr/{folder}")
    for name in ("passwd", "group", "nsswitch.conf", "ld.so.cache"):
        if (Path("/etc") / name).exists():
            (root / "etc" / name).write_bytes((Path("/etc") / name).read_bytes())
    (root / "etc/container-of-the-test").touch()
    path = cli.folder / "image.sif"
    subprocess.run(["apptainer", "build", path, root], env=cli.env, check=True)
    return path


MOUNTS = ["/usr:/usr:ro", *(f"{prefix}:{prefix}:ro" for prefix in sorted({sys.prefix, sys.base_prefix}))]


@pytest.fixture(scope="module")
def in_container() -> list[str]:
    """The overrides for ranks in the image, under this machine's Python environment."""
    quoted = ",".join(f"'{mount}'" for mount in MOUNTS)
    return ["cluster.container_runtime=apptainer", f"cluster.mounts=[{quoted}]", f"cluster.python={sys.executable}"]


@pytest.fixture(scope="module")
def data(cli: Commands, image: Path, in_container: list[str]) -> Path:
    """Data prepared by two tasks in containers."""
    words = ["data_blend=sample", "output_dir=data", f"container={image}", *SLURM, "cluster.tasks=2"]
    cli("-m", "nano3.data_prep", *words, *in_container)
    return cli.folder / "data"


@pytest.fixture(scope="module")
def command(image: Path, data: Path, in_container: list[str]) -> list[str]:
    return ["-m", "nano3.pretrain", *SMALL, *LONGER, *SLURM, *in_container, f"run.env.container={image}"]


@pytest.fixture(scope="module")
def without(cli: Commands, data: Path) -> dict[int, float]:
    """The losses of a run on this machine without a container."""
    cli("-m", "nano3.pretrain", *SMALL, *LONGER, "run.name=local")
    return losses(cli.run_dir("local"))


def test_a_run_in_a_container_has_the_same_losses(cli: Commands, command: list[str], without: dict[int, float]) -> None:
    done = cli(*command, "run.name=inside")
    assert "fresh start" in done.stdout
    assert losses(cli.run_dir("inside")) == without


def test_a_signal_reaches_the_rank_which_saves_and_resumes(
    cli: Commands, command: list[str], without: dict[int, float]
) -> None:
    cli(*command, "run.name=signal", "cluster.mode=detached", "checkpoint.save_interval=1000")
    run = cli.run_dir("signal")
    eventually(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 5)
    subprocess.run(["scancel", "--signal=USR2", last_id(run)], env=cli.env, check=True)
    eventually(lambda: (run / "finished.json").exists(), seconds=240)
    assert "resuming from iteration" in log_of(run)
    assert losses(run) == without


def test_a_killed_rank_ends_the_job_with_its_code(cli: Commands, command: list[str]) -> None:
    cli(
        *command,
        "run.name=killed",
        "cluster.mode=detached",
        "cluster.max_crashes=1",
        "+cluster.env.SEEN_INSIDE='a b,c'",
    )
    run = cli.run_dir("killed")
    eventually(lambda: (run / "metrics.jsonl").exists() and len(losses(run)) > 5)
    found = subprocess.run(
        ["pgrep", "-f", f"launch.rank .*{run}/config.yaml"], capture_output=True, text=True, check=True
    )
    (rank,) = found.stdout.split()
    process = Path("/proc") / rank
    assert (process / "root/etc/container-of-the-test").exists()
    assert b"SEEN_INSIDE=a b,c" in (process / "environ").read_bytes().split(b"\0")
    os.kill(int(rank), 9)
    eventually(lambda: state_of(run).ended)
    assert (state_of(run).state, state_of(run).code) == ("FAILED", 137)


def test_an_image_without_python_fails_with_its_reason(cli: Commands, command: list[str]) -> None:
    done = cli(*command, "run.name=no-python", "cluster.python=python9", code=255)
    assert "python9" in done.stdout + done.stderr


def test_the_doctor_says_inside_what_works(cli: Commands, image: Path) -> None:
    binds = [word for bind in [*MOUNTS, str(ROOT), str(cli.folder)] for word in ("--bind", bind)]
    words = ["apptainer", "exec", *binds, "--pwd", str(cli.folder), str(image), sys.executable, "-m", "nano3", "doctor"]
    done = subprocess.run(words, env=cli.env, capture_output=True, text=True, check=True)
    assert re.search(r"^backend=transformers +torch ", done.stdout, re.MULTILINE), done.stdout + done.stderr
    assert re.search(r"^backend=megatron +\S", done.stdout, re.MULTILINE)
