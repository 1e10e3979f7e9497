"""Mistakes are rejected in seconds with exit code 2, without a traceback and before a GPU is used."""

import json
import shutil
import time
from pathlib import Path

import pytest
from gpu_runs import MARKS, Runs

pytestmark = MARKS


def rejected(runs: Runs, *words: str) -> str:
    started = time.monotonic()
    text = runs.train("refused", *words, code=2)
    assert time.monotonic() - started < 60
    assert "Traceback" not in text
    assert not (runs.dir("refused") / "checkpoints").exists()
    return text


def test_misspelt_and_mistyped_overrides_are_all_told(runs: Runs) -> None:
    text = rejected(
        runs,
        "+megatron.model.recompute_granularityy=full",
        "+megatron.ddp.bucket_size=abc",
        "+megatron.trian.x=1",
    )
    for words in ("Did you mean 'recompute_granularity'?", "'abc' is a str; expected int", "Did you mean 'train'?"):
        assert words in text


def test_a_recipe_that_does_not_exist(runs: Runs) -> None:
    target = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrian_config"
    assert "Did you mean 'nemotron_3_nano_pretrain_config'?" in rejected(runs, f"recipe._target_={target}")


def test_another_tokenizer(runs: Runs, tmp_path: Path) -> None:
    text = (runs.folder / "data/tokenizer/tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text + "\n")
    text = rejected(runs, f"+megatron.tokenizer.tokenizer_model={tmp_path}")
    assert "this is not the tokenizer that made the data" in text


@pytest.mark.parametrize("damage", ["no blend", "no validation"])
def test_broken_data(runs: Runs, tmp_path: Path, damage: str) -> None:
    data = tmp_path / "data"
    shutil.copytree(runs.folder / "data", data)
    blend = json.loads((data / "blend.json").read_text())
    if damage == "no blend":
        (data / "blend.json").unlink()
    else:
        (data / "blend.json").write_text(json.dumps(blend | {"valid": []}))
    text = rejected(runs, f"run.data={data}")
    assert ("blend.json is missing" if damage == "no blend" else "valid split") in text
