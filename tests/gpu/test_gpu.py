"""The Megatron backend with the real stack: its dataclasses, its FLOPs, and its weights in transformers.

python -m pytest -m gpu -n 6 tests/gpu     # five minutes on 16 cores, longer if the kernel cache is empty
"""

import json
from pathlib import Path

import pytest
from gpu_runs import FOLLOW, MARKS, MODEL, ROOT, SPIKE, Runs

from nano3.training.megatron import schema
from nano3.training.run.metrics import read_metrics

pytestmark = MARKS


def test_a_misspelled_recipe_is_found_in_the_installed_source() -> None:
    """tests/gpu/test_gpu_lightning.py compares all recorded recipes with what is installed."""
    from nano3.training.megatron.recipe_check import recipe_problems

    assert recipe_problems(schema.RECIPES[0]) == []
    assert recipe_problems(schema.RECIPES[0] + "x")


def test_megatron_bridge_counts_the_same_work(undisturbed: Path, tmp_path: Path) -> None:
    """nano3's FLOPs per token are close to those of Megatron-Bridge, which approximates the scan."""
    from omegaconf import OmegaConf

    from nano3.config import ModelConfig, PretrainConfig
    from nano3.training.checks.model_stats import architecture_from_config, flops_per_token
    from nano3.training.dataset import open_data
    from nano3.training.megatron.backend import prepare
    from nano3.training.run.record import load_run_config

    config = load_run_config(undisturbed / "config.yaml")
    container = prepare(config, open_data(Path(config.run.data)), tmp_path)
    container.model.vocab_size = 4096  # Megatron-Bridge takes it from the tokenizer when it starts
    from megatron.bridge.training.utils.flop_utils import num_floating_point_operations

    measured = num_floating_point_operations(container, 32) / (32 * 1024)
    last = [m for m in read_metrics(undisturbed) if "loss" in m][-1]
    logged = last["tflops_per_gpu"] * 1e12 * last["seconds_per_iteration"] / (32 * 1024)
    assert logged == pytest.approx(measured, rel=0.1)
    assert {"expert_imbalance", "expert_min_load", "expert_entropy", "bits_per_byte", "seconds/data"} <= set(last)
    model = ModelConfig(**OmegaConf.load(ROOT / MODEL))
    own = architecture_from_config(PretrainConfig(model=model), schema.load_bundled(schema.RECIPES[0]), 4096)
    assert own is not None
    assert flops_per_token(own, 1024) == pytest.approx(measured, rel=0.1)


def test_both_backends_follow_each_other(runs: Runs, followed: Path) -> None:
    """20 steps with the same initial weights, data and settings in Megatron (bf16) and transformers (fp32)."""
    runs.train("follow_transformers", "backend=transformers", *FOLLOW, "train.exit_iteration=20")
    ours, theirs = runs.steps("follow_megatron"), runs.steps("follow_transformers")
    assert sorted(ours) == sorted(theirs) == list(range(1, 21))
    for i, one in ours.items():
        other = theirs[i]
        assert one["lr"] == pytest.approx(other["lr"], rel=1e-6), i
        # At this high a rate the run has a spike at iteration 12; rounding decides the order after it.
        assert one["loss"] == pytest.approx(other["loss"], abs=0.01 if i < SPIKE else 0.3), i
        if i < SPIKE:
            assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=0.03), i


GENERATE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).cuda().eval()
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer(sys.argv[2], return_tensors="pt", add_special_tokens=False)["input_ids"].cuda()
with torch.no_grad():
    loss = model(input_ids=ids, labels=ids).loss.item()
    out = model.generate(ids, max_new_tokens=24, min_new_tokens=8, do_sample=False)
print("RESULT " + json.dumps({"loss": loss, "new": out.shape[1] - ids.shape[1], "text": tokenizer.decode(out[0])}))
"""
TEXT = "def read(path):\n    with open(path) as f:\n        return f.read()\n\n\ndef write(path, text):\n    with open("


def test_the_export_generates_text_and_has_learnt(runs: Runs, undisturbed: Path) -> None:
    """`nano3 export` by the run's name; transformers alone loads it."""
    out = runs("-m", "nano3", "export", "undisturbed", "--output", "hf_generate")
    assert "from_pretrained" in out
    done = runs("-W", "ignore", "-c", GENERATE, str(runs.folder / "hf_generate"), TEXT)
    result = json.loads(done.rsplit("RESULT ", 1)[1].splitlines()[0])
    assert result["new"] >= 8
    assert result["text"].startswith("def read(path)")
    assert result["loss"] < 7, "chance is 8.3"


def test_the_export_equals_the_trained_model(runs: Runs, undisturbed: Path, tmp_path: Path) -> None:
    fresh, hf, data = str(tmp_path / "fresh"), str(tmp_path / "hf"), str(runs.folder / "data")
    runs(str(ROOT / "benchmarks/gpu/fresh.py"), str(ROOT / MODEL), data, fresh)
    done = runs(str(ROOT / "benchmarks/gpu/compare.py"), str(undisturbed), data, hf, fresh)
    results = json.loads(done.rsplit("COMPARE ", 1)[1].splitlines()[0])
    for weights in ("trained", "fresh"):
        losses = results[weights].values()
        assert max(losses) - min(losses) < 0.003, results
