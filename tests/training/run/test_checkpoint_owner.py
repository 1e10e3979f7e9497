"""Two runs must not save into one folder."""

from pathlib import Path

import pytest

from nano3.training.run.checkpoint_owner import OWNER_FILE, claim_dir, owner_of, owner_problem
from nano3.utils.errors import UserError
from nano3.utils.files import write_json
from nano3.utils.records import DamagedRecordError


@pytest.mark.parametrize(
    ("owner", "save", "refused"),
    [
        pytest.param(None, "shared", False, id="nobody's"),
        pytest.param("run", "shared", False, id="its own"),
        pytest.param("link", "shared", False, id="its own under another name"),
        pytest.param("other", "shared", True, id="another run's"),
        pytest.param("other", "run/checkpoints", False, id="its own folder that was moved here"),
        pytest.param("other", "other/checkpoints", True, id="in another run's folder"),
    ],
)
def test_whose_checkpoints(tmp_path: Path, owner: str | None, save: str, refused: bool) -> None:
    run, folder = tmp_path / "run", tmp_path / save
    run.mkdir()
    (tmp_path / "link").symlink_to(run)
    if owner:
        write_json(folder / OWNER_FILE, {"run_dir": str(tmp_path / owner)})
    problem = owner_problem(folder, run)
    assert (problem is not None) is refused
    if problem:
        assert f"checkpoint.save={folder} holds the checkpoints of another run, {tmp_path / 'other'}" in problem
        assert f"checkpoint.load={folder}" in problem and str(folder / OWNER_FILE) in problem
        with pytest.raises(UserError):
            claim_dir(folder, run)
        assert owner_of(folder) == tmp_path / "other"
    else:
        claim_dir(folder, run)
        assert owner_of(folder) == run


def test_claiming_again_writes_nothing(tmp_path: Path) -> None:
    claim_dir(tmp_path / "save", tmp_path / "run")
    before = (tmp_path / "save" / OWNER_FILE).stat().st_mtime_ns
    claim_dir(tmp_path / "save", tmp_path / "run")
    assert (tmp_path / "save" / OWNER_FILE).stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"checkpoint\.save=.*cannot be written: .*file is a file, not a folder"):
        claim_dir(tmp_path / "file" / "save", tmp_path / "run")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": 1}'])
def test_a_damaged_note_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / OWNER_FILE).write_text(content)
    with pytest.raises(DamagedRecordError, match=r"run\.json: damaged \(.*\)\. Remove it: the next run"):
        claim_dir(tmp_path, tmp_path / "run")
