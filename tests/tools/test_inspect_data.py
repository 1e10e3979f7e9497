"""nano3 inspect: the tokenizer that is stored with the data."""

from pathlib import Path

import pytest

from nano3.tools.inspect_data import load_tokenizer
from nano3.utils.errors import Failure


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "there is no such file. Run the same nano3.data_prep again", id="gone"),
        pytest.param("{", "damaged (", id="cut off"),
        pytest.param("", "damaged (", id="empty"),
        pytest.param("[]", "damaged (", id="not an object"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded_is_named(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(Failure) as caught:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert f"{tmp_path}/tokenizer.json: {message}" in str(caught.value) and "copies it back" in str(caught.value)
