"""Test that bad_rows=skip stops at max_bad_rows: with all counts, on one machine and on an array."""

import json
from pathlib import Path

import msgspec
import pytest
from data_helpers import options, paper_dataset, paper_plan, plan_build, run, source, texts

from nano3.data.build.bad_row_limit import check_bad_row_limit
from nano3.data.build.receipts import BadFile, UnitReceipt
from nano3.data.build.run import finalize, run_task
from nano3.data.planning.plan import load_plan
from nano3.utils.errors import Failure, UserError


def write_rows(path: Path, good: int, bad: int) -> Path:
    """Write JSON lines whose first `bad` rows have null instead of a text, from the third line on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"text": text}) for text in texts(good)]
    lines[2:2] = ['{"text": null}'] * bad
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("bad", "limit", "allowed"),
    [
        pytest.param(1, 0.01, True, id="share"),
        pytest.param(2, 0.01, True, id="exactly the share"),
        pytest.param(3, 0.01, False, id="above the share"),
        pytest.param(3, 3.0, True, id="exactly the count"),
        pytest.param(3, 2.0, False, id="above the count"),
        pytest.param(1, 0.0, False, id="none"),
        pytest.param(150, None, True, id="no limit"),
    ],
)
def test_limit_is_exact(tmp_path: Path, byte_bpe: Path, bad: int, limit: float | None, allowed: bool) -> None:
    path = write_rows(tmp_path / "a.jsonl", 200 - bad, bad)
    keys = {"bad_rows": "skip", "max_bad_rows": limit}
    if allowed:
        assert run(path, tmp_path / "out", byte_bpe, **keys).datasets[0].skipped == {"null": bad}
        return
    with pytest.raises(Failure, match=rf"'d': {bad} of 200 rows are bad \({bad} null\).*a\.jsonl: {bad}, .*row 3: "):
        run(path, tmp_path / "out", byte_bpe, **keys)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert run(path, tmp_path / "out", byte_bpe, bad_rows="skip", max_bad_rows=bad).datasets[0].documents == 200 - bad


def test_default_is_one_percent(tmp_path: Path, byte_bpe: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", 90, 9)
    with pytest.raises(Failure, match=r"9 of 99 rows are bad .*max_bad_rows=0\.01 allows 1 % of the rows"):
        run(path, tmp_path / "out", byte_bpe, bad_rows="skip")


def test_published_data_stays_complete(tmp_path: Path, byte_bpe: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_rows(tmp_path / "a.jsonl", 90, 9)
    made = run(path, tmp_path / "out", byte_bpe, bad_rows="skip", max_bad_rows=None)
    assert run(path, tmp_path / "out", byte_bpe, bad_rows="skip", max_bad_rows=0.0).plan_hash == made.plan_hash
    assert "complete, nothing to do" in capfd.readouterr().out


def test_array_stops_like_one_machine(tmp_path: Path, byte_bpe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks stop if their own rows exceed the limit of the whole dataset, else the last job does."""
    from nano3.data.planning import plan as plans

    monkeypatch.setattr(plans, "MIN_UNIT", 20_000)
    monkeypatch.setattr(plans, "MAX_UNIT", 20_000)
    for number in range(8):
        write_rows(tmp_path / "in" / f"{number}.jsonl", 495, 5 + number)
    keys = {"bad_rows": "skip", "workers": 1}
    plan = plan_build([source(tmp_path / "in")], options(tmp_path / "out", byte_bpe, max_bad_rows=45, **keys), "test")
    assert load_plan(plan).units > 8
    for task in range(64):
        run_task(plan, task, 64)  # 68 bad rows, at most 12 in a task
    with pytest.raises(Failure, match=r"68 of 4,028 rows are bad \(68 null\).*in/7\.jsonl: 12, the first in row 3"):
        finalize(plan)
    with pytest.raises(Failure, match=r"rows read so far are bad"):
        run(tmp_path / "in", tmp_path / "one", byte_bpe, max_bad_rows=45, **keys)
    tight = plan_build([source(tmp_path / "in")], options(tmp_path / "out2", byte_bpe, max_bad_rows=4, **keys), "test")
    with pytest.raises(Failure, match=r"in/0\.jsonl: 5, the first in row 3"):
        for task in range(64):  # the first ones may have no unit
            run_task(tight, task, 64)
    run(tmp_path / "in", tmp_path / "out", byte_bpe, max_bad_rows=68, **keys)


def unit(number: int, documents: int, bad: int) -> UnitReceipt:
    """Return the receipt of a unit with this many rows."""
    skipped = {"short": 5, **({"not_json": bad} if bad else {})}
    file = BadFile(0, bad, 0, "not valid JSON") if bad else None
    return UnitReceipt(number, "tokenizers", documents, 0, skipped, 0, 0, 0, 0, [], file)


def test_share_during_the_run_is_one_of_the_projected_rows(tmp_path: Path) -> None:
    dataset = paper_dataset([1000] * 10, shards=(10, 0, 0))
    plan = paper_plan(tmp_path, [dataset], bad_rows="skip")
    assert plan.units == 10
    check_bad_row_limit(plan, [unit(0, 85, 10)])  # 100 rows in a tenth of the data: 10 of 1,000
    with pytest.raises(Failure, match=r"11 of 101 rows read so far"):
        check_bad_row_limit(plan, [unit(0, 85, 11)])
    with pytest.raises(Failure, match="10 of 100 rows are bad"):
        check_bad_row_limit(plan, [unit(0, 85, 10)], complete=True)


def test_receipts_of_older_versions_have_no_bad_file(tmp_path: Path) -> None:
    content = msgspec.to_builtins(unit(0, 5, 9))
    del content["bad_file"]
    old = msgspec.convert(content, UnitReceipt)
    plan = paper_plan(tmp_path, [paper_dataset([1000])], bad_rows="skip")
    with pytest.raises(Failure, match=r"9 of 19 rows are bad \(9 not_json\), and max_bad_rows=0\.01 allows 1 % of"):
        check_bad_row_limit(plan, [old], complete=True)


@pytest.mark.parametrize("limit", [-0.1, 1.5, float("nan"), float("inf")])
def test_limit_out_of_range(tmp_path: Path, byte_bpe: Path, limit: float) -> None:
    path = write_rows(tmp_path / "a.jsonl", 9, 0)
    with pytest.raises(UserError, match="max_bad_rows="):
        run(path, tmp_path / "out", byte_bpe, max_bad_rows=limit)
