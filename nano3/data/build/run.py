"""The whole of data preparation: plan, do, finish. `prepare` does it here; the three steps also run apart, over an
array of jobs.
"""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.build_state import BuildState, Shard
from nano3.data.build.manifest_builder import make_manifest
from nano3.data.build.merge import merge_shard
from nano3.data.build.progress import ProgressMeter, print_summary
from nano3.data.build.receipts import ShardReceipt
from nano3.data.build.resume_build import find_complete_data, is_published, set_up_build
from nano3.data.build.worker_pool import COMPARE_ENGINES, WorkerPool
from nano3.data.dataset import output_dir
from nano3.data.dataset.manifest import Manifest, encode_json, load_manifest, make_blend
from nano3.data.planning.plan import SPLITS, Plan, load_plan
from nano3.data.planning.planner import PrepRequest, make_plan, make_request
from nano3.data.sources.discovery import find_changed_files
from nano3.data.sources.own_files import is_publishing
from nano3.data.tokenization.engines import REFERENCE
from nano3.data.tokenization.tokenizer import copy_tokenizer
from nano3.utils.console import ignore_broken_pipe, say, table, warn
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import fsync_dir, write_text

MERGE_THREADS = 4


def prepare(sources: list[SourceConfig], options: PrepOptions, blend_name: str) -> Manifest:
    """Prepare a blend on this machine and return its manifest; a complete one is left alone, an interrupted one goes
    on.

    Raises `UserError` for what was asked wrongly, `Failure` for damaged input, a full disk or a lost worker.
    """
    return prepare_request(make_request(sources, options, blend_name))


def prepare_request(request: PrepRequest) -> Manifest:
    """`prepare` for a request at hand: finding all files of a blend may take a while."""
    options, output = request.options, Path(request.options.output_dir)
    if is_publishing(output):
        with output_dir.hold_output_lock(output):
            output_dir.finish_publishing(output)
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
    """Write the plan of a request into its output folder and return the plan's path, for `run_task` and `finalize`."""
    output = Path(request.options.output_dir)
    with output_dir.hold_output_lock(output):
        return set_up_build(request, output)


def run_task(plan_path: Path, part: int, parts: int) -> None:
    """Do part `part` (from 0) of `parts` of a plan's units, and join the shards that need no other part."""
    if not 0 <= part < parts:
        raise UserError(f"part={part}: must be from 0 to parts-1={parts - 1}.")
    plan = load_plan(plan_path)
    with output_dir.hold_output_lock(Path(plan.output_dir), shared=True):
        if is_published(plan):
            return
        low, high = part * plan.units // parts, (part + 1) * plan.units // parts
        state = BuildState(plan, plan_path.parent, range(low, high))
        with ProgressMeter(high - low, high - low - len(state.open_units())) as meter:
            run_workers(plan, plan_path, state, meter)


def finalize(plan_path: Path) -> Manifest:
    """Join what is left, write blend.json and manifest.json, publish. Raises `Failure` when parts of the plan are
    missing.
    """
    plan_path = Path(plan_path)
    plan = load_plan(plan_path)
    output = Path(plan.output_dir)
    with output_dir.hold_output_lock(output):
        output_dir.finish_publishing(output)
        if is_published(plan):
            return load_manifest(output)
        state = BuildState(plan, plan_path.parent)
        # What a disproved engine made is missing too, though no part failed; it is made anew below.
        if (missing := state.open_units()) and not state.disproved:
            raise Failure(
                f"{plan_path}: {len(missing)} of {plan.units} units are not done (the first is unit {missing[0]}); "
                f"a part of the array has failed. Run the same command again: only what is missing is done."
            )
        if missing:
            warn(f"{len(missing):,} units of the disproved fast engine are made anew with the reference engine")
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
    say(f"tokenizer {plan.tokenizer.model}: {plan.tokenizer.vocab_size:,} ids, {plan.dtype} on disk")
    item = 2 if plan.dtype == "uint16" else 4
    say(
        f"about {text / 1e6:,.1f} MB of text, {tokens / 1e6:,.1f} M tokens, {tokens * item / 1e6:,.1f} MB in "
        f"{options.output_dir}"
    )
    for note in [note for d in plan.datasets for note in d.warnings]:
        warn(note)


# The steps


def run_workers(plan: Plan, path: Path, state: BuildState, meter: ProgressMeter) -> None:
    """Do every open unit and shard of `state`; starts over without the fast engine if that is seen to be wrong."""
    options = plan.options
    if state.disproved and options.engine == "strict":
        raise Failure(
            f"engine=strict: the fast engine was disproved in this build ({state.why_disproved}). Set engine=auto "
            f"to go on with the reference tokenizer, which is much slower."
        )
    while state.open_units() or state.open_shards():
        wanted = options.workers or len(os.sched_getaffinity(0))
        workers = max(1, min(wanted, len(state.open_units()) or len(state.open_shards())))
        fast = options.engine != REFERENCE and not state.disproved
        with WorkerPool(path, workers, fast) as pool:
            why = dispatch_units(pool, state, meter, prove=fast and bool(state.open_units() or not state.proven))
        if why and options.engine == "strict":
            raise Failure(
                f"engine=strict: {why}. Set engine=auto to go on with the reference tokenizer, which is much slower."
            )
        if why:
            state.disprove(why)
            warn(
                f"{why}. Going on with the reference engine (tokenizers): exact, but much slower. Units made "
                f"before are made anew."
            )


def dispatch_units(pool: WorkerPool, state: BuildState, meter: ProgressMeter, prove: bool) -> str:
    """Hand out units in order; join each shard, in a thread here, as soon as its units are done and, with `prove`,
    the engines are proven equal.

    Gives what the proof or a re-check found wrong, or "".
    """
    units = state.open_units()[::-1]
    shards = state.open_shards()[::-1]
    waiting = set(units)
    joins: dict[Shard, Future[ShardReceipt]] = {}
    wrong = ""
    if prove:
        pool.prove()
    with ThreadPoolExecutor(MERGE_THREADS) as threads:
        while pool.busy or joins or ((units or shards) and not wrong):
            for worker in pool.idle() if not wrong else ():
                if units:
                    pool.give(worker, ("unit", units.pop()))
            frontier = min(waiting, default=state.range.stop)
            while shards and shards[-1][2] < frontier and not wrong and not prove:
                shard = shards.pop()[0]
                joins[shard] = threads.submit(merge_shard, state.plan, state.build, *shard)
            for task, kind, value in pool.results(timeout=0.02 if joins else None):
                if kind == "tick":
                    meter.add(text_bytes=value)
                elif kind == "mismatch":
                    wrong = f"fastokens gave other ids than tokenizers: {value}"
                elif task == COMPARE_ENGINES:
                    prove = False
                    wrong = wrong or value
                    state.prove(value)
                else:
                    state.units[task[1]] = value
                    waiting.discard(task[1])
                    meter.add(units=1)
            for shard in [shard for shard, join in joins.items() if join.done()]:
                state.shards[shard] = joins.pop(shard).result()
    return wrong


def finish_build(plan: Plan, path: Path, state: BuildState, meter: ProgressMeter) -> Manifest:
    """Check the whole, write what describes it, and publish."""
    build, output = path.parent, Path(plan.output_dir)
    check_inputs_unchanged(plan)
    manifest = make_manifest(plan, list(state.shards.values()), list(state.units.values()))
    check_counts(manifest)
    warn_of_empty_splits(plan, manifest)
    copy_tokenizer(plan.tokenizer, build / "tokenizer")
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
    write_text(build / "manifest.json", encode_json(manifest))
    output_dir.publish(output, build)
    with ignore_broken_pipe():  # what follows, as registering, is to be done all the same
        print_summary(manifest, meter)
    return manifest


def check_inputs_unchanged(plan: Plan) -> None:
    """Nothing is published when a file was changed while it was read: part of it may be old, part new."""
    changed: list[str] = []
    for d in plan.datasets:
        changed += find_changed_files(d.root, zip(d.keys, d.sizes, d.fingerprints, d.times, strict=True))
    if changed:
        raise Failure(
            [f"{path}: was changed while the data was made; nothing is published." for path in changed[:20]]
            + ["Run the same command again: only what was made of changed files is made anew."]
        )


def warn_of_empty_splits(plan: Plan, manifest: Manifest) -> None:
    """Tell of a split that was asked for and got nothing, unless the plan knew."""
    options = plan.options
    for dataset, entry in zip(plan.datasets, manifest.datasets, strict=True):
        for split, share in (("valid", options.valid_fraction), ("test", options.test_fraction)):
            told = any(f"too few for a {split} split" in note for note in dataset.warnings)
            if share > 0 and not entry.splits[split].tokens and not told:
                warn(
                    f"dataset {dataset.name!r}: none of its {entry.documents:,} documents fell into {split}. Raise "
                    f"{split}_fraction to have some, or set {split}_fraction=0."
                )


def check_counts(manifest: Manifest) -> None:
    """Every document is in a split, and no dataset and no split is without tokens unless that was told before."""
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
                f"Take it out of the blend, or mend path, text_field or the filters."
            )
    if problems:
        raise UserError(problems)
