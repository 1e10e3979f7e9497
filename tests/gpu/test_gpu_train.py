"""Training on a real GPU by the user's command: learning, stopping, resuming, phases, saving, ranks."""

import signal
from pathlib import Path

import pytest
from gpu_runs import BOTH, DENSE, LAYOUTS, MARKS, MODEL, ROOT, SHORT, SPIKE, Runs, gpus

from nano3.artifacts.store import Artifact
from nano3.training.run.checkpoints import complete_checkpoints, read_checkpoint_info
from nano3.utils.files import read_json

pytestmark = MARKS
# Megatron's default kernels are not deterministic, and near the maximum rate one run may have a spike (a gradient norm
# above 1) that another has not. Before it, and in the few iterations after a checkpoint, two runs differ by at most
# 0.0002 (four pairs on H100s); afterwards by up to 0.075.
SAME, NOISE = 0.003, 0.15


def test_it_learns_and_leaves_everything_that_it_was(runs: Runs, undisturbed: Path) -> None:
    losses = runs.losses("undisturbed")
    assert sorted(losses) == list(range(5, 41, 5))
    assert losses[40] < 5.5 < losses[5]
    assert [p.name for p in complete_checkpoints(undisturbed / "checkpoints")] == ["iter_0000030", "iter_0000040"]
    assert runs.checkpoints("undisturbed") == ["iter_0000030", "iter_0000040"]
    start = read_json(undisturbed / "starts/0001/start.json")
    assert "megatron-bridge" in start["packages"]
    assert read_json(undisturbed / "finished.json")["iteration"] == 40
    assert read_json(undisturbed / "progress.json")["iteration"] == 40
    versions = sorted((runs.folder / "home/ModelArtifact-pretrain").glob("v*.json"))
    found = [Artifact(**{k: v for k, v in read_json(path).items() if k != "checksum"}) for path in versions]
    mine = [a for a in found if a.metadata["run"] == "undisturbed"]
    assert [a.metadata["iteration"] for a in mine] == [10, 20, 30, 40]
    assert all(a.inputs and a.inputs[0].startswith("DataBlendsArtifact-pretrain:v") for a in mine)


def test_killed_stopped_and_resumed_it_reaches_the_same_losses(runs: Runs, undisturbed: Path) -> None:
    process = runs.start("disturbed")
    runs.wait_for("disturbed", 15, process)
    runs.kill(process)
    killed = runs.losses("disturbed")
    half = runs.dir("disturbed") / "checkpoints" / "iter_0000020"
    if not half.exists():  # as after a killed save: recorded in begun.json, without a mark
        half.mkdir()
        (half / "__0_0.distcp").write_bytes(b"half")
        begun = runs.dir("disturbed") / "checkpoints" / "begun.json"
        begun.write_text('{"iterations": [10, 20]}')
    process = runs.start("disturbed")
    runs.wait_for("disturbed", 25, process)
    process.send_signal(signal.SIGUSR2)
    text = runs.finish(process, code=75)
    assert "resuming from iteration 10 of" in text
    assert f"removing {half}" in text
    assert runs.losses("disturbed")[15] == pytest.approx(killed[15], abs=SAME)
    assert "resuming from iteration" in runs.train("disturbed")
    assert "nothing to do" in runs.train("disturbed")
    first, second = runs.losses("disturbed"), runs.losses("undisturbed")
    assert first == pytest.approx(second, abs=NOISE)


def test_its_documents_are_told_and_it_runs_again(runs: Runs, undisturbed: Path) -> None:
    text = runs("-m", "nano3", "trace", "undisturbed", "--iteration", "12")
    assert "iteration 12, samples 352 to 383 of the run" in text
    assert all(f"{name}." in text for name in ("docs", "code", "math"))
    page = runs.folder / "report.html"
    runs("-m", "nano3", "report", "undisturbed", "--output", str(page))
    assert "gradient norm" in page.read_text()
    runs("-m", "nano3", "rerun", "undisturbed", "run.name=again", "train.exit_iteration=20", "train.eval_interval=0")
    first, again = runs.losses("undisturbed"), runs.losses("again")
    assert again[5] == pytest.approx(first[5], abs=SAME)
    assert again == pytest.approx({i: first[i] for i in (5, 10, 15, 20)}, abs=NOISE)


def test_a_run_shorter_than_its_log_interval_succeeds(runs: Runs) -> None:
    text = runs.train("short", *SHORT, "logger.log_interval=10")
    assert "Traceback" not in text
    assert read_json(runs.dir("short") / "finished.json")["iteration"] == 3


def test_a_warming_run_saves_nothing_but_kernels(runs: Runs, tmp_path: Path) -> None:
    words = ["train.exit_iteration=2", "checkpoint.save_interval=0", "train.eval_interval=0"]
    text = runs.train("warm", *words, NANO3_CACHE=str(tmp_path / "cache"))
    assert "no checkpoint was saved" in text
    assert runs.checkpoints("warm") == []
    (kept,) = (tmp_path / "cache" / "kernels").iterdir()
    assert kept.name.startswith("nvidia-") and any((kept / "triton").iterdir())


def test_a_diverging_run_says_so(runs: Runs) -> None:
    words = ["optimizer.lr=1e30", "optimizer.clip_grad=0", "checkpoint.save_interval=0"]
    text = runs.train("diverges", *words, code=1)
    assert "error: Training diverged at iteration" in text
    assert "Traceback" not in text


def test_a_full_gpu_is_told_in_one_message(runs: Runs) -> None:
    """A fiftieth of the GPU's memory stands for a smaller GPU, so that concurrent tests have enough."""
    words = ["train.micro_batch_size=32", "checkpoint.save_interval=0"]
    text = runs.train("full", *words, code=1, PYTORCH_CUDA_ALLOC_CONF="per_process_memory_fraction:0.02")
    assert "error: The GPU is full in iteration 1: Tried to allocate" in text
    assert "a smaller train.micro_batch_size (now 32)" in text
    assert "Traceback" not in text


def test_saves_in_the_foreground_are_marked_and_old_ones_go(runs: Runs) -> None:
    """By default Megatron-Bridge saves in the background, as in the undisturbed run."""
    runs.train("foreground", "+megatron.checkpoint.async_save=false")
    folder = runs.dir("foreground") / "checkpoints"
    kept = ["iter_0000030", "iter_0000040"]
    assert [p.name for p in complete_checkpoints(folder)] == runs.checkpoints("foreground") == kept
    assert "nothing to do" in runs.train("foreground", "+megatron.checkpoint.async_save=false")


def test_a_new_phase_takes_the_weights_alone(runs: Runs, undisturbed: Path) -> None:
    words = [f"checkpoint.load={undisturbed}/checkpoints", "train.seq_length=512", "train.global_batch_size=16"]
    words += ["train.train_iters=20", "optimizer.lr=1e-4", "scheduler.lr_wsd_decay_iters=5", "train.seed=5"]
    text = runs.train("phase", *words, "train.exit_iteration=10")
    assert f"new phase: iteration 0 with the weights of {undisturbed}/checkpoints/iter_0000040" in text
    assert "resuming from iteration 10 of" in runs.train("phase", *words)
    losses = runs.losses("phase")
    assert sorted(losses) == [5, 10, 15, 20]
    assert losses[5] < 5.5, "a fresh start has 7.3 there"


def test_a_folder_of_plain_megatron_bridge_is_gone_on_from(runs: Runs, undisturbed: Path, tmp_path: Path) -> None:
    foreign = runs.without_marks("undisturbed", tmp_path / "plain")
    before = sorted(foreign.glob("iter_*"))
    words = [f"checkpoint.save={foreign}", "train.train_iters=70", "checkpoint.keep_last=1"]
    text = runs.train("foreign", *words)
    assert f"resuming from iteration 40 of {foreign}" in text
    assert "holds checkpoints that nano3 did not write for this run" in text
    assert set(before) < set(foreign.glob("iter_*"))
    assert [p.name for p in complete_checkpoints(foreign)][-1] == "iter_0000070"


def test_it_starts_from_hugging_face_weights(runs: Runs, undisturbed: Path) -> None:
    """The first losses from an exported model equal the last losses of its run."""
    hf = runs.folder / "hf_start"
    runs("-m", "nano3", "export", "undisturbed", "--output", str(hf))
    words = [f"+megatron.checkpoint.pretrained_checkpoint={hf}", "optimizer.lr=1e-5", "optimizer.min_lr=1e-6"]
    text = runs.train("from_hf", *words, "train.train_iters=20", "logger.log_interval=1")
    assert f"fresh start from the weights of {hf}" in text
    assert runs.losses("from_hf")[1] == pytest.approx(runs.losses("undisturbed")[40], abs=0.4)


def test_a_model_that_was_never_trained_is_imported_too(runs: Runs) -> None:
    fresh = runs.folder / "fresh"
    runs(str(ROOT / "benchmarks/gpu/fresh.py"), str(ROOT / MODEL), str(runs.folder / "data"), str(fresh))
    words = [f"+megatron.checkpoint.pretrained_checkpoint={fresh}", "logger.log_interval=1"]
    runs.train("from_fresh", *SHORT, *words)
    assert runs.losses("from_fresh")[1] == pytest.approx(8.3, abs=0.3)


def test_the_settings_for_one_gpu_train_and_save(runs: Runs) -> None:
    """train=one_hopper does not fetch the gradient norm of every step, which is logged nevertheless."""
    words = ["train=one_hopper", *SHORT, "train.train_iters=12", "checkpoint.save_interval=6", "logger.log_interval=2"]
    runs.train("one_hopper", *words)
    steps = runs.steps("one_hopper")
    assert sorted(steps) == [2, 4, 6, 8, 10, 12]
    assert all(0 < line["grad_norm"] < 100 for line in steps.values())
    assert len(complete_checkpoints(runs.dir("one_hopper") / "checkpoints")) == 2


def test_the_recipe_of_tiny_trains_without_network(runs: Runs) -> None:
    """Qwen3-8B's recipe at a small size reads the hub when called, and gets the file that nano3 ships."""
    runs.train("qwen", *DENSE, HF_HUB_OFFLINE="0", HF_HOME=str(runs.folder / "no_cache"))
    losses = runs.losses("qwen")
    assert losses[40] < losses[5] - 0.5
    text = runs("-m", "nano3", "export", "qwen", "--output", "hf_qwen")
    assert "from_pretrained" in text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_ranks_equal_one(runs: Runs, first_weights: Path, followed: Path, layout: str) -> None:
    """Start from the same weights, because expert-parallel ranks draw other initial weights than one rank."""
    if gpus() < 2:
        pytest.skip("one GPU")
    name = f"two_{layout.replace(' ', '_')}"
    text = runs.follow(name, first_weights, *LAYOUTS[layout], **BOTH)
    assert text.count("fresh start") == 1
    two, one = runs.steps(name), runs.steps(followed.name)
    assert sorted(two) == sorted(one) == list(range(1, 21))
    for i in range(1, SPIKE):
        assert two[i]["loss"] == pytest.approx(one[i]["loss"], abs=0.01), i
        assert two[i]["grad_norm"] == pytest.approx(one[i]["grad_norm"], rel=0.03), i
    counts = {
        run: read_checkpoint_info(runs.dir(run) / "checkpoints/iter_0000020").parameters
        for run in (name, followed.name)
    }
    assert counts[name] == counts[followed.name]
    text = runs.follow(name, first_weights, *LAYOUTS[layout], "train.exit_iteration=22", **BOTH)
    assert text.count("resuming from iteration 20") == 1
    assert sorted(runs.steps(name)) == list(range(1, 23))


def test_two_ranks_are_stopped_together_and_one_goes_on(runs: Runs) -> None:
    """The signal goes to the launcher, the ranks agree on the iteration, and one rank can resume."""
    if gpus() < 2:
        pytest.skip("one GPU")
    words = ["train.train_iters=400", "train.eval_interval=0", "checkpoint.save_interval=1000"]
    process = runs.start("stopped", *words, "cluster.nproc_per_node=2", **BOTH)
    runs.wait_for("stopped", 20, process)
    process.send_signal(signal.SIGTERM)
    runs.finish(process, code=75)
    (saved,) = complete_checkpoints(runs.dir("stopped") / "checkpoints")
    iteration = int(saved.name.removeprefix("iter_"))
    assert 20 <= iteration < 400
    text = runs.train("stopped", *words, f"train.exit_iteration={iteration + 5}")
    assert f"resuming from iteration {iteration} of" in text
