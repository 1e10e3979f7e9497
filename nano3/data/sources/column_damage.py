"""Recognize damage in parquet and Arrow files: neither pyarrow's many exceptions nor a crash says which file it was."""

import contextlib
from collections.abc import Iterator
from typing import Any

from nano3.utils.errors import Failure


@contextlib.contextmanager
def damage_reported(path: str, kind: str) -> Iterator[None]:
    """Raise Failure with the file's name for what pyarrow raises on damage.

    Args:
        path: Path or URL of the file.
        kind: Name of the format.

    Raises:
        Failure: The file is damaged.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, SystemError, OverflowError, UnicodeDecodeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk or the network
        reason = str(error).partition("\n")[0] or type(error).__name__
        if isinstance(error, MemoryError):
            reason = "a size in it exceeds the free memory"
        raise Failure(
            f"{path}: damaged {kind}: {reason.rstrip('.')}. Copy the file again, or remove it from the dataset."
        ) from error


def validate_column(column: Any) -> None:
    """Check a column of an Arrow file, whose offsets pyarrow follows blindly otherwise.

    Text that is not UTF-8 passes in a column of strings: its rows are reported as bad later. pyarrow checks the offsets
    before the text.

    Args:
        column: A pyarrow array.

    Raises:
        pyarrow.ArrowInvalid: It is damaged.
    """
    import pyarrow as pa

    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        if "UTF8" not in str(error) or pa.types.is_nested(column.type):
            raise
        if pa.types.is_dictionary(column.type):  # the text of the dictionary is checked before the indices
            pa.DictionaryArray.from_arrays(column.indices, pa.nulls(len(column.dictionary)), safe=True)
