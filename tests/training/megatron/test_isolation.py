"""train.document_boundaries=isolate with Megatron-Bridge, as far as it goes without a GPU: packed batches, checks."""

from pathlib import Path
from typing import Any

import pytest
from isolation_helpers import CASES, documents_of, open_samples, write_data
from megatron_helpers import NANO, QWEN, config_without_data
from training_processes import Child

from nano3.config import PretrainConfig
from nano3.training.megatron import backend
from nano3.training.megatron.isolation import isolation_problems
from nano3.training.megatron.recipe import adaptations
from nano3.training.megatron.schema import load_bundled
from nano3.training.megatron.settings import override_settings, setting_problems, typed_settings
from nano3.training.preflight import preflight

LENGTH, SAMPLES = 16, 12


def packed_batches(folder: Path, micro_batch_size: int) -> dict[str, list[dict[str, Any]]]:
    """What the model gets for each micro batch of each case, and what nano3's sample index says about it."""
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams
    from torch.utils.data import default_collate

    from nano3.training.megatron.isolation import PackedBatches, packed_params

    found: dict[str, list[dict[str, Any]]] = {}
    for name, lengths in CASES.items():
        data = write_data(folder / name, documents_of(lengths))
        dataset, expected = open_samples(data, LENGTH, SAMPLES, isolate=True)
        groups = [range(i, i + micro_batch_size) for i in range(0, SAMPLES, micro_batch_size)]
        batches = PackedBatches(iter([default_collate([dataset[i] for i in group]) for group in groups]))
        for group, batch in zip(groups, batches, strict=True):
            assert batches.documents is not None
            params = packed_params(batches.documents, torch.device("cpu"))
            bounds, tokens = params.cu_seqlens_q, batch["tokens"].numel()
            theirs = PackedSeqParams(qkv_format="thd", cu_seqlens_q=bounds, cu_seqlens_kv=bounds, total_tokens=tokens)
            assert torch.equal(params.seq_idx, theirs.seq_idx)
            assert (params.seq_idx.dtype, bounds.dtype) == (torch.int32, torch.int32)
            assert params.seq_idx.shape == batch["tokens"].shape == (1, micro_batch_size * LENGTH)
            assert params.cu_seqlens_kv is bounds
            found.setdefault(name, []).append(
                {
                    "lengths": (bounds[1:] - bounds[:-1]).tolist(),
                    "expected": [size for i in group for size in expected[i]],
                    "longest": (params.max_seqlen_q, params.max_seqlen_kv),
                    "sample": params.tokens_per_sample,
                    "document": params.seq_idx[0].tolist(),
                    **{key: batch[key][0].tolist() for key in ("tokens", "labels", "loss_mask", "position_ids")},
                    "samples": [dataset[i]["tokens"].tolist() for i in group],
                    "targets": [dataset[i]["labels"].tolist() for i in group],
                }
            )
    return found


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_a_micro_batch_becomes_one_row_of_documents(micro_batch_size: int, tmp_path: Path) -> None:
    found = Child(packed_batches, (tmp_path, micro_batch_size), tmp_path / "log.txt").result()
    assert set(found) == set(CASES)
    for name, batches in found.items():
        for got in batches:
            assert got["lengths"] == got["expected"], name
            assert got["longest"] == (max(got["lengths"]),) * 2
            assert type(got["longest"][0]) is int
            assert got["sample"] == LENGTH
            assert got["document"] == [number for number, size in enumerate(got["lengths"]) for _ in range(size)]
            assert got["position_ids"] == [position for size in got["lengths"] for position in range(size)]
            assert got["tokens"] == [token for sample in got["samples"] for token in sample]
            assert got["labels"] == [label for sample in got["targets"] for label in sample]
            assert set(got["loss_mask"]) == {1.0}


def isolated(**changes: Any) -> PretrainConfig:
    config = config_without_data("megatron", NANO)
    config.train.document_boundaries = "isolate"
    for key, value in changes.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return config


def test_the_container_gets_the_settings() -> None:
    config, known = isolated(), load_bundled(NANO)
    config.train.loss_mask.eod = True
    found = {s.path: s.value for s in typed_settings(config)}
    assert (found["dataset.inter_document_masking"], found["dataset.eod_mask_loss"]) == (True, True)
    assert setting_problems(typed_settings(config), known) == []
    assert not {"dataset.inter_document_masking", "dataset.eod_mask_loss"} & {
        s.path for s in typed_settings(config_without_data("megatron", NANO))
    }


def test_cuda_graphs_are_off_only_if_documents_are_isolated() -> None:
    values = {"model.cuda_graph_impl": "transformer_engine", "dataset.inter_document_masking": True}
    found = {s.path: s.value for s in adaptations(values.get, 1, lambda name: True)}
    assert (found["model.cuda_graph_impl"], found["model.cuda_graph_modules"]) == ("none", [])
    assert adaptations({"model.cuda_graph_impl": "transformer_engine"}.get, 1, lambda name: True) == []


@pytest.mark.parametrize(
    ("changes", "megatron", "words"),
    [
        ({"model__context_parallel_size": 2}, {}, "model.context_parallel_size=2: set model.context_parallel_size=1"),
        ({"model__pipeline_model_parallel_size": 4}, {}, "model.pipeline_model_parallel_size=4: set"),
        (
            {
                "model__sequence_parallel": True,
                "model__tensor_model_parallel_size": 2,
                "train__micro_batch_size": 2,
            },
            {},
            "model.sequence_parallel=True: set train.micro_batch_size=1",
        ),
        (
            {},
            {"model": {"cuda_graph_impl": "transformer_engine"}},
            "megatron.model.cuda_graph_impl=transformer_engine: CUDA graphs take no documents",
        ),
        ({"model__hybrid_layer_pattern": "M*E/*E"}, {}, "model.hybrid_layer_pattern=M*E/*E: leave out multi-token"),
        ({}, {"model": {"mtp_num_layers": 1}}, "megatron.model.mtp_num_layers=1: leave out multi-token"),
        ({}, {"model": {"transformer_impl": "local"}}, "transformer_impl=local: only transformer_engine"),
        (
            {},
            {"comm_overlap": {"overlap_moe_expert_parallel_comm": True}},
            "megatron.comm_overlap.overlap_moe_expert_parallel_comm=True: set it to false",
        ),
    ],
)
def test_what_cannot_be_combined_is_refused(changes: dict, megatron: dict, words: str) -> None:
    config = isolated(**changes)
    config.megatron = megatron
    (problem,) = isolation_problems(config, load_bundled(NANO))
    assert problem.startswith("train.document_boundaries=isolate is not possible with ")
    assert words in problem
    assert problem in backend.check(config)
    config.train.document_boundaries = "cross"
    assert isolation_problems(config, load_bundled(NANO)) == []


@pytest.mark.parametrize("recipe", [NANO, QWEN])
def test_the_recipes_themselves_can_be_isolated(recipe: str) -> None:
    config = isolated()
    assert isolation_problems(config, load_bundled(recipe)) == []
    config.model.tensor_model_parallel_size, config.model.sequence_parallel = 2, True
    assert isolation_problems(config, load_bundled(recipe)) == []


def test_megatrons_own_keys_are_refused_or_mean_the_same() -> None:
    known = load_bundled(NANO)
    (problem,) = setting_problems(override_settings({"dataset": {"inter_document_masking": True}}, known), known)
    assert "set by train.document_boundaries" in problem
    config = config_without_data("megatron", NANO)
    config.megatron = {"dataset": {"eod_mask_loss": True}}
    assert setting_problems(override_settings(config.megatron, known), known) == []
    assert "no loss on the first token" in dict(preflight(config).rows)["documents"]


def test_the_preflight_says_which_it_is() -> None:
    rows = dict(preflight(isolated()).rows)
    assert rows["documents"] == (
        "isolate: each sees only itself; loss also on the first token after an end-of-document token"
    )
    assert dict(preflight(config_without_data("megatron", NANO)).rows)["documents"].startswith("cross: a token sees")
    problems = preflight(isolated(train__document_boundaries="isolated")).problems
    assert any("train.document_boundaries=isolated: unknown. Did you mean 'isolate'?" in p for p in problems)
