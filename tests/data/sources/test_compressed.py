"""Compressed streams are either read to the end or reported as damaged."""

import bz2
import io
import lzma
import random
from collections.abc import Callable
from typing import Any

import pytest
from data_helpers import pack
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.data.sources import compressed
from nano3.data.sources.compressed import FEED_SIZE, READ_SIZE, CountingReader, Decompressor
from nano3.utils.errors import Failure

KINDS = ["gz", "bz2", "xz", "zst"]
ONE, TWO = b"one\n" * 300, b"two\n" * 200


def packed(data: bytes, kind: str) -> bytes:
    return pack(data, f".{kind}")


def opened(data: bytes, kind: str) -> Decompressor:
    return Decompressor(io.BytesIO(data), kind, "the-file")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_reads_return_the_requested_size_until_the_end(kind: str, size: int) -> None:
    stream = opened(packed(ONE, kind) + packed(TWO, kind), kind)
    wanted = ONE + TWO
    for at in range(0, len(wanted), size):
        assert stream.read(size) == wanted[at : at + size]
    assert stream.read(size) == b""
    assert stream.read(size) == b"", "the end stays the end"


TRAILING = {
    "garbage": lambda kind: b"this is no stream of any kind",
    "a_second_stream_with_another_first_byte": lambda kind: b"?" + packed(TWO, kind)[1:],
    "a_second_stream_with_another_third_byte": lambda kind: packed(TWO, kind)[:2] + b"?" + packed(TWO, kind)[3:],
    "one_byte_of_a_second_stream": lambda kind: packed(TWO, kind)[:1],
    "five_bytes_of_a_second_stream": lambda kind: packed(TWO, kind)[:5],
    "all_but_a_byte_of_a_second_stream": lambda kind: packed(TWO, kind)[:-1],
    "a_third_stream_after_garbage": lambda kind: packed(TWO, kind) + b"garbage" + packed(ONE, kind),
}


@pytest.mark.parametrize("trailing", TRAILING.values(), ids=TRAILING.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_trailing_garbage_is_reported(kind: str, trailing: Callable[[str], bytes]) -> None:
    """Python's own readers of bzip2 and xz treat it as the end, so the rest of the text would be missing."""
    with pytest.raises(Failure, match=rf"^the-file: {kind} stream damaged or truncated after [\d,]+ bytes of text"):
        opened(packed(ONE, kind) + trailing(kind), kind).read_all()


@pytest.mark.parametrize("size", [4, 512, READ_SIZE, 3 * READ_SIZE], ids=["word", "tape", "one_read", "three_reads"])
@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_padding_is_not_damage(kind: str, size: int) -> None:
    """NUL bytes after a stream, as from tar and tapes; xz also allows them between streams."""
    assert opened(packed(ONE, kind) + bytes(size), kind).read_all() == ONE
    assert opened(packed(ONE, kind) + bytes(size) + packed(TWO, kind), kind).read_all() == ONE + TWO


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(KINDS), st.data())
def test_two_truncated_streams_are_reported_unless_cut_between_them(kind: str, data: st.DataObject) -> None:
    first, second = packed(ONE, kind), packed(TWO, kind)
    at = data.draw(st.integers(0, len(first + second) - 1))
    try:
        found = opened((first + second)[:at], kind).read_all()
    except Failure as failure:
        assert "the-file" in str(failure)
    else:
        # gzip's own reader accepts an empty file; files of zero bytes are left out earlier.
        assert (at, found) in ((len(first), ONE), (0, b""))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["gz", "bz2", "xz"]), st.data())
def test_a_byte_changed_anywhere_in_two_streams_loses_no_text(kind: str, data: st.DataObject) -> None:
    """Not zstd: as pyarrow writes it, it has no checksum."""
    whole = bytearray(packed(ONE, kind) + packed(TWO, kind))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    try:
        found = opened(bytes(whole), kind).read_all()
    except Failure as failure:
        assert "the-file" in str(failure)
    else:
        assert found == ONE + TWO


@pytest.mark.parametrize("kind", KINDS)
def test_text_before_the_damage_is_returned_first(kind: str) -> None:
    """So the damaged row can be counted."""
    noise = bytes(range(256)) * 4000
    stream = opened(packed(noise, kind)[:-9], kind)
    got = 0
    with pytest.raises(Failure) as caught:
        while data := stream.read(100_000):
            got += len(data)
    reported = int(str(caught.value).partition("after ")[2].partition(" bytes")[0].replace(",", ""))
    assert got <= reported <= len(noise)


@pytest.mark.parametrize("kind", KINDS)
def test_position_depends_only_on_the_bytes_read(kind: str) -> None:
    """Document offsets, and so shards, are computed from it."""
    data = packed(random.Random(0).randbytes(5 * READ_SIZE), kind)
    one, other = opened(data, kind), opened(data, kind)
    for _ in range(10):
        one.read(READ_SIZE // 2)
        for _ in range(4):
            other.read(READ_SIZE // 8)
        assert one.position == other.position
    one.read_all()
    assert one.position == len(data)


@pytest.mark.skipif(io.DEFAULT_BUFFER_SIZE != FEED_SIZE, reason="Python's readers use another buffer size since 3.14")
@pytest.mark.parametrize(("kind", "reader"), [("bz2", bz2.BZ2File), ("xz", lzma.LZMAFile)])
@pytest.mark.parametrize("size", [100, READ_SIZE, 1 << 20])
def test_reads_are_as_large_as_those_of_pythons_readers(kind: str, reader: Callable[..., Any], size: int) -> None:
    """Earlier versions used those; with other sizes, the same plan would assign documents to other shards."""
    data = b"".join(packed(random.Random(n).randbytes(READ_SIZE) + b"text " * READ_SIZE, kind) for n in range(2))
    raw = CountingReader(io.BytesIO(data))
    stream, theirs = opened(data, kind), reader(raw)
    while found := theirs.read1(size):
        while len(found) < size and (more := theirs.read1(size - len(found))):
            found += more
        assert stream.read(size) == found
        assert stream.position == raw.position


@pytest.mark.parametrize("kind", KINDS)
def test_reading_stops_soon_after_a_limit(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may decompress to more than fits in memory."""
    bomb = packed(bytes(20 << 20), kind)
    assert 1 << 20 <= len(opened(bomb, kind).read_all(limit=1 << 20)) <= 2 << 20
    monkeypatch.setattr(compressed, "READ_SIZE", 100)
    assert len(opened(bomb, kind).read_all()) == 20 << 20
