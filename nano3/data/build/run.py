"""Prepare data: plan, build, publish.

`prepare` runs all three steps on this machine. `write_plan`, `run_task`, and `finalize` run them in the jobs of an
array.
"""

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.bad_row_limit import BadRowLimit, check_bad_row_limit
from nano3.data.build.build_state import BuildState, Shard
from nano3.data.build.duplicates import count_duplicates, open_dropped
from nano3.data.build.manifest_builder import make_manifest
from nano3.data.build.merge import merge_shard
from nano3.data.build.progress import ProgressMeter, print_summary
from nano3.data.build.receipts import ShardReceipt
from nano3.data.build.resume_build import find_complete_data, is_published, set_up_build
from nano3.data.build.token_sample import count_left_out, limit_tokens
from nano3.data.build.worker_pool import WorkerPool
from nano3.data.dataset import output_dir
from nano3.data.dataset.manifest import Manifest, encode_json, encode_manifest, load_manifest, make_blend
from nano3.data.dataset.verify import tokenizer_checksums
from nano3.data.planning.plan import SPLITS, Plan, load_plan
from nano3.data.planning.planner import PrepRequest, make_plan, make_request
from nano3.data.sources.discovery import find_changed_files
from nano3.data.sources.own_files import is_publishing
from nano3.data.tokenization.engines import REFERENCE
from nano3.data.tokenization.tokenizer import copy_tokenizer
from nano3.utils.console import say, table, warn
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import fsync_dir, write_text

MERGE_THREADS = 4
MERGES_AT_ONCE = 128  # more than the threads finish between two rounds of `dispatch_units`


def prepare(sources: list[SourceConfig], options: PrepOptions, blend_name: str) -> Manifest:
    """Prepare a blend on this machine.

    Complete data is left untouched; an interrupted preparation is resumed.

    Args:
        sources: Datasets of the blend.
        options: Options of the preparation.
        blend_name: Name of the blend.

    Returns:
        The published manifest.

    Raises:
        UserError: For a wrong option or input.
        Failure: For damaged input, a full disk, or a lost worker.
    """
    complete_publishing(Path(options.output_dir))
    return prepare_request(make_request(sources, options, blend_name))


def complete_publishing(output: Path) -> None:
    """Finish publishing a build, if a run was killed while it did; its sources are not needed for that.

    Args:
        output: The output folder.

    Raises:
        UserError: Another run works in the folder, or it cannot be written.
        Failure: The record of what is published is damaged.
    """
    if is_publishing(output):
        with output_dir.hold_output_lock(output):
            output_dir.finish_publishing(output)
        say(f"{output}: finished publishing the data of an interrupted run")


def prepare_request(request: PrepRequest) -> Manifest:
    """Run `prepare` on the result of `make_request`, which may take long to list all files of a blend."""
    options, output = request.options, Path(request.options.output_dir)
    complete_publishing(output)
    if not options.force and (done := find_complete_data(request, output)):
        return done
    with output_dir.hold_output_lock(output):
        path = set_up_build(request, output)
        plan = load_plan(path)
        output_dir.remove_temporary_files(path.parent)
        state = BuildState(plan, path.parent)
        with ProgressMeter(plan.units, plan.units - len(state.open_units())) as meter:
            run_workers(plan, path, state, meter)
        return finish_build(plan, path, state, meter)


def write_plan(request: PrepRequest) -> Path:
    """Write the plan of a request to its output folder and return the path, for `run_task` and `finalize`."""
    output = Path(request.options.output_dir)
    with output_dir.hold_output_lock(output):
        return set_up_build(request, output)


def run_task(plan_path: Path, task: int, tasks: int) -> None:
    """Build one task's share of a plan's units, and merge the shards that need no other task's units.

    Args:
        plan_path: Result of `write_plan`.
        task: Number of the task, from 0.
        tasks: Number of tasks.

    Raises:
        UserError: If `task` is out of range.
        Failure: For damaged input, a full disk, or a lost worker.
    """
    if not 0 <= task < tasks:
        raise UserError(f"task={task}: must be from 0 to tasks-1={tasks - 1}.")
    plan = load_plan(plan_path)
    with output_dir.hold_output_lock(Path(plan.output_dir), shared=True):
        if is_published(plan):
            return
        low, high = task * plan.units // tasks, (task + 1) * plan.units // tasks
        state = BuildState(plan, plan_path.parent, range(low, high))
        with ProgressMeter(high - low, high - low - len(state.open_units())) as meter:
            run_workers(plan, plan_path, state, meter)


def finalize(plan_path: Path) -> Manifest:
    """Merge the remaining shards, write blend.json and manifest.json, and publish.

    Args:
        plan_path: Result of `write_plan`; all tasks have ended.

    Returns:
        The published manifest.

    Raises:
        Failure: If units of the plan are missing.
    """
    plan = load_plan(plan_path)
    output = Path(plan.output_dir)
    with output_dir.hold_output_lock(output):
        output_dir.finish_publishing(output)
        if is_published(plan):
            return load_manifest(output)
        state = BuildState(plan, plan_path.parent)
        # After a mismatch the units of the fast engine are missing although no task failed; they are rebuilt below.
        if (missing := state.open_units()) and not state.mismatched:
            raise Failure(
                f"{plan_path}: {len(missing)} of {plan.units} units are not done (the first is unit {missing[0]}); "
                f"a task of the array has failed, or a file was damaged. Run the same command again: only the missing "
                f"units are built."
            )
        if missing:
            warn(f"the fast engine gave wrong ids: {len(missing):,} units are rebuilt with the reference engine")
        with ProgressMeter(plan.units, plan.units - len(missing)) as meter:
            run_workers(plan, plan_path, state, meter)
        return finish_build(plan, plan_path, state, meter)


def print_plan(request: PrepRequest) -> None:
    """Print the files, shards, units, and disk space of a preparation."""
    options, plan = request.options, make_plan(request)
    rows = []
    for d in plan.datasets:
        size = sum(d.sizes)
        shards = " + ".join(f"{n} {SPLITS[i]}" for i, n in enumerate(d.shards) if n)
        rows.append([d.name, d.path, f"{len(d.keys):,}", f"{size / 1e6:,.1f}", f"{d.units:,}", shards])
    columns = ["dataset", "path", "files", "MB", "units", "shards"]
    table(f"plan {plan.hash[:16]} of blend {request.blend}", columns, rows, right=columns[2:5])
    text = sum(d.text_bytes for d in plan.datasets)
    tokens = text / 4
    info = plan.tokenizer
    framing = info.framing(options.add_bos, options.add_eos)
    say(f"tokenizer {info.model}: {info.vocab_size:,} ids, {plan.dtype} on disk; {framing}")
    item = 2 if plan.dtype == "uint16" else 4
    say(
        f"about {text / 1e6:,.1f} MB of text, {tokens / 1e6:,.1f} M tokens, {tokens * item / 1e6:,.1f} MB in "
        f"{options.output_dir}"
    )
    for warning in plan.warnings:
        warn(warning)


# Steps


def run_workers(plan: Plan, path: Path, state: BuildState, meter: ProgressMeter) -> None:
    """Build every open unit and shard of `state`; start over with the reference engine if the fast one is wrong.

    Args:
        plan: The plan.
        path: Path of the plan.
        state: The build; updated.
        meter: Progress; updated.

    Raises:
        Failure: If engine=strict and the fast engine is wrong, or for damaged input, too many bad rows, a full disk,
            or a lost worker.
    """
    options = plan.options
    if state.mismatched and options.engine == "strict":
        raise Failure(
            f"engine=strict: the fast engine gave wrong ids in this build ({state.mismatch}). Set engine=auto "
            f"to continue with the reference tokenizer, which is much slower."
        )
    while state.open_units() or state.mergeable_shards():
        wanted = options.workers or len(os.sched_getaffinity(0))
        workers = max(1, min(wanted, len(state.open_units()) or len(state.mergeable_shards())))
        fast = options.engine != REFERENCE and not state.mismatched
        with WorkerPool(path, workers, fast) as pool:
            compare = fast and bool(state.open_units() or not state.verified)
            mismatch = dispatch_units(pool, state, meter, compare)
        if mismatch and options.engine == "strict":
            raise Failure(
                f"engine=strict: {mismatch}. Set engine=auto to continue with the reference tokenizer, which is much "
                f"slower."
            )
        if mismatch:
            state.mark_mismatch(mismatch)
            warn(
                f"{mismatch}. Continuing with the reference engine (tokenizers): exact, but much slower. Finished "
                f"units are rebuilt."
            )


def dispatch_units(pool: WorkerPool, state: BuildState, meter: ProgressMeter, compare: bool) -> str:
    """Hand out open units in order and merge each shard in a thread as soon as its units are finished.

    Args:
        pool: The workers.
        state: The build; updated.
        meter: Progress; updated.
        compare: Also compare the engines, and merge no shard before they agree.

    Returns:
        What the comparison or a later check found wrong, or "".

    Raises:
        Failure: A dataset has more bad rows than max_bad_rows.
    """
    limit = BadRowLimit(state.plan, state.units.values())
    units = state.open_units()[::-1]
    mismatch = ""
    if compare:
        pool.compare_engines()
    with ThreadPoolExecutor(MERGE_THREADS) as threads:
        merges = MergeQueue(state, threads, meter)
        while pool.busy or merges.running or ((units or merges.waiting) and not mismatch):
            for worker in pool.idle() if not mismatch else ():
                if units:
                    pool.submit(worker, ("unit", units.pop()))
            if not mismatch and not compare:
                merges.start()
            for task, kind, value in pool.results(timeout=0.02 if merges.running else None):
                if kind == "tick":
                    meter.add(text_bytes=value)
                elif kind == "mismatch":
                    mismatch = f"fastokens gave other ids than tokenizers: {value}"
                elif len(task) == 2:
                    state.add_unit(value)
                    meter.add(units=1)
                    limit.add(value)
                else:
                    compare = False
                    mismatch = mismatch or value
                    if not value:
                        state.mark_verified()
            merges.collect()
    return mismatch


class MergeQueue:
    """Merges the open shards of a build in threads, in the order in which their units are finished.

    Attributes:
        waiting: (shard, first unit, last unit) of the shards that are not started, the next one at the end.
        running: Number of shards that are being merged or whose result was not collected.
    """

    def __init__(self, state: BuildState, threads: ThreadPoolExecutor, meter: ProgressMeter) -> None:
        self._state, self._threads, self._meter = state, threads, meter
        self._unfinished = state.open_units()[::-1]
        self._finished: deque[tuple[Shard, Future[ShardReceipt]]] = deque()
        self.waiting = state.mergeable_shards()[::-1]
        self.running = 0
        meter.shards, meter.merged = len(self.waiting), 0

    def start(self) -> None:
        """Start merging shards whose units are all finished. Only a few at a time, so that a failure ends soon."""
        while self._unfinished and self._unfinished[-1] in self._state.units:
            self._unfinished.pop()
        frontier = self._unfinished[-1] if self._unfinished else self._state.unit_range.stop
        while self.waiting and self.waiting[-1][2] < frontier and self.running < MERGES_AT_ONCE:
            shard = self.waiting.pop()[0]
            inputs = self._state.shard_fragments(shard)
            merge = self._threads.submit(merge_shard, self._state.plan, self._state.build, shard, *inputs)
            merge.add_done_callback(lambda done, shard=shard: self._finished.append((shard, done)))  # type: ignore[misc]
            self.running += 1

    def collect(self) -> None:
        """Add the merged shards to the build; raise Failure if one failed."""
        while self._finished:
            shard, merge = self._finished.popleft()
            self.running -= 1
            self._state.shards[shard] = merge.result()
            self._meter.add(shards=1)


def finish_build(plan: Plan, path: Path, state: BuildState, meter: ProgressMeter) -> Manifest:
    """Check the finished build, write its manifest, blend.json, and tokenizer, and publish it.

    Args:
        plan: The plan.
        path: Path of the plan.
        state: The build; everything in it is finished.
        meter: Progress, for the summary.

    Returns:
        The published manifest.

    Raises:
        UserError: If a dataset has no tokens for training.
        Failure: If an input file changed during the build, or a dataset has more bad rows than max_bad_rows.
    """
    build, output = path.parent, Path(plan.output_dir)
    check_inputs_unchanged(plan)
    check_bad_row_limit(plan, state.units.values(), complete=True)
    units = list(state.units.values())
    # Once a shard is merged, the documents to leave out are known, and some of its fragments are gone.
    dropped = open_dropped(plan, build, units) if plan.drops_documents and not state.shards else None
    duplicates = count_duplicates(plan, build, units, dropped) if plan.options.split_by == "text" else None
    if dropped:
        limit_tokens(state, dropped)
        dropped.commit()
    merge_open_shards(state)
    left_out = count_left_out(plan, build) if plan.drops_documents else None
    manifest = make_manifest(plan, list(state.shards.values()), units, duplicates, left_out)
    check_counts(manifest)
    warn_of_empty_splits(plan, manifest)
    copy_tokenizer(plan.tokenizer, build / "tokenizer")
    manifest.tokenizer.files = tokenizer_checksums(build / "tokenizer")
    for split in SPLITS:
        kept = {f"{s.prefix}{end}" for s in manifest.shards for end in (".bin", ".idx")}
        for file in (build / split).iterdir():
            if f"{split}/{file.name}" not in kept:
                file.unlink()
        if not manifest.splits[split].tokens:
            (build / split).rmdir()
        else:
            fsync_dir(build / split)
    write_text(build / "blend.json", encode_json(make_blend(manifest, output)))
    write_text(build / "manifest.json", encode_manifest(manifest))
    output_dir.publish(output, build)
    print_summary(manifest, meter)
    return manifest


def merge_open_shards(state: BuildState) -> None:
    """Merge the shards that `dispatch_units` could not, as it has to be known first which documents are left out."""
    with ThreadPoolExecutor(MERGE_THREADS) as threads:
        merges = {
            shard: threads.submit(merge_shard, state.plan, state.build, shard, *state.shard_fragments(shard))
            for shard, _, _ in state.open_shards()
        }
        try:
            for shard, merge in merges.items():
                state.shards[shard] = merge.result()
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def check_inputs_unchanged(plan: Plan) -> None:
    """Raise Failure if an input file changed during the build, as old and new text would be mixed."""
    changed: list[str] = []
    for d in plan.datasets:
        changed += find_changed_files(d.root, map(d.file_version, range(len(d.keys))))
    if changed:
        raise Failure(
            [f"{path}: was changed while the data was made; nothing is published." for path in changed[:20]]
            + ["Run the same command again: only the units that read changed files are rebuilt."]
        )


def warn_of_empty_splits(plan: Plan, manifest: Manifest) -> None:
    """Warn of a requested split without documents, unless the plan already did."""
    options = plan.options
    for dataset, entry in zip(plan.datasets, manifest.datasets, strict=True):
        for split, share in (("valid", options.valid_fraction), ("test", options.test_fraction)):
            known = any(f"too few for a {split} split" in warning for warning in dataset.warnings)
            if share > 0 and not entry.splits[split].tokens and not known:
                warn(
                    f"dataset {dataset.name!r}: none of its {entry.documents:,} documents fell into {split}. Raise "
                    f"{split}_fraction to have some, or set {split}_fraction=0."
                )


def check_counts(manifest: Manifest) -> None:
    """Check that every document is in a split and every dataset has tokens for training.

    Raises:
        UserError: If datasets have no tokens for training.
        Failure: If documents are missing.
    """
    problems = []
    for d in manifest.datasets:
        in_splits = sum(s.documents for s in d.splits.values())
        if in_splits != d.documents:
            raise Failure(
                f"dataset {d.name!r}: {d.documents} documents read but {in_splits} in the splits; nothing published."
            )
        if not d.splits["train"].tokens:
            skipped = ", ".join(f"{n} {reason}" for reason, n in d.skipped.items()) or "none"
            problems.append(
                f"dataset {d.name!r}: no tokens for training ({d.documents} documents, {d.empty} "
                f"empty; skipped: {skipped}). "
                f"Remove it from the blend, or correct path, text_field, or the filters."
            )
    if problems:
        raise UserError(problems)
