"""train.document_boundaries and train.loss_mask with Megatron-Bridge on a GPU, on documents of up to 200 tokens."""

import json
from pathlib import Path

import pytest
from gpu_runs import FOLLOW, MARKS, MICRO, ROOT, Runs, made_once

from nano3.training.run.metrics import read_metrics

pytestmark = MARKS
# Eight samples of 512 tokens have about 30 documents, each of which is a forward pass of the transformers backend.
SMALL = ["run.data=short", "train.seq_length=512", "train.global_batch_size=8"]
ISOLATE, MASK = "train.document_boundaries=isolate", "train.loss_mask.eod=true"
STEPS, SMOOTH = 11, "optimizer.lr=3e-4"  # at this rate the gradient does not spike


@pytest.fixture(scope="module")
def short(runs: Runs) -> Path:
    """The bundled corpus with documents of at most 200 tokens, in the folder of the runs."""
    with made_once(runs.folder, "short") as wanted:
        if wanted:
            words = [
                "data_blend=sample",
                "data_blend.name=short",
                "output_dir=short",
                "valid_fraction=0.05",
                "max_doc_tokens=200",
            ]
            runs("-m", "nano3.data_prep", *words, timeout=300)
    return runs.folder / "short"


def train(runs: Runs, weights: Path, name: str, *words: str) -> None:
    initial = [] if "backend=transformers" in words else [f"+megatron.checkpoint.pretrained_checkpoint={weights}"]
    runs.train(name, *SMALL, *FOLLOW, SMOOTH, f"train.exit_iteration={STEPS}", *initial, *words)


def agree(runs: Runs, one: str, other: str, loss: float = 0.02, norm: float = 0.03) -> None:
    """Assert that two runs have the same losses; with `cross`, both backends are up to 0.0136 apart at step 3, too."""
    a, b = runs.steps(one), runs.steps(other)
    assert sorted(a) == sorted(b) == list(range(1, STEPS + 1))
    for i in a:
        assert a[i]["loss"] == pytest.approx(b[i]["loss"], abs=loss), (one, other, i)
        assert a[i]["grad_norm"] == pytest.approx(b[i]["grad_norm"], rel=norm), (one, other, i)


@pytest.mark.parametrize("words", [(ISOLATE,), (ISOLATE, MASK), (MASK,)], ids=["isolate", "isolate_mask", "mask"])
def test_both_backends_follow_each_other(
    runs: Runs, first_weights: Path, short: Path, words: tuple[str, ...], request: pytest.FixtureRequest
) -> None:
    """The same weights, samples and settings in Megatron (bf16, packed) and transformers (fp32, a document a pass)."""
    kind = request.node.callspec.id
    train(runs, first_weights, f"{kind}_megatron", *words)
    train(runs, first_weights, f"{kind}_transformers", "backend=transformers", *words)
    agree(runs, f"{kind}_megatron", f"{kind}_transformers")


def test_the_micro_batch_size_does_not_matter(runs: Runs, first_weights: Path, short: Path) -> None:
    """One sample in a row, or eight."""
    for size in (1, 8):
        train(runs, first_weights, f"isolate_{size}", ISOLATE, f"train.micro_batch_size={size}")
    agree(runs, "isolate_1", "isolate_8", loss=0.003)


def test_an_isolated_run_validates_stops_and_resumes(runs: Runs, short: Path) -> None:
    """The losses differ from those of `cross`, and a resume must not change the boundaries."""
    text = runs.train("isolated", *SMALL, ISOLATE, "train.exit_iteration=20")
    assert "adapted model.cuda_graph_impl=none: train.document_boundaries=isolate" in text
    refused = runs.train("isolated", *SMALL, code=2)
    assert "train.document_boundaries: isolate in the checkpoint, now cross" in refused
    assert "resuming from iteration 20" in runs.train("isolated", *SMALL, ISOLATE)
    valid = {m["iteration"]: m for m in read_metrics(runs.dir("isolated")) if "valid_loss" in m}
    assert valid[40]["valid_loss"] < valid[20]["valid_loss"]
    assert {"valid_loss/docs", "valid_loss/code", "valid_loss/math"} <= set(valid[40])


def test_what_cannot_be_isolated_is_refused(runs: Runs, short: Path) -> None:
    words = ["model.context_parallel_size=2", "+megatron.model.cuda_graph_impl=transformer_engine"]
    text = runs.train("refused", *SMALL, ISOLATE, *words, code=2)
    assert text.count("train.document_boundaries=isolate is not possible with") == 2


def test_a_dense_model_with_rotary_positions_is_isolated_too(runs: Runs, short: Path) -> None:
    shape = ["hidden_size=512", "ffn_hidden_size=1536", "num_attention_heads=8", "num_query_groups=2", "kv_channels=64"]
    words = [w for w in MICRO if not w.startswith("model=")] + [f"model.{w}" for w in shape]
    words += ["model=recipe", "recipe._target_=megatron.bridge.recipes.qwen.qwen3.qwen3_8b_pretrain_config"]
    words += ["+megatron.model.num_layers=2", "run.name=qwen_isolated", *SMALL, ISOLATE, "train.eval_interval=0"]
    runs.finish(runs.popen("-m", "nano3.pretrain", *words))
    losses = runs.losses("qwen_isolated")
    assert losses[40] < losses[5] - 0.5


def test_a_documents_loss_does_not_depend_on_its_neighbor(runs: Runs, undisturbed: Path, tmp_path: Path) -> None:
    """A trained model: one document beside three others, in rows of one and of two samples, and alone."""
    hf, data = tmp_path / "hf", str(runs.folder / "data")
    done = runs(str(ROOT / "benchmarks/gpu/neighbors.py"), str(undisturbed), data, str(hf))
    result = json.loads(done.rsplit("NEIGHBORS ", 1)[1].splitlines()[0])
    assert result["isolate"] < 0.1, "the largest difference of any token's loss, in nats; logits are bf16"
    assert result["alone"] < 0.3, "against the document alone, which other kernels compute"
    assert result["cross"] > max(0.1, 3 * result["isolate"]), "without isolation, the neighbor matters"
