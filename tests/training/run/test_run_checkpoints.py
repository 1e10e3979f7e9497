"""checkpoint.json of earlier releases, and the folder names of checkpoints."""

from dataclasses import asdict
from pathlib import Path

import pytest

from nano3.training.run import checkpoints
from nano3.training.run.checkpoints import CheckpointInfo
from nano3.utils.files import write_json
from nano3.utils.records import DamagedRecordError, with_checksum

INFO = CheckpointInfo(
    4, 16, 512, 1.5, 10, {"train.seed": 1}, {"world size": 2}, {"state.pt": {"bytes": 1, "sha256": "a"}}
)


@pytest.mark.parametrize("old", [False, True], ids=["this release", "earlier release"])
def test_checkpoint_json_is_read(tmp_path: Path, old: bool) -> None:
    """Earlier releases wrote `fixed` and `told`."""
    content = with_checksum(INFO)
    if old:
        content.pop("checksum")
        content["fixed"], content["told"] = content.pop("run_identity"), content.pop("mutable_settings")
    write_json(tmp_path / checkpoints.MARKER, content)
    assert checkpoints.read_checkpoint_info(tmp_path) == INFO


@pytest.mark.parametrize("content", [[], 1, {}, {"iteration": 4}, {**asdict(INFO), "more": 1}])
def test_another_json_file_is_a_damaged_checkpoint(tmp_path: Path, content: object) -> None:
    write_json(tmp_path / checkpoints.MARKER, content)
    with pytest.raises(DamagedRecordError, match=r"checkpoint.json: damaged .*Remove .* to resume"):
        checkpoints.read_checkpoint_info(tmp_path)


def test_a_folder_name_is_inverted() -> None:
    assert checkpoints.iteration_of(Path("a") / checkpoints.folder_name(12)) == 12
    with pytest.raises(ValueError, match="is not a checkpoint folder"):
        checkpoints.iteration_of(Path("a/iter_12"))
