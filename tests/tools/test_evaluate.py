"""nano3 eval: what is chosen, where it runs, what is recorded."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.submit import Batch
from nano3.config.cluster import ClusterConfig
from nano3.tools import evaluate, report
from nano3.tools.evaluate import cluster_config, make_job
from nano3.training import evaluation
from nano3.training.evaluation import (
    EvalRequest,
    choose_tasks,
    find_exports,
    make_request,
    read_results,
    result_rows,
    results_missing,
    run_lm_eval,
    unknown_tasks,
)
from nano3.training.run.evals import add_eval, read_evals
from nano3.training.run.exports import INFO, ExportInfo
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import write_json
from nano3.utils.provenance import is_installed
from nano3.utils.records import write_record

ROOT = Path(__file__).parents[2]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: words.jsonl
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list:
  - metric: acc
"""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with the exports of iterations 4 and 8; they hold no model."""
    run = tmp_path / "run"
    for iteration in (4, 8):
        export(run / "exports" / f"iter_{iteration:07d}", run, iteration)
    (run / "config.yaml").write_text("run: {env: {container: img.sqsh}}\n")
    return run


def export(folder: Path, run: Path, iteration: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_record(folder / INFO, ExportInfo(str(run), iteration, "f" * 64))
    return folder


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name in ("first_word", "second_word"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name))
    (folder / "_common.yaml").write_text("output_type: multiple_choice\n")
    (folder / "all.yaml").write_text("group: words\ntask:\n  - first_word\n  - second_word\n")
    rows = [{"text": "import os\nimport", "choices": [" sys", " the"], "answer": 0}] * 3
    (folder / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_tasks_of_a_folder(tasks: Path, tmp_path: Path) -> None:
    assert choose_tasks([str(tasks)]) == (["first_word", "second_word"], tasks)
    assert choose_tasks([str(tasks), "second_word,words"]) == (["second_word", "words"], tasks)
    assert choose_tasks(["arc_easy", "piqa"]) == (["arc_easy", "piqa"], None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no YAML file in it names a task"):
        choose_tasks([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="give one folder, not 2"):
        choose_tasks([str(tasks), str(tmp_path / "empty")])
    with pytest.raises(UserError, match="no such folder"):
        choose_tasks([str(tmp_path / "missing")])


def test_too_many_tasks_are_refused(tmp_path: Path) -> None:
    """Their names are one word of lm-eval's command line."""
    lines = [f"task: a_task_of_a_large_suite_{number}" for number in range(5000)]
    (tmp_path / "many.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"5,000 tasks are too many .* --tasks FOLDER --tasks GROUP"):
        choose_tasks([str(tmp_path)])
    assert choose_tasks([str(tmp_path), "a_group"]) == (["a_group"], tmp_path)
    (tmp_path / "many.yaml").write_text("\n".join(lines[:2500]))
    names, _ = choose_tasks([str(tmp_path)])
    subprocess.run([sys.executable, "-c", "", ",".join(names), json.dumps(names)], check=True)


def test_unknown_tasks_are_named(tasks: Path) -> None:
    log = 'INFO: x\n    raise ValueError(f"Tasks not found: {missing}")\nValueError: Tasks not found: frist_word, zzz\n'
    near, far = unknown_tasks(log, str(tasks))
    assert near.startswith(f"--tasks frist_word: neither {tasks} nor lm-eval has a task or group of this name.")
    assert near.endswith("Did you mean 'first_word'?") and far.endswith("`lm-eval ls tasks` lists those of lm-eval.")
    assert unknown_tasks("ValueError: something else", str(tasks)) == []


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("lm_eval"), reason="lm-eval is not installed")
def test_lm_eval_names_unknown_tasks(run_dir: Path, tasks: Path) -> None:
    """lm-eval looks for the tasks before it loads a model."""
    request = make_request(run_dir / "exports" / "iter_0000004", ["frist_word", "arc_esay"], tasks, [])
    with pytest.raises(UserError) as refused:
        run_lm_eval(request)
    assert [problem.rpartition(" ")[2] for problem in refused.value.problems] == ["'first_word'?", "'arc_easy'?"]


def test_which_export(run_dir: Path, tmp_path: Path) -> None:
    four, eight = (run_dir / "exports" / f"iter_{i:07d}" for i in (4, 8))
    assert find_exports(run_dir, None, every=False) == [eight]
    assert find_exports(run_dir, 4, every=False) == [four]
    assert find_exports(run_dir, None, every=True) == [four, eight]
    assert find_exports(four, None, every=False) == [four]
    with pytest.raises(
        UserError, match=rf"nano3 export {run_dir} --iteration 5 --output {run_dir}/exports/iter_0000005"
    ):
        find_exports(run_dir, 5, every=False)
    hf = export(run_dir / "hf", run_dir, 12)
    assert find_exports(run_dir, None, every=False) == [hf]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="has no exports"):
        find_exports(tmp_path / "other", None, every=True)


def test_results_belong_to_the_run_of_the_export(run_dir: Path, tmp_path: Path) -> None:
    """Also after the run was moved, and of an export written elsewhere."""
    inside = make_request(run_dir / "exports" / "iter_0000004", ["a"], None, [])
    assert (inside.run_dir, inside.folder) == (str(run_dir), str(run_dir / "evals" / "iter_0000004"))
    outside = make_request(export(tmp_path / "hf", run_dir, 4), ["a"], None, [])
    assert outside.run_dir == str(run_dir)
    moved = run_dir.rename(tmp_path / "moved")
    assert make_request(moved / "exports" / "iter_0000004", ["a"], None, []).run_dir == str(moved)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    alone = make_request(foreign, ["a"], None, [])
    assert (alone.run_dir, alone.info, alone.folder) == (None, None, str(foreign / "evals"))
    assert EvalRequest.from_text(outside.to_text()) == outside and EvalRequest.from_text(alone.to_text()) == alone


def test_all_leaves_out_what_has_results(run_dir: Path) -> None:
    request = make_request(run_dir / "exports" / "iter_0000004", ["a", "b"], None, [])
    add_eval(run_dir, {"iteration": 4, "eval/a/acc": 0.5})
    add_eval(run_dir, {"iteration": 8, "eval/b/acc": 0.5})
    assert results_missing(request)
    add_eval(run_dir, {"iteration": 4, "eval/b/acc": 0.5})
    assert not results_missing(request)


def test_values_of_a_result_file(tmp_path: Path) -> None:
    metrics = {
        "alias": "a", "acc,none": 0.5, "acc_stderr,none": 0.1, "f1,strict": 1, "f1_stderr,strict": "N/A",
        "sample_len": 3, "bad,none": float("nan"),
    }  # fmt: skip
    write_json(tmp_path / "results.json", {"results": {"a": metrics}})
    values = read_results(tmp_path / "results.json")
    assert values == {"eval/a/acc": 0.5, "eval/a/acc_stderr": 0.1, "eval/a/f1,strict": 1}
    lines = [{"iteration": 4, **values}, {"iteration": 8, "eval/a/acc": 0.75}]
    assert result_rows(lines) == [["a", "acc", "0.7500", "", "8"], ["a", "f1,strict", "1.0000", "", "4"]]
    write_json(tmp_path / "results.json", {"results": {"a": {"alias": "a"}}})
    with pytest.raises(Failure, match="measured nothing"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_results_of_an_export_that_is_gone_are_not_recorded(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    four = run_dir / "exports" / "iter_0000004"
    request = make_request(four, ["a"], None, [])

    def meanwhile(request: EvalRequest) -> Path:
        shutil.rmtree(four)
        if change == "replaced":
            export(four, run_dir, 5)
        write_json(tmp_path / "results.json", {"results": {"a": {"acc,none": 0.5}}})
        return tmp_path / "results.json"

    monkeypatch.setattr(evaluation, "run_lm_eval", meanwhile)
    with pytest.raises(Failure, match=f"{four} has been replaced or removed since"):
        evaluation.main(request.to_text())
    assert read_evals(run_dir) == []


def test_a_job_of_one_process_with_one_gpu_at_most(run_dir: Path) -> None:
    assert cluster_config([]) == ClusterConfig()
    profile = cluster_config(["cluster=slurm", "cluster.time=1:00:00", "cluster.sbatch_args=[--exclusive]"])
    assert (profile.kind, profile.nodes, profile.ntasks_per_node, profile.gpus_per_node) == ("slurm", 1, 1, 1)
    assert (profile.time, profile.sbatch_args) == ("1:00:00", ["--exclusive"])
    assert cluster_config(["cluster=slurm", "cluster.gpus_per_node=0"]).gpus_per_node == 0
    with pytest.raises(UserError) as refused:
        cluster_config(["cluster=slum", "cluster.tme=1", "train=phase1", "x"])
    assert len(refused.value.problems) == 4, refused.value.problems
    with pytest.raises(UserError, match="nodes"):
        cluster_config(["cluster.nodes=many"])


def test_it_does_not_take_the_run_s_folder(run_dir: Path, srun_on_path: None) -> None:
    request = make_request(run_dir / "exports" / "iter_0000004", ["a"], None, [])
    if not is_installed("lm_eval"):
        pytest.skip("lm-eval is not installed")
    job = make_job(request, cluster_config(["cluster=slurm", "cluster.container_runtime=none"]))
    assert job.run_dir == run_dir / "evals" / "iter_0000004" and job.container == "img.sqsh"
    assert job.folders == (request.export, str(run_dir))
    script = Batch([job], job.name, job.run_dir / "slurm").script_text()
    assert "#SBATCH --nodes=1\n" in script and "#SBATCH --gpus-per-node=1\n" in script
    assert "#SBATCH --ntasks-per-node=1\n" in script and "eval-run-iter_0000004" in script


def arguments(**values: Any) -> argparse.Namespace:
    defaults = {"cluster": [], "iteration": None, "all": False, "limit": None, "fewshot": None, "device": "cpu"}
    return argparse.Namespace(**{**defaults, "batch_size": 4, **values})


@pytest.mark.slow
@pytest.mark.skipif(not is_installed("lm_eval"), reason="lm-eval is not installed")
def test_a_failure_shows_the_end_of_the_log(run_dir: Path, tasks: Path) -> None:
    (tasks / "words.jsonl").unlink()
    with pytest.raises(Failure, match=r"end of .*lm_eval\.log"):
        evaluate.run(arguments(run=str(run_dir), tasks=[str(tasks)]))
    assert read_evals(run_dir) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not is_installed("lm_eval"), reason="lm-eval is not installed")
def test_a_run_with_exports_is_evaluated_and_reported(tmp_path: Path, tasks: Path) -> None:
    """On the quickstart's model: train with exports, evaluate all of them, show the results."""

    def nano3(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT), "NANO3_HOME": str(tmp_path / "home")},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    nano3("nano3.data_prep", "data_blend=sample", "output_dir=data", "sample=200")
    words = "train.train_iters=4 checkpoint.save_interval=2 checkpoint.keep_last=1 checkpoint.export_every=1"
    warm = "scheduler.lr_warmup_iters=1 scheduler.lr_wsd_decay_iters=1 train.eval_interval=0 logger.sample_prompts=[]"
    nano3("nano3.pretrain", "+experiment=quickstart", "run.name=q", "run.data=data", *words.split(), *warm.split())
    run_dir = tmp_path / "output" / "nano3" / "runs" / "q"
    out = nano3("nano3", "eval", "q", "--tasks", str(tasks), "--all", "--device", "cpu")
    assert "recorded at iteration 2 of" in out and "recorded at iteration 4 of" in out
    lines = read_evals(run_dir)
    assert [line["iteration"] for line in lines] == [2, 4]
    assert all(0 <= line["eval/second_word/acc"] <= 1 for line in lines)
    assert "All exports have results" in nano3("nano3", "eval", "q", "--tasks", str(tasks), "--all")
    page = report.make_page({"q": run_dir}, "command")
    assert "<h2>Evaluations</h2>" in page and "<td>second_word</td><td>acc</td>" in page
    shutil.rmtree(run_dir / "exports")
    with pytest.raises(UserError, match="has no exports"):
        find_exports(run_dir, None, every=False)
