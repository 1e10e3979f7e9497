"""Test which tokenizer loads before the configuration is composed."""

from pathlib import Path

import pytest

from nano3.prep.preload import find_tokenizer_file
from nano3.utils.command_line import CommandLine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WANTED = [
    "tokenizer_model=tok output_dir=out",
    "blend_path=a.json tokenizer_model=tok/tokenizer.json output_dir=out workers=2",
    "data_blend=math tokenizer_model=tok output_dir=done force=true",
    "+valid_fraction=0 tokenizer_model=tok output_dir=out",
]
NOT_WANTED = [
    "",
    "output_dir=out",
    "tokenizer_model=tok",
    "tokenizer_model=org/name output_dir=out",
    "tokenizer_model=no output_dir=out",
    "tokenizer_model=tok output_dir=done",
    "tokenizer_model=tok output_dir=out dry_run=true",
    "tokenizer_model=tok output_dir=out cluster=slurm",
    "tokenizer_model=tok output_dir=out engine=tokenizers",
    "--cfg job tokenizer_model=tok output_dir=out",
    "-m tokenizer_model=tok output_dir=out,out2",
    "tokenizer_model=tok output_dir=out ~x",
]


@pytest.mark.parametrize("words", WANTED)
def test_a_plain_command_line_preloads(folder: Path, words: str) -> None:
    assert find_tokenizer_file(CommandLine.parse(words.split())) == str(folder.resolve() / "tok" / "tokenizer.json")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("words", NOT_WANTED)
def test_other_command_lines_do_not_preload(words: str) -> None:
    assert find_tokenizer_file(CommandLine.parse(words.split())) == ""
