"""Where a Megatron run starts, and that nano3 removes only its own unfinished checkpoints."""

from pathlib import Path

import pytest
from megatron_helpers import checkpoint

from nano3.config import PretrainConfig
from nano3.training.megatron.checkpoints import (
    TRACKER,
    CheckpointFinisher,
    MegatronSearch,
    foreign_folders,
    may_prune,
    record_begun,
    remove_unfinished,
)
from nano3.training.run.checkpoints import complete_checkpoints, read_checkpoint_info
from nano3.training.run.resume import ResumePoint, find_resume_point
from nano3.training.run.sound_checkpoints import checkpoint_problems, set_aside_damaged
from nano3.utils.errors import UserError


def resume_point(save: Path, load: str | None, keep_iteration: bool = False) -> ResumePoint:
    """Return where a run with these three keys of `checkpoint` starts; its identity is not compared."""
    config = PretrainConfig()
    config.checkpoint.save, config.checkpoint.load = str(save), load
    config.checkpoint.keep_iteration = keep_iteration
    return find_resume_point(config, save.parent, MegatronSearch(), None)


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    assert resume_point(tmp_path / "save", None) == ResumePoint(0, None, own=True)
    assert resume_point(tmp_path / "save", str(tmp_path / "save")) == ResumePoint(0, None, own=True)


def test_the_newest_marked_checkpoint_wins(tmp_path: Path) -> None:
    checkpoint(tmp_path, 20)
    newest = checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 120, marked=False, bridge=False)
    assert resume_point(tmp_path, str(tmp_path)) == ResumePoint(100, newest, own=True)


@pytest.mark.parametrize("keep", [False, True], ids=["new phase", "same schedule"])
def test_another_runs_checkpoint_is_taken_only_while_there_is_no_own(tmp_path: Path, keep: bool) -> None:
    other = checkpoint(tmp_path / "phase1", 50)
    there = ResumePoint(50, other, own=False) if keep else ResumePoint(0, other, own=False, new_phase=True)
    assert resume_point(tmp_path / "phase2", str(tmp_path / "phase1"), keep) == there
    own = checkpoint(tmp_path / "phase2", 60)
    assert resume_point(tmp_path / "phase2", str(tmp_path / "phase1"), keep) == ResumePoint(60, own, own=True)


def test_one_iterations_folder_may_be_named(tmp_path: Path) -> None:
    older = checkpoint(tmp_path / "a", 10)
    checkpoint(tmp_path / "a", 20)
    assert resume_point(tmp_path / "b", str(older), keep_iteration=True) == ResumePoint(10, older, own=False)


def test_a_renamed_folder_is_weights_but_no_iteration(tmp_path: Path) -> None:
    moved = checkpoint(tmp_path / "a", 10).rename(tmp_path / "best")
    assert resume_point(tmp_path / "b", str(moved)).folder == moved
    with pytest.raises(UserError, match="has no iteration"):
        resume_point(tmp_path / "b", str(moved), keep_iteration=True)


def test_a_checkpoint_of_megatron_bridge_itself_is_taken(tmp_path: Path) -> None:
    foreign_one = checkpoint(tmp_path / "a", 30, marked=False)
    checkpoint(tmp_path / "a", 40, marked=False, bridge=False)
    assert resume_point(tmp_path / "b", str(tmp_path / "a"), True) == ResumePoint(30, foreign_one, own=False)


def test_a_load_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        resume_point(tmp_path / "b", str(tmp_path / "nothing"))


def test_a_folder_of_plain_megatron_bridge_is_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its newest whole checkpoint counts, none of its folders is removed, and Megatron-Bridge may drop none either."""
    checkpoint(tmp_path, 9000, marked=False)
    newest = checkpoint(tmp_path, 10000, marked=False)
    checkpoint(tmp_path, 10500, marked=False)  # written in part: the tracker does not name it
    (tmp_path / TRACKER).write_text("10000")
    assert resume_point(tmp_path, None) == ResumePoint(10000, newest, own=True)
    before = sorted(tmp_path.iterdir())
    remove_unfinished(tmp_path)
    assert not may_prune(tmp_path)
    assert "iter_0010500" in capsys.readouterr().err
    checkpoint(tmp_path, 10100)  # nano3's first save there
    record_begun(tmp_path, 10200)
    killed = checkpoint(tmp_path, 10200, marked=False, bridge=False)
    remove_unfinished(tmp_path)
    assert not killed.exists()
    assert set(before) <= set(tmp_path.iterdir())


def test_a_newer_foreign_checkpoint_is_not_passed_over(tmp_path: Path) -> None:
    """As after a fresh start in a folder that held iteration 10000: it is not for nano3 to choose, or to remove."""
    checkpoint(tmp_path, 10000, marked=False)
    checkpoint(tmp_path, 100)
    with pytest.raises(UserError, match=r"iter_0010000 is newer than iter_0000100 and was not written by nano3"):
        resume_point(tmp_path, None)
    remove_unfinished(tmp_path)
    assert (tmp_path / "iter_0010000").exists()


def test_a_foreign_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10000, marked=False, bridge=False)
    with pytest.raises(UserError, match="iter_0010000, which nano3 did not write and which is not a complete"):
        resume_point(tmp_path, None)


def test_only_unfinished_saves_of_nano3_are_removed(tmp_path: Path) -> None:
    strange = checkpoint(tmp_path, 5, marked=False)
    kept = checkpoint(tmp_path, 10)
    record_begun(tmp_path, 20)
    checkpoint(tmp_path, 20, marked=False, bridge=False)
    other = checkpoint(tmp_path, 30, marked=False, bridge=False)
    (tmp_path / "iter_0000040.tmp").mkdir()
    assert foreign_folders(tmp_path) == [strange, other]
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("iter_*")) == [strange.name, kept.name, other.name, "iter_0000040.tmp"]


def test_the_first_save_killed_is_a_fresh_start_again(tmp_path: Path) -> None:
    record_begun(tmp_path, 10)
    killed = checkpoint(tmp_path, 10, marked=False, bridge=False)
    assert resume_point(tmp_path, None) == ResumePoint(0, None, own=True)
    remove_unfinished(tmp_path)
    assert not killed.exists()


@pytest.mark.parametrize("name", ["other_run/checkpoints/iter_0010000", "iter_0000040.tmp", "iter_best"])
def test_checkpoints_of_other_runs_below_are_safe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Megatron-Bridge would take them for old ones of this run, or stumble over the name."""
    checkpoint(tmp_path, 10)
    (tmp_path / name).mkdir(parents=True)
    assert not may_prune(tmp_path)
    assert name in capsys.readouterr().err


def test_in_a_folder_of_its_own_old_ones_may_go(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    record_begun(tmp_path, 20)
    checkpoint(tmp_path, 20, marked=False)
    assert may_prune(tmp_path)


def test_a_checkpoint_without_checksums_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run was killed between the mark and the checksums."""
    folder, finisher = checkpoint(tmp_path, 10), CheckpointFinisher(tmp_path, 2)
    for missing in (True, False):
        set_aside_damaged(tmp_path, tmp_path, "fallback")
        assert (f"{folder} has no checksums, so it cannot be verified" in capsys.readouterr().err) is missing
        finisher.start(folder, read_checkpoint_info(folder))
        finisher.wait()


def test_checksums_are_added_in_the_background_and_old_checkpoints_removed(tmp_path: Path) -> None:
    finisher = CheckpointFinisher(tmp_path, 2)
    for iteration in (10, 20, 30):
        folder = checkpoint(tmp_path, iteration)
        (folder / "__0_0.distcp").write_bytes(b"weights" * iteration)
        finisher.start(folder, read_checkpoint_info(folder))
    finisher.wait()
    assert [p.name for p in complete_checkpoints(tmp_path)] == ["iter_0000020", "iter_0000030"]
    assert set(read_checkpoint_info(folder).files) == {".metadata", "__0_0.distcp", "run_config.yaml"}
    assert checkpoint_problems(folder) == []
    (folder / "__0_0.distcp").write_bytes(b"weighty" * 30)
    assert "has changed" in checkpoint_problems(folder)[0]
    set_aside_damaged(tmp_path, tmp_path, "fallback")
    assert resume_point(tmp_path, None).iteration == 20
    assert may_prune(tmp_path), "iter_0000030.damaged is not a checkpoint of another run"
