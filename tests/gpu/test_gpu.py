"""The Megatron backend on a real GPU with the real stack; skipped where either is missing.

python -m pytest -m gpu tests/gpu     # about ten minutes on a machine whose Triton cache is cold
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nano3.training import schema
from nano3.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STACK = importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("transformer_engine") is not None
MICRO = [
    "conf/model/nemotron_3_nano_micro.yaml",
    "train.seq_length=1024",
    "train.micro_batch_size=8",
    "train.global_batch_size=32",
    "train.train_iters=40",
    "train.eval_interval=20",
    "train.eval_iters=3",
    "optimizer.lr=2e-3",
    "scheduler.lr_warmup_iters=5",
    "scheduler.lr_wsd_decay_iters=10",
    "logger.log_interval=5",
    "checkpoint.save_interval=10",
]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not STACK, reason="Megatron-Bridge is not installed"),
]


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled corpus, prepared by nano3 itself."""
    if not has_gpu():
        pytest.skip("no GPU")
    folder = tmp_path_factory.mktemp("data") / "sample"
    command = [
        sys.executable,
        "-m",
        "nano3.data_prep",
        "data_blend=sample",
        f"output_dir={folder}",
        "valid_fraction=0.05",
    ]
    sample = ROOT / "nano3" / "sample" / "tokenizer"
    subprocess.run([*command, f"tokenizer_model={sample}", "num_shards=6"], cwd=ROOT, check=True, timeout=300)
    return folder


def start(run_dir: Path, data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "benchmarks/gpu/train.py", str(run_dir), str(data_dir), *MICRO, *arguments]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    text, _ = process.communicate(timeout=600)
    return process.returncode, text


def wait_for(run_dir: Path, iteration: int, process: subprocess.Popen[str]) -> None:
    """Until the run has logged `iteration`."""
    for _ in range(3000):
        if process.poll() is not None or any(m["iteration"] >= iteration for m in read_metrics(run_dir)):
            return
        time.sleep(0.2)


@pytest.mark.parametrize("recipe", schema.RECIPES)
def test_the_recorded_schema_is_what_is_installed(recipe: str, tmp_path: Path) -> None:
    script = f"""
from pathlib import Path
from nano3.training import recipe, schema
recipe.offline_hub({recipe!r}, Path({str(tmp_path)!r}))
live, recorded = schema.record(recipe.call_recipe({recipe!r}), {recipe!r}), schema.recorded({recipe!r})
assert schema.versions() == dict(recorded.versions), (schema.versions(), recorded.versions)
assert dict(live.container) == dict(recorded.container)
differing = [name for name, fields in live.classes.items() if dict(fields) != dict(recorded.classes[name])]
assert not differing, differing
"""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=ROOT, env=environment, timeout=400)


def test_killed_and_resumed_it_reaches_the_same_losses(data_dir: Path, tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    process = start(disturbed, data_dir)
    wait_for(disturbed, 15, process)
    process.kill()
    process.communicate()
    process = start(disturbed, data_dir)
    wait_for(disturbed, 25, process)
    process.send_signal(signal.SIGUSR2)
    code, text = finish(process)
    assert code == 75 and "resuming from iteration 10" in text
    assert finish(start(disturbed, data_dir))[0] == 0
    assert "nothing to do" in finish(start(disturbed, data_dir))[1]
    assert finish(start(undisturbed, data_dir))[0] == 0
    first, second = (
        {m["iteration"]: m["loss"] for m in read_metrics(r) if "loss" in m} for r in (disturbed, undisturbed)
    )
    assert sorted(first) == sorted(second) == list(range(5, 41, 5))
    assert first[40] < 5.5 < first[5]
    # Megatron's default kernels are not deterministic: two undisturbed runs differ by some thousandths too.
    assert all(abs(first[i] - second[i]) < 0.03 for i in first)


def test_a_diverging_run_says_so(data_dir: Path, tmp_path: Path) -> None:
    code, text = finish(
        start(tmp_path / "run", data_dir, "optimizer.lr=1e30", "optimizer.clip_grad=0", "checkpoint.save_interval=0")
    )
    assert code == 1
    assert "Failure: Training diverged at iteration" in text
    assert "Traceback" not in text


def test_megatron_bridge_counts_the_same_work(data_dir: Path, tmp_path: Path) -> None:
    """nano3's FLOPs per token against the figure behind Megatron-Bridge's throughput, which counts the scan more
    coarsely."""
    from omegaconf import OmegaConf

    from nano3.config import ModelConfig, PretrainConfig
    from nano3.training.architecture import flops_per_token, from_config

    assert finish(start(tmp_path / "run", data_dir, "checkpoint.save_interval=0"))[0] == 0
    last = [m for m in read_metrics(tmp_path / "run") if "loss" in m][-1]
    told = last["tflops_per_gpu"] * 1e12 * last["seconds_per_iteration"] / (32 * 1024)
    model = ModelConfig(**OmegaConf.load(ROOT / MICRO[0]))
    own = from_config(PretrainConfig(model=model), schema.recorded(schema.RECIPES[0]), 4096)
    assert own is not None
    assert flops_per_token(own, 1024) == pytest.approx(told, rel=0.1)


def test_the_export_equals_the_trained_model(data_dir: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    assert finish(start(tmp_path / "run", data_dir))[0] == 0
    fresh, hf = str(tmp_path / "fresh"), str(tmp_path / "hf")
    subprocess.run(
        [sys.executable, "benchmarks/gpu/fresh.py", MICRO[0], str(data_dir), fresh],
        cwd=ROOT,
        env=environment,
        check=True,
    )
    command = [sys.executable, "benchmarks/gpu/compare.py", str(tmp_path / "run"), str(data_dir), hf, fresh]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True, timeout=400)
    results = json.loads(done.stdout.rsplit("COMPARE ", 1)[1].splitlines()[0])
    for weights in ("trained", "fresh"):
        losses = results[weights].values()
        assert max(losses) - min(losses) < 0.003, results
