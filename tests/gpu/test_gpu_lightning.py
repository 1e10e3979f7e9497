"""Multi-token prediction on a real GPU: a micro sibling of Nemotron 3.5 Lightning with Lightning's own recipe.

NANO3_GPU_RUNS=/tmp/lightning python -m pytest -m gpu tests/gpu/test_gpu_lightning.py
"""

import json
from pathlib import Path

import pytest
from gpu_runs import MARKS, MICRO, Runs, made_once

from nano3.training.megatron import schema
from nano3.utils.files import read_json

pytestmark = MARKS
LIGHTNING, NANO_4B = (r for r in schema.RECIPES if "lightning_pretrain_config" in r or "nano_4b" in r)
WORDS = [
    *(w for w in MICRO if not w.startswith(("model=", "train.train_iters", "checkpoint.save_interval"))),
    "model=nemotron_3_5_lightning_micro",
    f"recipe._target_={LIGHTNING}",
    "train.train_iters=20",
    "checkpoint.save_interval=10",
]


def train(runs: Runs, name: str, *words: str) -> str:
    return runs("-m", "nano3.pretrain", *WORDS, f"run.name={name}", *words)


@pytest.fixture(scope="session")
def lightning(runs: Runs) -> Path:
    """The run folder of 20 iterations, stopped and resumed after 10; read-only."""
    with made_once(runs.folder, "lightning") as wanted:
        if wanted:
            assert "fresh start" in train(runs, "lightning", "train.exit_iteration=10")
            assert "resuming from iteration 10 of" in train(runs, "lightning")
    return runs.dir("lightning")


def test_it_learns_to_predict_two_further_tokens(runs: Runs, lightning: Path) -> None:
    steps = runs.steps("lightning")
    assert sorted(steps) == [5, 10, 15, 20]
    for name in ("loss", "mtp_1_loss", "mtp_2_loss"):
        values = [steps[i][name] for i in (5, 10, 15, 20)]
        print(name, *(round(v, 3) for v in values))
        assert 4 < values[-1] < values[0] - 0.5 < 8.5, (name, values)
    assert all(0 <= steps[i][f"mtp_{k}_accuracy"] < 1 for i in steps for k in (1, 2))
    assert read_json(lightning / "finished.json")["iteration"] == 20


def test_one_key_turns_it_off(runs: Runs, lightning: Path) -> None:
    train(runs, "single", "model.mtp_num_layers=0", "train.exit_iteration=10")
    single, both = runs.steps("single")[10], runs.steps("lightning")[10]
    assert not [key for key in single if key.startswith("mtp_")]
    assert single["loss"] == pytest.approx(both["loss"], abs=1)
    assert single["memory_gb"] < both["memory_gb"]


def test_the_work_is_that_of_megatron_bridge(lightning: Path, tmp_path: Path) -> None:
    from nano3.training.checks.model_stats import architecture_from_config, count_parameters, flops_per_token
    from nano3.training.dataset import open_data
    from nano3.training.megatron.backend import prepare
    from nano3.training.run.checkpoints import complete_checkpoints, read_checkpoint_info
    from nano3.training.run.record import load_run_config

    config = load_run_config(lightning / "config.yaml")
    container = prepare(config, open_data(Path(config.run.data)), tmp_path)
    container.model.vocab_size = 4096  # Megatron-Bridge takes it from the tokenizer when it starts
    container.model.finalize()
    from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

    theirs = num_floating_point_operations(container, 32) / (32 * 1024)
    own = architecture_from_config(config, schema.load_bundled(LIGHTNING), 4096)
    assert own is not None
    ours = flops_per_token(own, 1024)
    print(f"FLOPs per token: nano3 {ours:.4g}, Megatron-Bridge {theirs:.4g}, ratio {ours / theirs:.3f}")
    assert ours == pytest.approx(theirs, rel=0.1)
    built = read_checkpoint_info(complete_checkpoints(lightning / "checkpoints")[-1]).parameters
    assert count_parameters(own).total == built, "the parameters that Megatron built"


LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).cuda().eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt", add_special_tokens=False)["input_ids"].cuda()
with torch.no_grad():
    print("RESULT " + json.dumps({"loss": model(input_ids=ids, labels=ids).loss.item()}))
"""


def test_the_export_has_the_layers_and_starts_a_run(runs: Runs, lightning: Path) -> None:
    """transformers loads the main model; Megatron-Bridge reads the layers of multi-token prediction back."""
    from safetensors import safe_open

    out = runs.folder / "hf_lightning"
    runs("-m", "nano3", "export", "lightning", "--output", str(out))
    described = json.loads((out / "config.json").read_text())
    assert (described["num_nextn_predict_layers"], described["mtp_use_repeated_layer"]) == (2, True)
    names = set()
    for file in out.glob("*.safetensors"):
        with safe_open(str(file), "pt") as tensors:
            names |= set(tensors.keys())
    further = {name for name in names if name.startswith("mtp.")}
    assert {"mtp.layers.0.eh_proj.weight", "mtp.layers.1.final_layernorm.weight"} <= further
    done = runs(
        "-W", "ignore", "-c", LOAD, str(out), "def read(path):\n    with open(path) as f:\n        return f.read()\n"
    )
    assert json.loads(done.rsplit("RESULT ", 1)[1].splitlines()[0])["loss"] < 8
    words = [f"+megatron.checkpoint.pretrained_checkpoint={out}", "train.exit_iteration=1", "logger.log_interval=1"]
    train(runs, "lightning_again", *words, "optimizer.lr=1e-6", "optimizer.min_lr=0", "train.eval_interval=0")
    first, last = runs.steps("lightning_again")[1], runs.steps("lightning")[20]
    for name in ("loss", "mtp_1_loss", "mtp_2_loss"):
        assert first[name] == pytest.approx(last[name], abs=0.5), name


SCHEMAS = """
import sys
from pathlib import Path
from nano3.training.megatron import recipe, schema
from nano3.training.megatron.recipe_check import recipe_problems
for name in schema.RECIPES:
    recipe.offline_hub(name, Path(sys.argv[1]))
assert schema.versions() == dict(schema.load_bundled(schema.RECIPES[0]).versions), schema.versions()
wrong = []
for name in schema.RECIPES:
    live, recorded = schema.extract(recipe.call_recipe(name), name), schema.load_bundled(name)
    differing = [s for s in live.values if live.values[s] != recorded.values[s]]
    differing += [s for s in live.container if live.container[s] != recorded.container[s]]
    differing += [c for c, fields in live.classes.items() if dict(fields) != dict(recorded.classes[c])]
    if differing or recipe_problems(name):
        wrong.append((name, recipe_problems(name), differing))
assert not wrong, wrong
print("SAME", len(schema.RECIPES))
"""


def test_every_recorded_recipe_is_what_is_installed(tmp_path: Path) -> None:
    """Library and performance recipes, with all their values."""
    done = Runs(tmp_path)("-W", "ignore", "-c", SCHEMAS, str(tmp_path), timeout=400)
    assert f"SAME {len(schema.RECIPES)}" in done


def test_the_dense_sibling_trains(runs: Runs) -> None:
    """The recipe of Nemotron 3 Nano 4B with its layer kinds at a small size."""
    small = ["hybrid_layer_pattern=M-M*-", "hidden_size=512", "ffn_hidden_size=1024", "num_attention_heads=8"]
    small += ["kv_channels=64", "mamba_num_heads=16", "mamba_head_dim=64"]
    words = [w for w in WORDS if not w.startswith(("model=", "recipe."))]
    words += ["model=nemotron_3_nano_4b", f"recipe._target_={NANO_4B}", *(f"model.{w}" for w in small)]
    runs("-m", "nano3.pretrain", *words, "run.name=dense", "train.exit_iteration=10")
    losses = runs.losses("dense")
    assert losses[10] < losses[5] < 8.4
