"""Runs in nano3's own order: killed, resumed, on several ranks and with a changed mixture they read what is planned."""

import json
import shutil
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_tool
from training_processes import Child, losses, start_ranks, tiny_config, train_here, wait_for_iteration

from nano3.config import PrepOptions, PretrainConfig, SourceConfig
from nano3.data.build.run import prepare
from nano3.data.dataset.manifest import load_manifest
from nano3.tools.report import mixture_section
from nano3.tools.rerun import warn_changed_mixture
from nano3.training.checks.value_checks import value_problems
from nano3.training.dataset import open_data
from nano3.training.order.plan import OrderPlan, read_plan
from nano3.training.preflight import preflight
from nano3.training.run.batch_documents import document_reads, document_spans, open_sample_index, samples_per_iteration
from nano3.training.run.metrics import read_metrics
from nano3.training.run.record import DataReference, save_run_config
from nano3.training.run.resume import ResumePoint, plan_order
from nano3.training.run.skips import ROLLED_BACK, SkippedRange, read_skips
from nano3.utils.errors import UserError

STAGES = [
    {"until": "50%", "blend": {"docs": 2, "code": {"tokens": 300}}},
    {"until": "75%", "blend": {"math": 1, "docs": 1}},
    {"blend": {"code": 1, "docs": {"weight": 1, "max_epochs": 2}}},
]
CHANGED = [{"until": 8, "blend": {"docs": 1}}, {"blend": {"math": 3, "code": 1}}]


def planned(mixture: list[Any] = STAGES, **changes: Any) -> PretrainConfig:
    return tiny_config(**{"train.sample_order": "nano3", "train.mixture": mixture, "train.eval_interval": 0, **changes})


def saved(config: PretrainConfig, data: Path, folder: Path) -> PretrainConfig:
    """Record a start of the run, for the tools."""
    config.run.data, config.recipe.per_split_data_args_path = str(data), str(data / "blend.json")
    save_run_config(folder, config, DataReference(str(data), str(data), load_manifest(data).content), [])
    return config


def hashes(folder: Path) -> dict[int, int]:
    return {line["iteration"]: line["data_hash"] for line in read_metrics(folder) if "data_hash" in line}


def trace(folder: Path, *words: object) -> tuple[int, str, str]:
    return run_tool("trace", folder, *words)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run over three stages; read-only."""
    folder = tmp_path_factory.mktemp("planned") / "run"
    saved(planned(), data, folder)
    train_here(planned(), data, folder)
    return folder


def test_a_stop_in_a_stage_changes_nothing(data: Path, whole: Path, tmp_path: Path) -> None:
    for limit in (3, 7, None):
        train_here(planned(**{"train.exit_iteration": limit}), data, tmp_path)
    assert losses(tmp_path) == losses(whole)
    plan, last = read_plan(whole), [line for line in read_metrics(tmp_path) if "loss" in line][-1]
    assert plan and {key: value for key, value in last.items() if key.startswith("epochs/")} == plan.epoch_metrics(12)
    assert read_plan(tmp_path) == read_plan(whole)
    log = (tmp_path / "log.txt").read_text()
    assert "stage 2 of 3, iterations 7 to 9: " in log and "docs 50.0%" in log and "math 50.0%" in log


@pytest.mark.slow
def test_any_number_of_ranks_reads_the_same_tokens(data: Path, tmp_path: Path) -> None:
    changes = {"train.global_batch_size": 42, "train.micro_batch_size": 1, "train.train_iters": 4}
    changes |= {"scheduler.lr_warmup_iters": 1, "scheduler.lr_wsd_decay_iters": 1}
    config = planned([{"until": 2, "blend": {"docs": 1, "code": 2}}, {"blend": {"math": 1}}], **changes)
    train_here(config, data, tmp_path / "1")
    one = hashes(tmp_path / "1")
    assert len(one) == 4
    for ranks in (2, 3, 7):
        for child in start_ranks(config, data, tmp_path / str(ranks), ranks):
            child.result()
        assert hashes(tmp_path / str(ranks)) == one


@pytest.mark.slow
def test_kills_with_any_number_of_ranks_lose_and_repeat_nothing(data: Path, tmp_path: Path) -> None:
    """SIGKILL of 1, 3 and 7 ranks at some iteration; two ranks finish. Each step was fed what one quiet rank reads."""
    changes = {"train.global_batch_size": 42, "train.micro_batch_size": 1, "train.train_iters": 8}
    changes |= {"checkpoint.save_interval": 2}
    config = planned([{"until": 3, "blend": {"docs": 1, "code": 2}}, {"blend": {"math": 1, "docs": 1}}], **changes)
    train_here(config, data, tmp_path / "quiet")
    for ranks, last in ((1, 1), (3, 3), (7, 5)):
        children = start_ranks(config, data, tmp_path / "killed", ranks)
        wait_for_iteration(tmp_path / "killed", last, children[0])
        for child in children:
            child.process.kill()
        for child in children:
            child.process.join()
    for child in start_ranks(config, data, tmp_path / "killed", 2):
        child.result()
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "quiet") and len(hashes(tmp_path / "quiet")) == 8
    assert read_plan(tmp_path / "killed") == read_plan(tmp_path / "quiet")


def test_two_ranks_read_the_same_tokens(data: Path, whole: Path, tmp_path: Path) -> None:
    config = planned(**{"train.micro_batch_size": 1, "train.exit_iteration": 8})
    for child in start_ranks(config, data, tmp_path, 2):
        child.result()
    assert hashes(tmp_path) == {i: h for i, h in hashes(whole).items() if i <= 8}


def read_inputs(plan: dict[str, Any], data: Path, samples: range) -> list[tuple[list[int], list[int]]]:
    """Inputs as Megatron's GPTDataset makes them, and as the stream has them."""
    from nano3.training.dataset import open_data
    from nano3.training.hf.datasets import DatasetBuilder
    from nano3.training.order.streams import Streams

    order = OrderPlan.from_json(plan)
    dataset = DatasetBuilder(open_data(data), order.seq_length, 1, Path("/nowhere")).train(0, order)
    streams = Streams(order, data)
    assert len(dataset) == order.stages[-1].end * order.global_batch_size
    for sample in samples:
        assert dataset[sample]["labels"][:-1].tolist() == dataset[sample]["tokens"][1:].tolist()
        assert dataset[sample]["labels"][-1].item() == streams.read(sample)[-1]
    return [(dataset[sample]["tokens"].tolist(), streams.read(sample)[:-1].tolist()) for sample in samples]


def test_megatrons_dataset_makes_the_samples_of_the_stream(data: Path, whole: Path, tmp_path: Path) -> None:
    plan = read_plan(whole)
    assert plan
    pairs = Child(read_inputs, (plan.to_json(), data, range(48)), tmp_path / "log.txt").result()
    assert len(pairs) == 48 and all(made == expected and len(made) == 32 for made, expected in pairs)


def test_the_mixture_changes_from_the_resumed_iteration_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Datasets continue where they were; the earlier stages stay in the record, and the change is logged once."""
    train_here(planned(**{"train.exit_iteration": 5}), data, tmp_path)
    before = read_plan(tmp_path)
    saved(planned(CHANGED), data, tmp_path)
    sentence = "the mixture changes after iteration 5"
    for dry_run in (False, True):
        capsys.readouterr()
        found = preflight(replace(ready(planned(CHANGED), data, tmp_path), dry_run=dry_run))
        assert any(sentence in warning for warning in found.warnings) == dry_run and not capsys.readouterr().err
    train_here(planned(CHANGED), data, tmp_path)
    after, log = read_plan(tmp_path), (tmp_path / "log.txt").read_text()
    assert before and after
    assert [(stage.first, stage.end) for stage in after.stages] == [(0, 5), (5, 8), (8, 12)]
    assert after.consumed(5) == {
        **before.consumed(5),
        **dict.fromkeys(after.datasets.keys() - before.datasets.keys(), 0),
    }
    assert log.count(sentence) == 1 and "train.mixture was" in log
    read = [after.locate(sample) for sample in range(48)]
    assert read[:20] == [before.locate(sample) for sample in range(20)]
    assert {name for name, _ in read[20:32]} == {"docs"} and Counter(n for n, _ in read[32:]) == {"math": 12, "code": 4}
    for name in ("docs", "code", "math"):
        positions = sorted(position for one, position in read if one == name)
        assert positions == list(range(len(positions)))
    code, output, errors = trace(tmp_path, "--audit", "--all")
    assert code == 0, errors
    assert "12 hashes of 12 iterations, the last one 12: all as planned" in output
    warn_changed_mixture(tmp_path)
    assert "was resumed with another mixture or length, which a rerun cannot repeat" in capsys.readouterr().err


def test_a_run_that_goes_back_before_a_skip_with_another_mixture_says_so_once(data: Path, tmp_path: Path) -> None:
    """The recorded iterations stay left out, but have other samples then."""
    skips = {"train.skip_iterations": [[6, 6]]}
    train_here(planned(**skips, **{"train.exit_iteration": 8}), data, tmp_path)
    read_skips(tmp_path).with_range(SkippedRange(7, 7, ROLLED_BACK)).write(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints/iter_0000008")
    shown = []
    for mixture, limit in ((STAGES, 5), (CHANGED, 5), (CHANGED, None)):
        (tmp_path / "log.txt").unlink()
        train_here(planned(mixture, **skips, **{"train.exit_iteration": limit}), data, tmp_path)
        shown.append((tmp_path / "log.txt").read_text())
        shutil.rmtree(tmp_path / "checkpoints/iter_0000005", ignore_errors=True)
    assert "skipped.json names" not in shown[0] + shown[2] and shown[1].count("skipped.json names") == 1
    assert "6 (train.skip_iterations); 7 (guard rollback). They stay left out" in shown[1]
    assert [str(one) for one in read_skips(tmp_path).ranges] == ["6 (train.skip_iterations)", "7 (guard rollback)"]


def test_an_order_cannot_change_on_a_resume(data: Path, whole: Path, tmp_path: Path) -> None:
    train_here(planned(**{"train.exit_iteration": 4}), data, tmp_path)
    with pytest.raises(UserError, match=r"train\.sample_order: nano3 in the checkpoint, now megatron"):
        train_here(tiny_config(**{"train.eval_interval": 0}), data, tmp_path)


def test_megatrons_order_has_no_plan_and_is_audited_too(data: Path, tmp_path: Path) -> None:
    config = saved(tiny_config(), data, tmp_path)
    train_here(tiny_config(), data, tmp_path)
    assert not (tmp_path / "order.json").exists()
    index = open_sample_index(config, tmp_path, data)
    counts = [samples_per_iteration(index, data, name, 4) for name in ("docs", "code", "math")]
    assert np.sum(counts, axis=0).tolist() == [4] * 12
    datasets = {shard.prefix: shard.dataset for shard in load_manifest(data).shards}
    first = [datasets[span.shard] for span in document_spans(index, data, range(4), 4)]
    assert {name for name, n in zip(("docs", "code", "math"), counts, strict=True) if n[0]} == set(first)
    code, output, errors = trace(tmp_path, "--dataset", "docs")
    assert code == 0 and "epochs since the start" in output, errors
    code, output, errors = trace(tmp_path, "--audit")
    assert code == 0, errors
    assert "12 hashes of 12 iterations, the last one 12: all as planned" in output


def test_documents_are_traced_both_ways(data: Path, whole: Path) -> None:
    """Every span of the run is among the reads of its document, and there are no others."""
    config = planned(**{"run.data": str(data)})
    index = open_sample_index(config, whole, data)
    spans: dict[tuple[Path, str, int], list[tuple[int, int, int]]] = {}
    for sample in range(48):
        for span in document_spans(index, data, range(sample, sample + 1), 1000):
            spans.setdefault(span.key, []).append((sample, span.start, span.stop))
    for shard in load_manifest(data).shards:
        if shard.split == "train":
            for document in range(shard.documents):
                found = document_reads(index, data, shard.prefix, document)
                expected = sorted(spans.get((data, shard.prefix, document), []))
                assert [(read.sample, read.start, read.stop) for read in found] == expected
    (_, shard, document), reads = next((key, found) for key, found in spans.items() if len(found) > 1)
    code, output, errors = trace(whole, "--document", f"{shard}:{document}")
    assert code == 0, errors
    assert f"reads: {len(reads)}; trained on {sum(stop - start for _, start, stop in reads):,} tokens" in output
    code, output, errors = trace(whole, "--iteration", 1, "--no-sources")
    assert code == 0 and "samples 0 to 3 of the run" in output, errors


def test_a_text_and_a_dataset_are_traced(data: Path, whole: Path) -> None:
    """Which documents have the text is known from the documents; which iterations read a dataset, from the plan."""
    from nano3.data.dataset.indexed import IndexedFile
    from nano3.tools.inspect_data import load_tokenizer

    tokenizer = load_tokenizer(data / load_manifest(data).tokenizer.path / "tokenizer.json")
    index = open_sample_index(planned(**{"run.data": str(data)}), whole, data)
    span = next(iter(document_spans(index, data, range(20, 21), 1000)))
    text = tokenizer.decode(IndexedFile(data / span.shard).document(span.document)[span.start : span.stop].tolist())
    words = " ".join(text.split(" ")[1:4]) if text.count(" ") > 4 else text
    code, output, errors = trace(whole, "--containing", text)
    assert code == 0, errors
    assert any(line.split()[:2] == ["6", "0"] for line in output.splitlines()), output
    assert trace(whole, "--containing", words)[0] == 0
    code, _, errors = trace(whole, "--containing", "these words are in none of the documents")
    assert code == 2 and "no document of" in errors
    code, output, errors = trace(whole, "--dataset", "math")
    assert code == 0, errors
    (row,) = (line.split() for line in output.splitlines() if line.lstrip().startswith("7-9"))
    assert row == ["7-9", "3", "2-2", f"{6 * 32:,}", f"{6 * 32 / index.plan.datasets['math'].tokens:.2f}"]
    code, _, errors = trace(whole, "--dataset", "maht")
    assert code == 2 and "Did you mean 'math'" in errors


def test_a_dataset_that_left_is_traced_in_its_own_folder(data: Path, tmp_path: Path) -> None:
    """Its shards have the same names as those of another dataset in the data of now."""
    now, manifest = tmp_path / "data", load_manifest(data)
    names = {"docs": "docs", "code": "code", "math": "extra"}
    sources = [SourceConfig(name=names[d.name], path=d.path, weight=d.weight) for d in manifest.datasets]
    known = {field.name for field in fields(PrepOptions)} - {"force"}
    options = {key: value for key, value in manifest.options.items() if key in known}
    own = {"output_dir": str(now), "tokenizer_model": str(data / "tokenizer")}
    prepare(sources, PrepOptions(**{**options, **own}), "other")
    blends = [{"blend": {"docs": 1, "math": 1}}], [{"blend": {"docs": 1, "extra": 1}}]
    train_here(planned(blends[0], **{"train.exit_iteration": 4}), data, tmp_path / "run")
    train_here(planned(blends[1], **{"train.exit_iteration": 8}), now, tmp_path / "run")
    saved(planned(blends[1]), now, tmp_path / "run")
    code, output, errors = trace(tmp_path / "run", "--iteration", 2, "--no-sources")
    assert code == 0, errors
    rows = [line.split() for line in output.splitlines() if " train/data" in line or f" {data}/train" in line]
    assert {(row[1], row[2].startswith(str(data))) for row in rows} == {("docs", False), ("math", True)}
    shard, document = next((row[2], row[3]) for row in rows if row[1] == "math")
    code, output, errors = trace(tmp_path / "run", "--document", f"{shard}:{document}")
    assert code == 0 and "dataset math" in output and "reads: 0" not in output, errors
    code, output, errors = trace(tmp_path / "run", "--audit", "--all")
    assert code == 0 and "8 hashes of 8 iterations, the last one 8: all as planned" in output, errors
    # What has nothing to do with the dataset that left is traced without its folder, too.
    plan = read_plan(tmp_path / "run")
    assert plan
    math = replace(plan.datasets["math"], folder=str(tmp_path / "removed"))
    replace(plan, datasets={**plan.datasets, "math": math}).write(tmp_path / "run")
    code, output, errors = trace(tmp_path / "run", "--iteration", 6, "--no-sources")
    assert code == 0 and "removed: the folder is gone, and the run has read math from it" in errors, errors
    assert "extra" in output
    code, _, errors = trace(tmp_path / "run", "--iteration", 2, "--no-sources")
    assert code == 1 and "removed: the folder is gone" in errors


def test_a_checkpoint_without_the_position_in_the_data_is_not_resumed(data: Path, tmp_path: Path) -> None:
    """Otherwise the run would silently read its data from the start again."""
    point = ResumePoint(5, tmp_path / "iter_0000005")
    with pytest.raises(UserError, match=r"does not say how far the run has read .*order\.json is missing"):
        plan_order(planned(), tmp_path, point, open_data(data))


def test_the_audit_counts_and_proves(data: Path, whole: Path, tmp_path: Path) -> None:
    code, output, errors = trace(whole, "--audit", "--all")
    assert code == 0, errors
    plan = read_plan(whole)
    assert plan
    for name, count in plan.consumed(12).items():
        (row,) = (line.split() for line in output.splitlines() if line.startswith(f"{name} "))
        assert row[1] == row[2] == f"{count * 32:,}" and row[3] == row[4]
    assert "12 hashes of 12 iterations, the last one 12: all as planned" in output
    damaged = tmp_path / "damaged"
    shutil.copytree(whole, damaged)
    lines = [json.loads(line) for line in (damaged / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["iteration"] == 7 and "data_hash" in line:
            line["data_hash"] += 1
    (damaged / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, _, errors = trace(damaged, "--audit")
    assert code == 1 and "1 of 12 hashes differ, the first one of iterations 7 to 7" in errors


def test_other_tokens_in_the_data_are_noticed(data: Path, whole: Path, tmp_path: Path) -> None:
    """A single token of a sample that was fed is another one now."""
    copy, plan = tmp_path / "data", read_plan(whole)
    assert plan
    shutil.copytree(data, copy)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    config = planned(**{"run.data": str(copy), "recipe.per_split_data_args_path": str(copy / "blend.json")})
    index = open_sample_index(config, folder, copy)
    span = next(iter(document_spans(index, copy, range(1), 1000)))
    path = copy / f"{span.shard}.bin"
    tokens = np.memmap(path, np.uint16, "r+")
    from nano3.data.dataset.indexed import IndexedFile

    file = IndexedFile(copy / span.shard)
    at = int(file.offsets[int(file.bounds[span.document])]) // 2 + span.start
    tokens[at] ^= 1
    tokens.flush()
    saved(config, copy, folder)
    code, _, errors = trace(folder, "--audit", "--all")
    assert code == 1 and "1 of 12 hashes differ, the first one of iterations 1 to 1" in errors, errors


def test_steps_that_are_left_out_are_not_part_of_a_hash(data: Path, tmp_path: Path) -> None:
    config = planned(**{"train.skip_iterations": [[3, 4], [9, 9]], "logger.log_interval": 5})
    saved(config, data, tmp_path)
    train_here(config, data, tmp_path)
    steps = {line["iteration"]: line["data_hash_steps"] for line in read_metrics(tmp_path) if "data_hash" in line}
    assert steps == {1: 1, 5: 2, 10: 4, 12: 2}
    code, output, errors = trace(tmp_path, "--audit")
    assert code == 0, errors
    assert "4 hashes of 9 iterations" in output and "3 of these iterations were left out" in output
    code, output, errors = trace(tmp_path, "--dataset", "docs")
    assert code == 0 and "of the iterations with it were left out: their samples were passed over" in output, errors


def test_a_new_phase_begins_its_own_order(data: Path, whole: Path, tmp_path: Path) -> None:
    config = planned(CHANGED, **{"checkpoint.load": str(whole / "checkpoints"), "train.exit_iteration": 4})
    train_here(config, data, tmp_path)
    plan = read_plan(tmp_path)
    assert plan and plan.stages[0].first == 0 and plan.consumed(4)["docs"] == 16


def test_a_continued_schedule_continues_the_order(data: Path, whole: Path, tmp_path: Path) -> None:
    """The second run reads on where the first one was, even with another seed and mixture."""
    first = tmp_path / "first"
    train_here(planned(**{"train.exit_iteration": 8}), data, first)
    more = {"checkpoint.load": str(first / "checkpoints"), "checkpoint.keep_iteration": True, "train.seed": 7}
    train_here(planned(CHANGED, **more), data, tmp_path / "second")
    before, after = read_plan(first), read_plan(tmp_path / "second")
    assert before and after and after.seed == before.seed
    assert after.consumed(8) == before.consumed(8) and after.consumed(12)["math"] == before.consumed(8)["math"] + 12


def test_the_report_shows_what_was_planned_and_consumed(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = mixture_section({"whole": whole, "other": tmp_path})
    assert "<h2>Mixture</h2>" in page and "whole: after iteration 12 of 12" in page and page.count("<svg") == 1
    assert "iterations 7 to 9" in page and "other" not in page
    assert mixture_section({"other": tmp_path}) == ""
    warn_changed_mixture(whole)
    assert capsys.readouterr().err == ""


def test_the_preflight_shows_what_the_budgets_give(data: Path, tmp_path: Path) -> None:
    found = dict(preflight(ready(planned(), data, tmp_path)).rows)
    assert found["stage 2"] == "iterations 7 to 9"
    assert "  docs" in found and "since the start" in found["  docs"]
    broken = ready(
        planned([{"until": "50%", "blend": {"dosc": 1}}, {"blend": {"code": {"epochs": 9}}}]), data, tmp_path
    )
    (problem,) = preflight(broken).problems
    assert "has no dataset 'dosc' with a train split" in problem
    early = ready(planned([{"util": "50%", "blend": {"docs": 1}}, {}]), tmp_path / "not prepared yet", tmp_path)
    assert any("no key 'util'. Did you mean 'until'?" in problem for problem in preflight(early).problems)
    for key in ("train.train_iters", "train.global_batch_size"):
        empty = preflight(ready(planned([{"until": "3e3 tokens"}, {}], **{key: 0}), data, tmp_path))
        assert any(f"{key}=0" in problem for problem in empty.problems)
    capped = ready(planned([{"blend": {"docs": {"weight": 99, "max_epochs": 0.01}, "code": 1}}]), data, tmp_path)
    assert any("docs ends at its max_epochs=0.01" in warning for warning in preflight(capped).warnings)
    repeated = ready(planned([{"blend": {"docs": 1}}], **{"train.train_iters": 3000}), data, tmp_path)
    assert any("docs is repeated 6.4 times" in warning for warning in preflight(repeated).warnings)


def ready(config: PretrainConfig, data: Path, folder: Path) -> PretrainConfig:
    config.run.data, config.run.output_dir = str(data), str(folder)
    config.recipe.per_split_data_args_path = PretrainConfig().recipe.per_split_data_args_path
    return config


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"train.sample_order": "megatron"}, "train.mixture needs nano3's own order of samples: set"),
        ({"train.sample_order": "nano"}, "train.sample_order=nano: there is no such order. Did you mean"),
    ],
)
def test_orders_that_do_not_exist_or_have_no_mixture(changes: dict[str, Any], text: str) -> None:
    assert any(text in problem for problem in value_problems(planned(**changes)))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [("train", "rampup_batch_size", [4, 4, 100]), ("dataset", "dataloader_type", "cyclic")],
)
def test_nothing_else_changes_what_an_iteration_reads(section: str, key: str, value: Any) -> None:
    config = planned()
    config.backend, config.megatron = "megatron", {section: {key: value}}
    text = f"megatron.{section}.{key}={value}: with train.sample_order=nano3 each iteration reads its own"
    assert any(text in problem for problem in value_problems(config))
    config.train.sample_order, config.train.mixture = "megatron", []
    assert not any(key in problem for problem in value_problems(config))
