"""Training on a real Slurm: the same losses as local runs through requeues, kills, sweeps and dependent jobs."""

import json
import subprocess
from pathlib import Path

import psutil
import pytest
from commands import SMALL, Commands, losses
from launch_helpers import eventually, last_id, log_of, state_of
from tracing import has_stack

from launch import job_records
from nano3.training.run.metrics import read_metrics
from nano3.utils.provenance import is_installed

pytestmark = pytest.mark.slurm
SLURM = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.poll_s=0.5", "cluster.time=10", "cluster.mem=4G"]
SLURM += ["cluster.ntasks_per_node=1"]


@pytest.fixture(autouse=True)
def _cluster(slurm_conf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_conf)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory, slurm_conf: str) -> Commands:
    commands = Commands(tmp_path_factory.mktemp("on slurm"))
    commands.env["SLURM_CONF"] = slurm_conf
    return commands


@pytest.fixture(scope="module")
def data(cli: Commands) -> Path:
    """Data prepared by three tasks of a job array."""
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=data", *SLURM, "cluster.tasks=3")
    return cli.folder / "data"


@pytest.fixture(scope="module")
def undisturbed(cli: Commands, data: Path) -> dict[int, float]:
    """The losses of one local rank."""
    cli("-m", "nano3.pretrain", *SMALL, "run.name=local")
    return losses(cli.run_dir("local"))


@pytest.fixture(scope="module")
def prepared_here(cli: Commands) -> dict[str, bytes]:
    """The files prepared on one machine."""
    cli("-m", "nano3.data_prep", "data_blend=sample", "output_dir=here")
    return prepared(cli.folder / "here")


def prepared(folder: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.glob("*/data_*")}
    assert len(files) == 24
    return files


def test_an_array_prepares_the_bytes_of_one_machine(data: Path, prepared_here: dict[str, bytes]) -> None:
    assert prepared(data) == prepared_here


def test_a_lost_task_is_repeated_alone_to_the_same_bytes(cli: Commands, prepared_here: dict[str, bytes]) -> None:
    words = ["data_blend=sample", "output_dir=lost", "job_dir=jobs", *SLURM, "cluster.tasks=3"]
    cli("-m", "nano3.data_prep", *words, "cluster.mode=detached", "cluster.sbatch_args=[--hold]")
    folder = cli.folder / "jobs" / "prep-sample"
    array, final = job_records.read_records(folder)[-1].ids
    subprocess.run(["scancel", f"{array}_1"], env=cli.env, check=True)
    subprocess.run(["scontrol", "release", array, final], env=cli.env, check=True)
    eventually(lambda: (cli.folder / "lost" / "manifest.json").exists(), seconds=240)
    log = log_of(folder)
    assert log.count("did not finish; repeating it here") == 1 and "task 1 did not finish" in log
    assert prepared(cli.folder / "lost") == prepared_here


def test_two_nodes_of_two_ranks_have_the_losses_of_one_rank(cli: Commands, undisturbed: dict[int, float]) -> None:
    words = [*SMALL, *SLURM, "run.name=wide", "train.micro_batch_size=1"]
    done = cli("-m", "nano3.pretrain", *words, "cluster.nodes=2", "cluster.ntasks_per_node=2")
    assert done.stdout.count("fresh start") == 1
    assert "4 rank(s)" in done.stdout
    assert losses(cli.run_dir("wide")) == pytest.approx(undisturbed, abs=1e-4)


# Long enough that something can happen to it.
LONGER = ["train.train_iters=400", "train.exit_iteration=150", "train.eval_interval=0", "checkpoint.save_interval=10"]


def trains(run: Path) -> bool:
    """Return whether the run has written some losses and saved."""
    return (run / "progress.json").exists() and len(losses(run)) > 5


@pytest.fixture(scope="module")
def uncut(cli: Commands, data: Path) -> dict[int, float]:
    """The losses of one local rank over the longer run."""
    whole = cli("-m", "nano3.pretrain", *SMALL, *LONGER, "run.name=uncut")
    assert "stopped at iteration 150" in whole.stdout
    return losses(cli.run_dir("uncut"))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["scancel --signal=USR2", "scontrol requeue"])
def test_a_requeued_run_resumes_to_the_same_losses(cli: Commands, uncut: dict[int, float], how: str) -> None:
    """One run is asked to save first; the other is requeued by Slurm itself, as after a preemption."""
    name = how.split()[0]
    cli("-m", "nano3.pretrain", *SMALL, *LONGER, *SLURM, f"run.name={name}", "cluster.mode=detached")
    run = cli.run_dir(name)
    eventually(lambda: trains(run))
    subprocess.run([*how.split(), last_id(run)], env=cli.env, check=True)
    eventually(lambda: (run / "finished.json").exists(), seconds=240)
    assert "resuming from iteration" in log_of(run)
    assert losses(run) == uncut
    assert [p.name for p in (run / "starts").iterdir()] == ["0001"]


@pytest.mark.timeout(600)
def test_a_run_with_a_killed_rank_restarts_to_the_same_losses(cli: Commands, data: Path) -> None:
    words = [*SMALL, *LONGER, "train.micro_batch_size=1"]
    cli("-m", "nano3.pretrain", *words, "run.name=two-here", "cluster.nproc_per_node=2")
    command = ["-m", "nano3.pretrain", *words, *SLURM, "run.name=two", "cluster.ntasks_per_node=2"]
    cli(*command, "cluster.mode=detached")
    run = cli.run_dir("two")
    eventually(lambda: trains(run))
    next(p for p in psutil.process_iter() if is_rank(p, "1", run)).kill()
    eventually(lambda: (run / "finished.json").exists(), seconds=240)
    eventually(lambda: state_of(run).ended)
    assert (state_of(run).state, state_of(run).restarts) == ("COMPLETED", 1)
    log = log_of(run)
    assert "launch: rank 1 on node1 failed with exit code 137" in log and "resuming from iteration" in log
    assert losses(run) == losses(cli.run_dir("two-here"))


@pytest.mark.timeout(600)
def test_a_hung_run_is_requeued_to_the_same_losses(cli: Commands, data: Path) -> None:
    """SIGSTOP of one rank: the job ends both ranks, names the stopped one, and resumes by itself."""
    words = [*SMALL, *LONGER, "train.micro_batch_size=1", "train.hang_timeout_s=4"]
    cli("-m", "nano3.pretrain", *words, "run.name=hang-here", "cluster.nproc_per_node=2")
    command = ["-m", "nano3.pretrain", *words, *SLURM, "run.name=hang", "cluster.ntasks_per_node=2"]
    cli(*command, "cluster.mode=detached")
    run = cli.run_dir("hang")
    eventually(lambda: trains(run))
    victim = next(p for p in psutil.process_iter() if is_rank(p, "1", run))
    victim.suspend()
    eventually(lambda: (run / "finished.json").exists(), seconds=300)
    log = log_of(run)
    assert "hang: no progress for" in log and f"(process {victim.pid}) is behind and does not answer" in log
    assert has_stack((run / "hang" / "rank_1.txt").read_text(), "training/hf/loop.py:")
    assert "resuming from iteration" in log
    assert losses(run) == losses(cli.run_dir("hang-here"))


def is_rank(process: psutil.Process, rank: str, run: Path) -> bool:
    try:
        words = process.cmdline()
        return "launch.rank" in words and str(run / "config.yaml") in words and process.environ()["RANK"] == rank
    except (psutil.Error, KeyError):
        return False


def test_a_sweep_is_one_array(cli: Commands, undisturbed: dict[int, float]) -> None:
    cli("-m", "nano3.pretrain", "-m", *SMALL, *SLURM, "run.name=sweep", "optimizer.lr=1e-3,3e-3")
    points = sorted(cli.run_dir("sweep").glob("*/finished.json"))
    assert len(points) == 2
    assert any(losses(p.parent) == undisturbed for p in points)


def test_prepare_then_train_as_dependent_jobs(cli: Commands, undisturbed: dict[int, float]) -> None:
    prepare = ["-m", "nano3.data_prep", "data_blend=sample", "output_dir=chained", *SLURM, "cluster.tasks=2"]
    cli(*prepare, "--then", *SMALL, *SLURM, "run.name=chained")
    assert losses(cli.run_dir("chained")) == undisturbed


TASK = """\
task: next_word
dataset_path: json
dataset_kwargs: {data_files: next_word.jsonl}
test_split: train
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list: [{metric: acc}]
"""


@pytest.mark.skipif(not is_installed("lm_eval"), reason="lm-eval is not installed")
def test_tasks_are_measured_by_a_job_of_their_own(cli: Commands, data: Path) -> None:
    """While the run trains, with none of its GPUs; the results are at their iteration."""
    tasks = cli.folder / "tasks"
    tasks.mkdir()
    (tasks / "next_word.yaml").write_text(TASK)
    rows = [{"text": "import os\nimport", "choices": [" sys", " the"], "answer": 0}] * 2
    (tasks / "next_word.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [*SMALL, *SLURM, "run.name=measured", "checkpoint.export_every=1", "cluster.mode=detached"]
    cli("-m", "nano3.pretrain", *words, "train.train_iters=20000", "checkpoint.save_interval=10")
    run = cli.run_dir("measured")
    eventually(lambda: len(list(run.glob("exports/iter_*/config.json"))) > 0, seconds=120)
    own = ["cluster=slurm", "cluster.gpus_per_node=0", "cluster.mem=4G", "cluster.time=10", "cluster.poll_s=0.5"]
    out = cli("-m", "nano3", "eval", "measured", *own, "--tasks", "tasks", "--device", "cpu").stdout
    (line,) = [json.loads(text) for text in (run / "evals.jsonl").read_text().splitlines()]
    assert f"recorded at iteration {line['iteration']} of" in out
    assert line["iteration"] % 10 == 0 and 0 <= line["eval/next_word/acc"] <= 1
    assert state_of(run).state == "RUNNING"
    taken = {"iteration": line["iteration"], "eval/next_word/acc": line["eval/next_word/acc"]}
    eventually(lambda: any(taken.items() <= metrics.items() for metrics in read_metrics(run)), seconds=60)
    (folder,) = run.glob("evals/iter_*")
    assert last_id(folder) != last_id(run) and f"iter_{line['iteration']:07d}" == folder.name
    cli("-m", "nano3", "cancel", "measured")
    cli("-m", "nano3", "report", "measured")
    assert "<td>next_word</td><td>acc</td>" in (run / "report.html").read_text()


def test_the_order_of_samples_is_built_by_a_job_before_the_run(cli: Commands, undisturbed: dict[int, float]) -> None:
    """The run waits for the job, and has the losses of a run that built its own."""
    words = [*SMALL, *SLURM, "run.name=ahead"]
    cli("-m", "nano3", "index", *words, "cluster.nodes=2", "cluster.mode=detached", "cluster.begin=now+3")
    job = cli.run_dir("ahead") / "index_job"
    cli("-m", "nano3.pretrain", *words, f"cluster.dependency={job}")
    assert losses(cli.run_dir("ahead")) == undisturbed
    assert "built the order of 24 samples" in log_of(job)
    times = {path: path.stat().st_mtime for path in cli.run_dir("ahead").glob("index_cache/*/*-train-*")}
    (began,) = (line["time"] for line in read_metrics(cli.run_dir("ahead")) if "start" in line)
    assert times and max(times.values()) < began
