"""The file format, compared with Megatron's own code."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nano3.data.dataset.indexed import IndexedFile, write_index
from nano3.utils.errors import Failure

lengths = st.lists(st.integers(0, 40), max_size=30)


def write_ours(prefix: Path, documents: list[list[int]], dtype: str, chunks: int = 1) -> None:
    """Write a pair with nano3."""
    counts = np.array([len(d) for d in documents], np.int32)
    flat = np.array([i for d in documents for i in d], dtype)
    prefix.with_suffix(".bin").write_bytes(flat.tobytes())
    out = io.BytesIO()
    write_index(out.write, lambda: iter(np.array_split(counts, chunks)), int((counts > 0).sum()), len(counts), dtype)
    prefix.with_suffix(".idx").write_bytes(out.getvalue())


def write_megatrons(prefix: Path, documents: list[list[int]], dtype: str) -> None:
    """Write a pair with Megatron's builder, as tools/preprocess_data.py does."""
    pytest.importorskip("megatron.core")
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(prefix.with_suffix(".bin")), dtype=np.dtype(dtype).type)
    for document in documents:
        builder.add_document(document, [len(document)] if document else [])
    builder.finalize(str(prefix.with_suffix(".idx")))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=lengths, dtype=st.sampled_from(["uint16", "int32"]), chunks=st.integers(1, 4))
def test_bytes_are_those_of_megatron(tmp_path: Path, counts: list[int], dtype: str, chunks: int) -> None:
    documents = [[(7 * i + j) % 65000 for j in range(n)] for i, n in enumerate(counts)]
    write_ours(tmp_path / "a", documents, dtype, chunks)
    write_megatrons(tmp_path / "b", documents, dtype)
    for suffix in (".bin", ".idx"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    data = IndexedFile(tmp_path / "a")
    assert [data.document(i).tolist() for i in range(len(data))] == documents


def test_megatron_reads_our_files(tmp_path: Path) -> None:
    pytest.importorskip("megatron.core")
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    documents = [[1, 2, 3], [], [4], [5] * 100]
    write_ours(tmp_path / "a", documents, "int32")
    data = IndexedDataset(str(tmp_path / "a"))
    assert [data[i].tolist() for i in range(len(data))] == [d for d in documents if d]
    assert data.document_indices.tolist() == [0, 1, 1, 2, 3]


DAMAGE = {
    "no_idx": lambda p: p.with_suffix(".idx").unlink(),
    "no_bin": lambda p: p.with_suffix(".bin").unlink(),
    "short_idx": lambda p: p.with_suffix(".idx").write_bytes(p.with_suffix(".idx").read_bytes()[:-1]),
    "short_bin": lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes()[:-4]),
    "long_bin": lambda p: p.with_suffix(".bin").write_bytes(p.with_suffix(".bin").read_bytes() + b"1234"),
    "empty_idx": lambda p: p.with_suffix(".idx").write_bytes(b""),
    "not_an_index": lambda p: p.with_suffix(".idx").write_bytes(b"x" * 200),
    "other_version": lambda p: p.with_suffix(".idx").write_bytes(b"MMIDIDX\0\0\2" + bytes(60)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_reported(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    write_ours(tmp_path / "a", [[1, 2], [3]], "int32")
    damage(tmp_path / "a")
    with pytest.raises(Failure, match=r"a\.(idx|bin)"):
        IndexedFile(tmp_path / "a")
