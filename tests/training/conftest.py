"""Real data for the training tests: a slice of the bundled corpus through data_prep, and one undisturbed run on it."""

from pathlib import Path

import pytest
from training_processes import SAMPLE, tiny_config, train_here

from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.run import prepare

SOURCES = [
    SourceConfig(name="docs", path=str(SAMPLE / "docs.parquet"), weight=0.5),
    SourceConfig(name="code", path=str(SAMPLE / "code.jsonl.zst"), weight=0.3),
    SourceConfig(name="math", path=str(SAMPLE / "math.jsonl.gz"), weight=0.2),
]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets of 40 documents in three splits; read-only."""
    folder = tmp_path_factory.mktemp("data") / "prepared"
    options = PrepOptions(
        output_dir=str(folder),
        tokenizer_model=str(SAMPLE / "tokenizer"),
        num_shards=9,
        sample=40,
        valid_fraction=0.2,
        test_fraction=0.2,
        workers=1,
    )
    prepare(SOURCES, options, "sample")
    return folder


@pytest.fixture(scope="session")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of twelve undisturbed iterations; read-only."""
    run_dir = tmp_path_factory.mktemp("undisturbed")
    outcome = train_here(tiny_config(), data, run_dir)
    assert (outcome.status, outcome.iteration, outcome.exit_code) == ("finished", 12, 0)
    return run_dir
