"""nano3 trace: from an iteration of a run to the rows of its source files."""

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import run_tool
from tokenizers import Tokenizer
from training_processes import SAMPLE, Child, tiny_config

from nano3.config import PretrainConfig
from nano3.data.dataset.manifest import load_manifest
from nano3.training.run.record import DataReference, save_run_config
from nano3.training.run.skips import ROLLED_BACK, SkippedRange, SkipRecord

SEQ, BATCH, ITERATIONS = 32, 4, 12


@pytest.fixture(scope="module")
def traced(data: Path, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run with the record of a start."""
    folder = tmp_path_factory.mktemp("traced") / "run"
    shutil.copytree(undisturbed, folder, ignore=shutil.ignore_patterns("checkpoints"))
    config = resolved(data)
    save_run_config(folder, config, DataReference(str(data), str(data), load_manifest(data).content), [])
    return folder


def resolved(data: Path) -> PretrainConfig:
    """Return the configuration of the undisturbed run as a start saves it, without references to other keys."""
    return tiny_config(**{"run.data": str(data), "recipe.per_split_data_args_path": str(data / "blend.json")})


def trace(folder: Path, *words: object) -> tuple[int, str, str]:
    """Run the tool; return exit code, output and errors."""
    return run_tool("trace", folder, *words)


def sample_index_of(folder: Path) -> Path:
    """Return the index cache of a run with one data fingerprint."""
    (cache,) = (folder / "index_cache").iterdir()
    return cache


def rows(output: str) -> list[dict[str, str]]:
    """Return the table's rows by column."""
    title, names, *lines = output.splitlines()
    assert "iteration" in title
    columns = re.split(r"\s{2,}", names.strip())
    table = [re.split(r"\s{2,}", line.strip()) for line in lines if re.match(r"\s*\d+  ", line)]
    return [dict(zip(columns, row, strict=True)) for row in table]


def text_of(file: str, position: str) -> str:
    """Return the text at a position, read without nano3."""
    kind, _, number = position.partition(" ")
    offset = int(number.replace(",", ""))
    path = Path(file)
    if kind == "row":
        return pq.read_table(path)["text"][offset - 1].as_py()
    if path.suffix == ".gz":
        whole = gzip.decompress(path.read_bytes())
    else:
        whole = pa.CompressedInputStream(io.BytesIO(path.read_bytes()), "zstd").read()
    return json.loads(whole[offset:].partition(b"\n")[0])["text"]


def megatron_tokens(data: Path, cache: Path, samples: range, iterations: int = ITERATIONS) -> list[list[int]]:
    """Return the tokens and the last label of each sample, read with Megatron's own dataset."""
    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder

    config = tiny_config()
    dataset = DatasetBuilder(open_data(data), SEQ, config.train.seed, cache).train(iterations * BATCH)
    return [[*dataset[i]["tokens"].tolist(), int(dataset[i]["labels"][-1])] for i in samples]


@pytest.mark.parametrize("iteration", [1, 7, 12])
def test_the_rows_contain_the_tokens_that_the_model_read(
    data: Path, traced: Path, tmp_path: Path, iteration: int
) -> None:
    code, output, errors = trace(traced, "--iteration", iteration)
    assert (code, errors) == (0, "")
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))
    eod = load_manifest(data).tokenizer.eod_id
    found: dict[int, list[int]] = {}
    for row in rows(output):
        start, _, last = row["tokens"].replace(",", "").partition("-")
        ids = [*tokenizer.encode(text_of(row["file"], row["position"]), add_special_tokens=False).ids, eod]
        found.setdefault(int(row["sample"]), []).extend(ids[int(start) : int(last) + 1])
        assert Path(row["file"]).name.startswith(row["dataset"])
    samples = range((iteration - 1) * BATCH, iteration * BATCH)
    expected = Child(megatron_tokens, (data, sample_index_of(traced), samples), tmp_path / "log.txt").result()
    assert [found[sample] for sample in range(BATCH)] == expected
    assert f"samples {samples[0]} to {samples[-1]} of the run" in output


def test_one_sample_and_its_text(data: Path, traced: Path, tmp_path: Path) -> None:
    code, output, _ = trace(traced, "--iteration", 3, "--sample", 2, "--text")
    assert code == 0
    assert {row["sample"] for row in rows(output.partition("----")[0])} == {"2"}
    expected = Child(megatron_tokens, (data, sample_index_of(traced), range(10, 11)), tmp_path / "log.txt").result()
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer" / "tokenizer.json"))
    assert output.endswith("---- sample 2\n" + tokenizer.decode(expected[0], skip_special_tokens=False) + "\n")


def reads(output: str) -> set[tuple[int, int, str]]:
    """Return (iteration, sample, tokens) of each line of `trace --document`."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in output.splitlines()[2:] if re.match(r"\s*\d+  ", line)]
    return {(int(line[0].replace(",", "")), int(line[1]), line[2]) for line in lines}


def test_a_document_leads_back_to_every_iteration_that_read_it(traced: Path) -> None:
    found = {i: rows(trace(traced, "--iteration", i)[1]) for i in range(1, ITERATIONS + 1)}
    every = [(i, row) for i, table in found.items() for row in table]
    for _, row in every[:: len(every) // 6]:
        same = (row["shard"], row["document"])
        expected = {(i, int(r["sample"]), r["tokens"]) for i, r in every if (r["shard"], r["document"]) == same}
        number = row["position"].partition(" ")[2].replace(",", "")
        for wanted in (f"{row['shard']}:{row['document']}", f"{Path(row['file']).name}:{number}"):
            code, output, errors = trace(traced, "--document", wanted)
            assert (code, errors) == (0, "")
            assert reads(output) == expected, wanted
            assert f"document {row['document']} of {row['shard']}, dataset {row['dataset']}" in output
            assert f"reads: {len(expected)}; trained on" in output


def test_a_document_of_another_split_is_never_trained_on(traced: Path) -> None:
    code, output, _ = trace(traced, "--document", "valid/data_00000:0")
    assert code == 0
    assert "never trained on, because it belongs to the split valid" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--document", "docs.parquet"], "write FILE:ROW, FILE:BYTE or SHARD:NUMBER", id="no-number"),
        pytest.param(["--document", "train/data_09999:0"], "has no such shard", id="no-shard"),
        pytest.param(["--document", "train/data_00000:99999999"], "has documents 0 to", id="no-document"),
        pytest.param(["--document", "nothing.parquet:1"], "no file of the data has this path", id="no-file"),
        pytest.param(["--document", "docs.parquet:99,999,999"], "is no document of the data", id="no-row"),
        pytest.param(["--document", "docs.parquet:1", "--text"], "belong to --iteration", id="text"),
        pytest.param(["--document", "a:1", "--iteration", "1"], "not allowed with", id="both"),
        pytest.param([], "--iteration", id="neither"),
    ],
)
def test_documents_that_cannot_be_found(traced: Path, words: list[str], message: str) -> None:
    code, _, errors = trace(traced, *words)
    assert code == 2
    assert message in errors and "Traceback" not in errors


def test_without_the_sources(traced: Path) -> None:
    code, output, errors = trace(traced, "--iteration", 3, "--no-sources")
    assert (code, errors) == (0, "")
    assert str(SAMPLE) not in output and "train/data_0000" in output


def test_nothing_heavy_is_imported(traced: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "nano3", "trace", str(traced), "--iteration", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert not re.search(r"\|\s+(torch|megatron|transformers)\b", done.stderr)


def test_missing_sources(traced: Path, tmp_path: Path) -> None:
    """The table is still shown, with one warning per shard."""
    folder, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(traced, folder)
    shutil.copytree(data_of(traced), data)
    config = resolved(data)
    save_run_config(folder, config, DataReference(str(data), str(data), load_manifest(data).content), [])
    for plan in (data / ".prep").glob("*/plan.json"):
        values = json.loads(plan.read_text().replace(str(SAMPLE), str(tmp_path / "nowhere")))
        values.pop("checksum")  # as in a plan of an earlier version
        plan.write_text(json.dumps(values))
    code, output, errors = trace(folder, "--iteration", 2)
    assert code == 0 and "train/data_0000" in output
    assert "cannot be read: No such file" in errors and "Traceback" not in errors


def data_of(folder: Path) -> Path:
    """Return the data folder of a run."""
    from nano3.training.run.record import load_run_config

    return Path(load_run_config(folder / "config.yaml").run.data)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        pytest.param(["--iteration", 13], "--iteration 13: this run has iterations 1 to 12.", 2, id="too late"),
        pytest.param(["--dataset", "docs", "--text"], "belong to --iteration, not to --dataset", 2, id="other"),
        pytest.param(["--containing", " "], "--containing: the text is empty", 2, id="no text"),
        pytest.param(["--iteration", 0], "0 is too small. The minimum is 1.", 2, id="too early"),
        pytest.param(["--iteration", "x"], "'x' is not a whole number", 2, id="no number"),
        pytest.param([], "one of the arguments --iteration --document --containing --dataset --audit is", 2, id="none"),
        pytest.param(
            ["--iteration", 1, "--sample", 4], "a global batch of this run has samples 0 to 3.", 2, id="sample"
        ),
    ],
)
def test_wrong_arguments(traced: Path, words: list[object], message: str, code: int) -> None:
    exit_code, _, errors = trace(traced, *words)
    assert exit_code == code and message in errors and "Traceback" not in errors


def test_no_such_run() -> None:
    code, _, errors = trace(Path("nowhere"), "--iteration", 1)
    assert code == 2 and "There is no run 'nowhere'" in errors


def test_a_run_without_training(traced: Path, tmp_path: Path) -> None:
    shutil.copytree(traced, tmp_path / "run", ignore=shutil.ignore_patterns("index_cache"))
    code, _, errors = trace(tmp_path / "run", "--iteration", 1)
    assert code == 2 and "there is no sample index yet; the run creates it when training starts" in errors


def test_data_that_was_prepared_again(traced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(traced, folder)
    path = max((folder / "starts").glob("*/start.json"))
    record = json.loads(path.read_text())
    record["data"]["fingerprint"] = "other"
    record.pop("checksum")
    path.write_text(json.dumps(record))
    code, _, errors = trace(folder, "--iteration", 1)
    assert code == 1 and "is not the data that" in errors and "It has been prepared again since." in errors


def test_a_changed_batch_size(traced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(traced, folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if "consumed_samples" in line:
            line["consumed_samples"] *= 2
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, errors = trace(folder, "--iteration", 5)
    assert code == 1 and "after iteration 5 the run had read 40 samples, not 5 x 4" in errors


def test_an_earlier_start_with_another_length(data: Path, traced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(traced, folder)
    Child(megatron_tokens, (data, sample_index_of(folder), range(1), 24), tmp_path / "log.txt").result()
    code, output, errors = trace(folder, "--iteration", 5)
    assert code == 0 and rows(output) == rows(trace(traced, "--iteration", 5)[1])
    assert "also holds indexes of 97 samples: this run was also started with other lengths" in errors


def test_an_iteration_that_was_left_out_says_so(traced: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(traced, folder)
    SkipRecord((SkippedRange(5, 6, ROLLED_BACK),)).write(folder)
    event = {"time": "2026-01-01T00:00:00+00:00", "iteration": 5, "statistic": "loss", "value": 9.5, "median": 5.0,
             "threshold": 6.25, "action": "rollback", "samples": [16, 19], "documents": []}  # fmt: skip
    (folder / "guard.jsonl").write_text(json.dumps(event) + "\n")
    code, out, _ = trace(folder, "--iteration", 5, "--no-sources")
    assert code == 0 and out.splitlines()[-2:] == [
        "not trained on: the run leaves out iteration 5 to 6 (guard rollback)",
        "guard, 2026-01-01T00:00:00+00:00: loss 9.5 above 6.25: rollback",
    ]
    assert "not trained" not in trace(folder, "--iteration", 7, "--no-sources")[1]
