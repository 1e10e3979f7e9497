"""The balancing of experts: megatron.core's rule, counted in training passes only, and that it balances."""

import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from training_processes import Child, losses, tiny_config

RATE = 0.01


def biases_and_rule(folder: Path) -> list[tuple[list[float], list[float]]]:
    """After each of three steps of two micro batches: our biases, and megatron.core's from the same counts."""
    import torch
    from megatron.core.transformer.moe.moe_utils import get_updated_expert_bias

    from nano3.training.hf.expert_bias import ExpertBalance
    from nano3.training.hf.model import build_model

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=0, world_size=1)
    torch.manual_seed(0)
    model = build_model(tiny_config().model, 128, 32)
    gate = next(m.gate for m in model.modules() if hasattr(m, "gate"))
    chosen: list[torch.Tensor] = []
    gate.register_forward_hook(lambda module, args, out: chosen.append(out[2]) if module.training else None)
    balance = ExpertBalance(model, RATE, lambda counts: counts)
    rule = torch.zeros(4)
    rows = []
    for _ in range(3):
        model.train()
        for _ in range(2):
            x = torch.randint(0, 128, (2, 32))
            model(input_ids=x)
        model.eval()
        with torch.no_grad():
            model(input_ids=x)
        counts = torch.bincount(torch.cat([c.flatten() for c in chosen]), minlength=4).float()
        rule = get_updated_expert_bias(counts, rule, RATE, torch.distributed.group.WORLD)
        balance.update()
        rows.append((gate.e_score_correction_bias.tolist(), rule.tolist()))
        chosen.clear()
    return rows


def test_biases_follow_megatrons_rule(tmp_path: Path) -> None:
    rows = Child(biases_and_rule, (tmp_path,), tmp_path / "log.txt").result()
    for ours, theirs in rows:
        assert ours == pytest.approx(theirs)
    assert any(rows[-1][0])


def imbalance(rate: float, steps: int) -> list[float]:
    """Largest over mean load after each step on the same tokens, the weights standing still, one expert favoured."""
    import torch

    from nano3.training.hf.expert_bias import ExpertBalance
    from nano3.training.hf.model import build_model
    from nano3.training.run.expert_load import load_metrics

    torch.manual_seed(0)
    model = build_model(replace(tiny_config().model, num_moe_experts=8), 128, 32).train()
    gate = next(m.gate for m in model.modules() if hasattr(m, "gate"))
    gate.e_score_correction_bias[0] = 0.1
    balance = ExpertBalance(model, rate, lambda counts: counts)
    x = torch.randint(0, 128, (8, 32))
    loads = []
    for _ in range(steps):
        model(input_ids=x)
        loads.append(load_metrics(balance.update(), 0)["expert_imbalance"])
    return loads


def test_load_evens_out(tmp_path: Path) -> None:
    loads = Child(imbalance, (0.004, 30), tmp_path / "log.txt").result()
    assert loads[0] > 3
    assert max(loads[-5:]) < 2


def test_no_experts_no_balance(tmp_path: Path) -> None:
    assert Child(update_dense, (), tmp_path / "log.txt").result() is None


def update_dense() -> object:
    from nano3.training.hf.expert_bias import ExpertBalance
    from nano3.training.hf.model import build_model

    dense = build_model(replace(tiny_config().model, hybrid_layer_pattern="*-"), 128, 32)
    return ExpertBalance(dense, RATE, lambda counts: counts).update()


@pytest.mark.slow
def test_the_quickstart_is_balanced_from_the_start(tmp_path: Path) -> None:
    """Two of eight experts took every token with an init_method_std of 0.02 and a rate of 0.001: 4.0, entropy 0.3."""
    env = {**os.environ, "NANO3_HOME": str(tmp_path / "home")}
    run = tmp_path / "run"
    for words in (
        ["nano3.data_prep", "data_blend=sample", "output_dir=data"],
        [
            "nano3.pretrain",
            "+experiment=quickstart",
            "run.data=data",
            f"run.output_dir={run}",
            "train.exit_iteration=30",
        ],
    ):
        subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, env=env, check=True, capture_output=True)
    lines = [line for line in losses(run) if "expert_imbalance" in line]
    assert statistics.mean(line["expert_imbalance"] for line in lines) < 3
    assert statistics.mean(line["expert_entropy"] for line in lines) > 0.7
