"""train.document_boundaries and train.loss_mask in the transformers backend."""

import math
from pathlib import Path
from typing import Any

import pytest
from isolation_helpers import CASES, EOD, documents_of, open_samples, write_data
from training_processes import Child, losses, start_ranks, tiny_config, train_here

from nano3.training.hf.backend import mutable_settings, run_identity
from nano3.training.hf.batch import plan_batches
from nano3.training.run.outcome import no_hook
from nano3.training.run.resume import ResumePoint

LENGTH = 16
ISOLATE = {"train.document_boundaries": "isolate"}


def passes_and_index(folder: Path) -> dict[str, list[tuple[list[list[int]], list[int], list[int]]]]:
    """For each case and micro batch of three samples: the passes' tokens, the index's lengths, the samples' tokens."""
    from nano3.training.hf.datasets import collate, split_into_passes

    found: dict[str, list[Any]] = {}
    for name, lengths in CASES.items():
        dataset, expected = open_samples(write_data(folder / name, documents_of(lengths)), LENGTH, 12, isolate=True)
        for first in range(0, 12, 3):
            batch = split_into_passes(collate(dataset, range(first, first + 3)), isolate=True, masked=False)
            tokens = [inputs["input_ids"][0].tolist() for inputs in batch.passes]
            whole = [token for i in range(first, first + 3) for token in dataset[i]["tokens"].tolist()]
            sizes = [size for sample in expected[first : first + 3] for size in sample]
            found.setdefault(name, []).append((tokens, sizes, whole))
    return found


def test_each_document_of_a_sample_is_a_pass(tmp_path: Path) -> None:
    """The lengths are those of nano3's own reading of the sample index; no token is lost or added."""
    found = Child(passes_and_index, (tmp_path,), tmp_path / "log.txt").result()
    assert set(found) == set(CASES)
    for name, batches in found.items():
        for tokens, sizes, whole in batches:
            assert [len(one) for one in tokens] == sizes, name
            assert [token for one in tokens for token in one] == whole, name
    assert max(len(tokens) for tokens, *_ in found["documents of one token"]) == 3 * LENGTH


def planned_bounds(data: Path, folder: Path) -> list[tuple[list[int], list[int]]]:
    """The tokens and the first tokens of the documents of each sample of a run in nano3's order."""
    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder, document_bounds
    from nano3.training.order.budgets import make_plan

    opened = open_data(data)
    config = tiny_config(**{"train.sample_order": "nano3"})
    plan = make_plan(config, opened, None, 0)
    dataset = DatasetBuilder(opened, 32, 1234, folder, isolate=True).train(48, plan)
    rows = [dataset[i] for i in range(48)]
    return [(row["tokens"].tolist(), [first for first, _ in document_bounds(row["cu_seqlens"])]) for row in rows]


def test_samples_in_nano3s_order_have_bounds_too(data: Path, tmp_path: Path) -> None:
    """Every document of this data ends with the token, so a document starts after each one."""
    rows = Child(planned_bounds, (data, tmp_path), tmp_path / "log.txt").result()
    for tokens, firsts in rows:
        assert firsts == [0, *(i + 1 for i, token in enumerate(tokens[:-1]) if token == EOD)]
    assert any(len(firsts) > 1 for _, firsts in rows)


def document_losses(document: list[int], neighbor: list[int], first: bool, isolate: bool) -> list[float]:
    """The losses of a document's predictions beside a neighbor in one sample, except that of the neighbor's token."""
    import torch

    from nano3.training.hf.datasets import split_into_passes
    from nano3.training.hf.model import build_model

    torch.manual_seed(0)
    model = build_model(tiny_config().model, 4096, 64)
    row = torch.tensor([document + neighbor if first else neighbor + document])
    begin = 0 if first else len(neighbor)
    bounds = {"cu_seqlens": torch.tensor([[0, len(document) if first else len(neighbor), row.numel(), row.numel()]])}
    inputs = {"input_ids": row, "labels": row, "shift_labels": row.roll(-1)}
    batch = split_into_passes(inputs | (bounds if isolate else {}), isolate, masked=False)
    found = []
    for one in batch.passes:
        logits = model(input_ids=one["input_ids"]).logits[0]
        found.append(torch.nn.functional.cross_entropy(logits, one["shift_labels"][0], reduction="none"))
    return [float(loss) for loss in torch.cat(found)[begin : begin + len(document) - 1]]


def neighbors(isolate: bool) -> list[list[list[float]]]:
    """The losses of one document beside five neighbors of four lengths, as the first and as the second document."""
    (document, *others) = documents_of([21, 11, 11, 1, 40, 27])
    return [[document_losses(document, other, first, isolate) for other in others] for first in (True, False)]


def test_a_documents_loss_does_not_depend_on_its_neighbor(tmp_path: Path) -> None:
    """To the last bit. With `cross`, a document after another one depends on it."""
    isolated = Child(neighbors, (True,), tmp_path / "isolate.txt").result()
    assert all(one == isolated[0][0] for position in isolated for one in position)
    _, second = Child(neighbors, (False,), tmp_path / "cross.txt").result()
    assert all(one[0] != other[0] for i, one in enumerate(second) for other in second[:i])


def without_bounds() -> None:
    import torch

    from nano3.training.hf.datasets import split_into_passes

    row = torch.tensor([[3, 4, EOD]])
    split_into_passes({"input_ids": row, "labels": row, "shift_labels": row}, isolate=True, masked=False)


def test_samples_without_bounds_are_never_taken_as_one_document(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="cu_seqlens"):
        Child(without_bounds, (), tmp_path / "log.txt").result()


def one_step(config: Any, folder: Path, lengths: list[int]) -> tuple[float, list[list[float]], list[float]]:
    """Loss, tokens of each expert and gradient norms of the parameters, of the first step."""
    from nano3.training.hf.components import RunInputs, assemble

    opened = write_data(folder / "data", documents_of(lengths))
    plan = plan_batches(config.train.global_batch_size, config.train.micro_batch_size, 1)
    identity, settings = run_identity(config, opened), mutable_settings(config)
    loop = assemble(RunInputs(config, opened, plan, folder / "run", ResumePoint(), 1, identity, settings, no_hook))
    norms: list[float] = []
    loop.parts.optimizer.zero_grad = lambda: norms.extend(
        float(p.grad.norm()) for p in loop.parts.model.parameters() if p.grad is not None
    )
    step = loop.step()
    assert step.expert_counts is not None
    return step.loss, step.expert_counts.tolist(), norms


def first_step(folder: Path, lengths: list[int], **changes: Any) -> tuple[float, list[list[float]], list[float]]:
    config = tiny_config(**{"train.eval_interval": 0, "optimizer.clip_grad": 0.0, **changes})
    found: tuple[float, list[list[float]], list[float]]
    found = Child(one_step, (config, folder, lengths), folder / "log.txt").result()
    return found


def test_experts_count_every_token_once_and_no_padding(tmp_path: Path) -> None:
    """Four samples of 32 tokens, two experts per token, one MoE layer."""
    for name, changes in {"isolate": ISOLATE, "cross": {}}.items():
        _, counts, _ = first_step(tmp_path / name, CASES["mixed"], **changes)
        assert [sum(layer) for layer in counts] == [4 * 32 * 2]


def test_samples_of_one_document_train_alike_in_both(tmp_path: Path) -> None:
    loss, counts, norms = first_step(tmp_path / "cross", [600])
    isolated = first_step(tmp_path / "isolate", [600], **ISOLATE)
    assert isolated[0] == pytest.approx(loss, abs=1e-6)
    assert isolated[1] == counts
    assert isolated[2] == pytest.approx(norms, rel=1e-4)


def test_micro_batch_size_does_not_matter_much(tmp_path: Path) -> None:
    one = first_step(tmp_path / "1", CASES["mixed"], **ISOLATE, **{"train.micro_batch_size": 1})
    four = first_step(tmp_path / "4", CASES["mixed"], **ISOLATE, **{"train.micro_batch_size": 4})
    assert one[0] == pytest.approx(four[0], abs=1e-6)
    assert one[1] == four[1]
    assert one[2] == pytest.approx(four[2], rel=1e-4)


def masked_labels(folder: Path) -> list[tuple[list[int], list[int]]]:
    from nano3.training.hf.datasets import collate

    dataset, _ = open_samples(write_data(folder, documents_of(CASES["mixed"])), LENGTH, 12, mask_eod=True)
    batch = collate(dataset, range(12))
    return list(zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True))


def test_no_loss_follows_an_end_of_document_token(tmp_path: Path) -> None:
    """The end-of-document token itself is learned."""
    rows = Child(masked_labels, (tmp_path,), tmp_path / "log.txt").result()
    for tokens, labels in rows:
        assert [label == -100 for label in labels] == [token == EOD for token in tokens]
    assert any(EOD in labels for _, labels in rows)


@pytest.mark.parametrize("boundaries", ["cross", "isolate"])
def test_the_loss_is_the_mean_over_the_predictions_that_count(boundaries: str, tmp_path: Path) -> None:
    """Untrained, every prediction has nearly the same loss, so a wrong divisor shows."""
    changes = {"train.document_boundaries": boundaries, "train.loss_mask.eod": True, "train.micro_batch_size": 1}
    loss, *_ = first_step(tmp_path / "masked", [1, 2, 3, 1, 1, 5, 2] * 40, **changes)
    assert loss == pytest.approx(math.log(4096), abs=0.05)
    loss, _, norms = first_step(tmp_path / "all", [1] * 300, **changes)
    assert loss == 0
    assert set(norms) == {0.0}


def test_two_ranks_train_as_one_does(data: Path, tmp_path: Path) -> None:
    changes = {**ISOLATE, "train.loss_mask.eod": True, "train.micro_batch_size": 1}
    config = tiny_config(**changes)
    train_here(config, data, tmp_path / "one")
    for child in start_ranks(config, data, tmp_path / "two", 2):
        assert child.result().status == "finished"
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert [line["iteration"] for line in one] == [line["iteration"] for line in two]
    for a, b in zip(one, two, strict=True):
        key = "loss" if "loss" in a else "valid_loss"
        assert b[key] == pytest.approx(a[key], abs=1e-5)
