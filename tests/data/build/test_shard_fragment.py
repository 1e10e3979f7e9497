"""Test the writing of fragments."""

import resource
from pathlib import Path

import numpy as np
import pytest

from nano3.data.build.shard_fragment import open_fragment
from nano3.utils.errors import Failure


def test_a_fragment_counts_its_documents(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    writer = open_fragment(tmp_path, 12, 1, 3)
    writer.add(np.arange(5, dtype=np.uint16), np.array([2, 0, 3], np.int32), (0, 7), (1, 2))
    writer.add_tokens(np.arange(4, dtype=np.uint16))
    writer.add_tokens(np.array([], np.uint16))
    writer.end_documents(np.array([4], np.int32), (1, 9), (1, 9))
    fragment = writer.commit()
    assert (fragment.name, fragment.documents, fragment.sequences, fragment.tokens, fragment.bytes) == (
        "000012.valid.00003",
        4,
        3,
        9,
        18,
    )
    assert (fragment.first, fragment.last) == ((0, 7), (1, 9))
    assert np.fromfile(tmp_path / "units" / f"{fragment.name}.len", np.int32).tolist() == [2, 0, 3, 4]


def test_no_file_is_left_open_if_only_one_of_two_opens(tmp_path: Path) -> None:
    """The process has reached its limit of open files."""
    (tmp_path / "units").mkdir()
    with (tmp_path / "probe").open("w") as probe:
        free = probe.fileno()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, hard))
    try:
        with pytest.raises(Failure, match=r"\.len: cannot be written: Too many open files"):
            open_fragment(tmp_path, 0, 0, 0)
        with (tmp_path / "probe").open() as probe:
            assert probe.fileno() == free, "the first file was closed"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert list((tmp_path / "units").iterdir()) == []


@pytest.mark.parametrize("suffix", [".bin", ".len"])
def test_a_fragment_that_cannot_be_renamed_is_discarded(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "units" / f"000000.train.00000{suffix}" / "in the way").mkdir(parents=True)
    writer = open_fragment(tmp_path, 0, 0, 0)
    writer.add(np.ones(2, np.uint16), np.array([2], np.int32), (0, 0), (0, 0))
    with pytest.raises(Failure, match=rf"000000\.train\.00000\{suffix}: cannot be written"):
        writer.commit()
    writer.discard()
    assert not list((tmp_path / "units").glob(".*.tmp"))
