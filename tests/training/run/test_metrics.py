"""metrics.jsonl, TensorBoard, Weights & Biases, and what is made of them: plot, summary, samples."""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from training_processes import Child, tiny_config

from nano3.training.hf.generate import Generation, exported_model, generate
from nano3.training.reports.plot import plot_losses
from nano3.training.reports.summary import print_summary, summarize
from nano3.training.run.metrics import FILE, WANDB_SENT, Metrics, MetricsFile, read_metrics, wandb_run_id
from nano3.utils.errors import Failure, UserError
from nano3.utils.provenance import install_command


def write(run_dir: Path, rank: int, start: int, iterations: list[int]) -> None:
    """What a backend does: open at `start`, log, close."""
    metrics = Metrics(run_dir, rank, start, train_iters=10)
    for i in iterations:
        metrics.log(iteration=i, consumed_tokens=i * 10, loss=1 / i, lr=0.1, grad_norm=0.5, tokens_per_s=5.0)
        if i % 2 == 0:
            metrics.log_valid(i, {"docs": 1.0, "math": 3.0}, {"docs": 0.5, "math": 0.5})
    metrics.close()


def iterations(run_dir: Path, key: str = "loss") -> list[int]:
    return [line["iteration"] for line in read_metrics(run_dir) if key in line]


def test_the_loss_of_the_blend_is_the_mean_of_its_datasets_as_they_are_weighted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics(tmp_path, 0, 0, train_iters=10)
    metrics.log_valid(4, {"docs": 1.0, "math": 3.0}, {"docs": 0.25, "math": 0.75})
    metrics.close()
    assert [line["valid_loss"] for line in read_metrics(tmp_path) if "valid_loss" in line] == [2.5]
    assert "validation at iteration 4: loss 2.5000  (docs 1.000  math 3.000)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("start", "expected"), [(3, [1, 2, 3, 4]), (5, [1, 2, 3, 4, 5]), (0, [])], ids=["3", "5", "fresh"]
)
def test_lines_beyond_the_start_are_dropped(tmp_path: Path, start: int, expected: list[int]) -> None:
    """Every iteration stands once, whatever the process wrote before it was killed, a cut line included."""
    Child(write, (tmp_path, 0, 0, [1, 2, 3, 4, 5]), tmp_path / "log.txt").result()
    with (tmp_path / FILE).open("a") as f:
        f.write('{"iteration": 6, "lo')
    again = [i for i in expected if i > start]
    Child(write, (tmp_path, 0, start, again), tmp_path / "log.txt").result()
    assert iterations(tmp_path) == expected
    assert iterations(tmp_path, "valid_loss") == [i for i in expected if i % 2 == 0]
    assert (tmp_path / FILE).read_text().endswith("\n") or not expected


def test_a_fresh_start_keeps_the_metrics_of_the_training_before_it(tmp_path: Path) -> None:
    """As one that saves elsewhere, or whose checkpoints were removed."""
    for number, end in enumerate((2, 4, 6), 1):
        child = Child(write, (tmp_path, 0, 0, list(range(1, end + 1))), tmp_path / "log.txt")
        child.result()
        assert ("is kept as" in child.output()) == (number > 1)
    assert f"{FILE} of an earlier training in this folder is kept as metrics.2.jsonl" in child.output()
    ends = {p.name: json.loads(p.read_text().splitlines()[-1])["iteration"] for p in tmp_path.glob("metrics*")}
    assert ends == {"metrics.1.jsonl": 2, "metrics.2.jsonl": 4, FILE: 6}


def scalars(run_dir: Path, tag: str) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run_dir / "tensorboard"))
    board.Reload()
    return [event.step for event in board.Scalars(tag)]


def test_tensorboard_shows_every_iteration_once(tmp_path: Path) -> None:
    Child(write, (tmp_path, 0, 0, [1, 2, 3, 4]), tmp_path / "log.txt").result()
    Child(write, (tmp_path, 0, 2, [3, 4, 5, 6]), tmp_path / "log.txt").result()
    assert Child(scalars, (tmp_path, "loss"), tmp_path / "log.txt").result() == [1, 2, 3, 4, 5, 6]
    assert Child(scalars, (tmp_path, "valid_loss/math"), tmp_path / "log.txt").result() == [2, 4, 6]


def test_a_start_and_its_end_are_recorded(tmp_path: Path) -> None:
    Child(write, (tmp_path, 0, 0, [1, 2]), tmp_path / "log.txt").result()
    first, *lines, last = read_metrics(tmp_path)
    assert (first["iteration"], first["start"]) == (0, 1)
    assert (last["iteration"], last["exit_code"]) == (2, 0)
    times = [line["time"] for line in (first, *lines, last)]
    assert times == sorted(times)
    seconds = sum(value for line in (*lines, last) for key, value in line.items() if key.startswith("seconds/"))
    assert seconds == pytest.approx(last["time"] - first["time"], abs=0.1)


def lines_of(run_dir: Path, *lines: dict[str, Any]) -> dict[str, Any]:
    """Write metrics.jsonl and return the line of a start from iteration 4 that was started at 1,000 s."""
    (run_dir / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    truncated = Metrics(run_dir, 0, 4)
    truncated._file.close()
    return next(line for line in reversed(read_metrics(run_dir)) if "start" in line)


BEGUN = {"iteration": 0, "start": 1, "time": 900.0}
STEPS = [{"iteration": i, "loss": 1.0, "time": 900.0 + i, "seconds/step": 0.75, "seconds/data": 0.25} for i in range(8)]


def at_the_end_of_a_disk(run_dir: Path) -> tuple[Metrics, list[int]]:
    """Metrics whose file cannot be written any more, and the exit codes that W&B gets."""
    metrics, ends = Metrics(run_dir, 0, 0, train_iters=10), []
    metrics.log(iteration=1, loss=2.0)
    metrics._file.close()
    metrics._file = MetricsFile(Path("/dev/full"))
    metrics._wandb = SimpleNamespace(finish=ends.append)
    return metrics, ends


def test_a_full_disk_at_the_end_skips_no_other_output(tmp_path: Path) -> None:
    metrics, ends = at_the_end_of_a_disk(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        metrics.close()
    metrics.close()
    assert ends == [0] and scalars(tmp_path, "loss") == [1]


@pytest.mark.parametrize("code", [75, 77])
def test_a_start_to_be_continued_is_no_failure(tmp_path: Path, code: int) -> None:
    """W&B shows a run whose exit code is not 0 as failed."""
    metrics, ends = Metrics(tmp_path, 0, 0, train_iters=10), []
    metrics._wandb = SimpleNamespace(finish=ends.append)
    metrics.close(code)
    assert read_metrics(tmp_path)[-1]["exit_code"] == code and ends == [0]
    metrics, ends = at_the_end_of_a_disk(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        metrics.close(code)


def test_a_full_disk_at_the_end_does_not_hide_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, ends = at_the_end_of_a_disk(tmp_path)
    metrics.close(exit_code=1)
    assert ends == [1] and scalars(tmp_path, "loss") == [1]
    assert f"warning: {tmp_path}/metrics.jsonl or a TensorBoard file lacks the end" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of TensorBoard's thread
def test_a_disk_that_is_full_for_a_while_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TensorBoard's own file lacks the lines up to the next checkpoint."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("may not mount a tmpfs")
    filler = tmp_path / "filler"
    try:
        metrics = Metrics(tmp_path / "run", 0, 0, train_iters=30)
        for iteration in range(1, 31):
            if iteration == 5:
                fill(filler)
            if iteration == 20:
                filler.unlink()
            metrics.log(iteration=iteration, loss=2.0, **{f"value_{i}": 0.1 for i in range(40)})  # a page in five
            if iteration % 10 == 0:
                metrics.flush()
        metrics.close()
        assert iterations(tmp_path / "run") == [*range(1, 31)]
        shown = scalars(tmp_path / "run", "loss")
        assert shown[:4] == [1, 2, 3, 4] and shown[-10:] == [*range(21, 31)]
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    warnings = " ".join(capsys.readouterr().err.split())
    assert warnings.count("metrics.jsonl: no space left on the device. Training continues") == 1
    assert "TensorBoard lacks lines up to the next checkpoint" in warnings


def fill(path: Path) -> None:
    """Fill the disk of a file to its last byte."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 65536)


def test_a_resume_counts_what_it_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps after the checkpoint are lost. The process was killed, so it wrote no end."""
    monkeypatch.setattr("nano3.training.run.metrics.RunClock", lambda: SimpleNamespace(started=1000.0))
    found = lines_of(tmp_path, BEGUN, *STEPS)
    assert found == {
        "iteration": 4, "start": 2, "time": 1000.0, "lost_iterations": 3, "lost_s": 3.0, "interrupted_s": 93.0
    }  # fmt: skip
    assert iterations(tmp_path) == [0, 1, 2, 3, 4]


def test_starts_are_kept_and_an_end_is_dropped_with_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start resumed from 6 and failed; a third falls back to 4."""
    monkeypatch.setattr("nano3.training.run.metrics.RunClock", lambda: SimpleNamespace(started=1000.0))
    second = {"iteration": 6, "start": 2, "time": 950.0, "down_s": 40.0}
    end = {"iteration": 7, "exit_code": 1, "time": 990.0, "seconds/start": 30.0, "seconds/save": 2.0}
    found = lines_of(tmp_path, BEGUN, *STEPS[:5], second, end)
    assert (found["start"], found["lost_s"], found["lost_iterations"]) == (3, 32.0, 3)
    assert found["down_s"] == 10.0 and "interrupted_s" not in found
    assert [line["start"] for line in read_metrics(tmp_path) if "start" in line] == [1, 2, 3]


def test_a_hang_ends_when_it_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nano3.training.run.metrics.RunClock", lambda: SimpleNamespace(started=1000.0))
    (tmp_path / "hang").mkdir()
    for rank, noticed in ((0, 960.0), (1, 970.0)):
        path = tmp_path / f"hang/rank_{rank}.txt"
        path.write_text("stacks")
        os.utime(path, (noticed, noticed))
    found = lines_of(tmp_path, BEGUN, *STEPS)
    assert (found["hang_s"], found["down_s"]) == (63.0, 30.0) and "interrupted_s" not in found
    later = lines_of(tmp_path, BEGUN, *({**line, "time": 980.0} for line in STEPS))
    assert later["interrupted_s"] == 20.0 and "hang_s" not in later


def test_metrics_of_earlier_versions_have_no_times(tmp_path: Path) -> None:
    found = lines_of(tmp_path, *({"iteration": i, "loss": 1.0} for i in range(1, 7)))
    assert (found["start"], found["lost_s"], found["lost_iterations"]) == (1, 0, 2)
    assert "interrupted_s" not in found


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    Child(write, (tmp_path / "run", 1, 0, [1, 2]), tmp_path / "log.txt").result()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("line", ["garbage", "[]", "{}", '{"iteration": 1, "lo', "\0\0", "\xff"])
def test_a_damaged_line_is_named_with_what_to_do(tmp_path: Path, line: str) -> None:
    """A resume reads them all, to cut off what is trained again."""
    good = '{"iteration": 1, "loss": 2.0}'
    (tmp_path / FILE).write_text("\n".join([good, line, good]) + "\n", encoding="latin-1")
    with pytest.raises(Failure, match=r"metrics\.jsonl, line 2: damaged .*sed -i 2d"):
        Metrics(tmp_path, 0, 1)


def test_console_lines(tmp_path: Path) -> None:
    child = Child(write, (tmp_path, 0, 0, [1, 2]), tmp_path / "log.txt")
    child.result()
    assert "iteration  1/10  loss 1.0000  lr 1.00e-01  grad norm 0.50  5 tokens/s" in child.output()
    assert "validation at iteration 2: loss 2.0000  (docs 1.000  math 3.000)" in child.output()


def test_wandb_id_is_kept(tmp_path: Path) -> None:
    assert wandb_run_id(tmp_path) == wandb_run_id(tmp_path)
    assert len(wandb_run_id(tmp_path)) == 16


def test_missing_wandb_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    from nano3.training.run.metrics import Metrics

    with pytest.raises(UserError, match=re.escape(install_command("wandb"))):
        metrics = object.__new__(Metrics)
        metrics.run_dir = tmp_path
        metrics._open_wandb(tiny_config())


def offline_run(run_dir: Path, start: int) -> None:
    config = tiny_config(**{"run.wandb.mode": "offline"})
    metrics = Metrics(run_dir, 0, start, config)
    for i in (start + 1, start + 2):
        metrics.log(iteration=i, consumed_tokens=i, loss=1.0)
    metrics.close()


def test_wandb_offline_continues_the_same_run(tmp_path: Path) -> None:
    for start in (0, 2):
        Child(offline_run, (tmp_path, start), tmp_path / "log.txt").result()
    runs = list((tmp_path / "wandb").glob("offline-run-*"))
    assert {run.name.rsplit("-", 1)[1] for run in runs} == {wandb_run_id(tmp_path)}


class Mirror:
    """Takes what a W&B run is given."""

    def __init__(self) -> None:
        self.had: list[int] = []

    def log(self, values: dict) -> None:
        self.had.append(values["iteration"])


def mirrored(run_dir: Path, start: int, end: int, mirror: Mirror) -> None:
    """A start that is killed after iteration `end`."""
    metrics = Metrics(run_dir, 0, start, train_iters=10)
    wandb_run_id(run_dir)
    metrics._wandb = mirror
    for i in range(start + 1, end + 1):
        metrics.log(iteration=i, consumed_tokens=i, loss=1.0)


def test_wandb_has_every_iteration_once(tmp_path: Path) -> None:
    """It takes nothing back: what is trained again after a kill is not sent again."""
    mirror = Mirror()
    for start, end in ((0, 7), (4, 5), (4, 9), (8, 10)):
        mirrored(tmp_path, start, end, mirror)
    assert mirror.had == list(range(1, 11)) == iterations(tmp_path)


def test_a_fresh_start_in_the_same_folder_is_another_run_for_wandb(tmp_path: Path) -> None:
    mirrored(tmp_path, 0, 7, Mirror())
    mirrored(tmp_path, 4, 5, Mirror())
    before, mirror = wandb_run_id(tmp_path), Mirror()
    mirrored(tmp_path, 0, 3, mirror)
    assert wandb_run_id(tmp_path) != before and mirror.had == [1, 2, 3]
    assert not (tmp_path / WANDB_SENT).exists()


def test_plot_is_a_picture(undisturbed: Path, tmp_path: Path) -> None:
    path = plot_losses(undisturbed, tmp_path / "loss.png")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert len(content) > 20_000
    width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
    assert (width, height) == (1296, 864)


def test_summary(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = dict(summarize(undisturbed))
    lines = read_metrics(undisturbed)
    valid = [line["valid_loss"] for line in lines if "valid_loss" in line]
    assert rows["iterations"] == "12"
    assert rows["tokens"] == "1,536"
    assert rows["validation loss"] == f"{valid[0]:.2f} → {valid[-1]:.2f}"
    assert {"parameters", "validation loss, docs", "speed", "wall time"} <= set(rows)
    print_summary(undisturbed)
    assert "validation loss, math" in capsys.readouterr().out


@pytest.mark.parametrize("function", [plot_losses, summarize, exported_model], ids=lambda f: f.__name__)
def test_nothing_there_yet(tmp_path: Path, function: Any) -> None:
    with pytest.raises(UserError, match="yet"):
        function(tmp_path)


def test_generation_is_repeatable(undisturbed: Path, tmp_path: Path) -> None:
    def text(temperature: float, seed: int) -> list[Generation]:
        args = (exported_model(undisturbed), ["def main", "The"], 8, temperature, seed)
        return Child(generate, args, tmp_path / "log.txt").result()

    sampled = text(1.0, 1)
    assert sampled == text(1.0, 1)
    assert sampled != text(1.0, 2)
    assert text(0.0, 1) == text(0.0, 2)
    assert [s.prompt for s in sampled] == ["def main", "The"]
    with pytest.raises(UserError, match="temperature=-1"):
        generate(Path("unused"), [], temperature=-1)


def test_every_line_is_one_object(undisturbed: Path) -> None:
    for line in (undisturbed / FILE).read_text().splitlines():
        assert isinstance(json.loads(line), dict)
