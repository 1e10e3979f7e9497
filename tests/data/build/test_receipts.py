"""Test the receipts of units and shards."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.data.build.receipts import (
    Fragment,
    ShardReceipt,
    UnitReceipt,
    read_receipt,
    unit_receipt_path,
    write_receipt,
)
from nano3.utils.errors import Failure

numbers = st.integers(0, (1 << 63) - 1)
where = st.tuples(numbers, numbers)
names = st.text(max_size=9)
fragments = st.builds(Fragment, numbers, numbers, names, *[numbers] * 4, names, names, where, where)
receipts = st.one_of(
    st.builds(
        UnitReceipt, numbers, names, numbers, numbers, st.dictionaries(names, numbers, max_size=3), *[numbers] * 4,
        st.lists(fragments, max_size=3),
    ),
    st.builds(
        ShardReceipt, numbers, numbers, numbers, st.none() | names, *[numbers] * 4, names, names, names,
        st.none() | where, st.none() | where,
    ),
)  # fmt: skip


@given(receipt=receipts, cut=st.integers(1, 400))
def test_a_truncated_receipt_counts_as_missing(
    tmp_path_factory: pytest.TempPathFactory, receipt: UnitReceipt | ShardReceipt, cut: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "receipt.json"
    write_receipt(path, receipt)
    assert read_receipt(path, type(receipt)) == receipt
    data = path.read_bytes()
    path.write_bytes(data[: -min(cut, len(data))])
    assert read_receipt(path, type(receipt)) is None
    path.unlink()
    assert read_receipt(path, type(receipt)) is None


def test_every_flipped_bit_of_a_receipt_is_seen(tmp_path: Path) -> None:
    """Such as one in a count, which would be published; but for one in the name of the checksum itself."""
    fragment = Fragment(0, 1, "000000.train.00001", 3, 2, 40, 80, "a" * 32, "b" * 32, (0, 0), (0, 9))
    receipt = UnitReceipt(0, "fastokens", 3, 1, {"short": 2}, 0, 0, 0, 90, [fragment])
    path = tmp_path / "000000.json"
    write_receipt(path, receipt)
    good = path.read_bytes()
    for at in range(len(good) * 8):
        path.write_bytes(good[: at // 8] + bytes([good[at // 8] ^ 1 << at % 8]) + good[at // 8 + 1 :])
        assert read_receipt(path, UnitReceipt) in (None, receipt)
        if at // 8 < len(good) - 50:
            assert read_receipt(path, UnitReceipt) is None


def test_an_unwritable_receipt_raises_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "in" / "000000.json" / "in the way").mkdir(parents=True)
    with pytest.raises(Failure, match=r"000000\.json: cannot be written: Is a directory"):
        write_receipt(tmp_path / "in" / "000000.json", UnitReceipt(0, "e", 0, 0, {}, 0, 0, 0, 0, []))
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["000000.json"]


def test_a_receipt_of_an_older_nano3_is_read(tmp_path: Path) -> None:
    """The fragments of a unit are stored as "parts"."""
    path = unit_receipt_path(tmp_path, 3)
    path.parent.mkdir()
    fragment = (
        b'{"split":0,"shard":1,"name":"000003.train.00001","documents":2,"sequences":1,"tokens":5,"bytes":10,'
        b'"bin_xxh128":"a","len_xxh128":"b","first":[0,1],"last":[0,2]}'
    )
    stored = (
        b'{"unit":3,"engine":"fastokens","documents":2,"empty":1,"skipped":{"null":4},"special":0,"checked":1,'
        b'"truncated":0,"text_bytes":9,"parts":[' + fragment + b"]}"
    )
    path.write_bytes(stored)
    receipt = read_receipt(path, UnitReceipt)
    assert receipt is not None
    assert [fragment.name for fragment in receipt.fragments] == ["000003.train.00001"]
    write_receipt(path, receipt)
    assert path.read_bytes().startswith(stored[:-1])
