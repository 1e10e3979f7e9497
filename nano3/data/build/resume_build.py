"""Reuse what the output folder already holds: complete data or an interrupted build.

A build can be resumed after its input changed: a unit is kept if none of the files it reads changed.
"""

from dataclasses import asdict
from pathlib import Path

import msgspec

from nano3.data.build.bad_row_limit import FILTERS
from nano3.data.build.duplicates import may_hold_texts
from nano3.data.build.receipts import UnitReceipt, read_receipt, shard_receipt_path, unit_receipt_path
from nano3.data.dataset import output_dir
from nano3.data.dataset.manifest import (
    Manifest,
    encode_json,
    encode_manifest,
    is_manifest,
    load_manifest,
    make_blend,
)
from nano3.data.dataset.verify import check_shard_files, check_tokenizer, tokenizer_checksums
from nano3.data.planning.plan import NOT_HASHED, PLAN_FORMAT, SPLITS, DatasetPlan, Plan, hashed_settings, load_plan
from nano3.data.planning.planner import PrepRequest, make_plan
from nano3.data.sources.discovery import WHOLE_FILE_LIMIT
from nano3.data.sources.own_files import PUBLISHED, is_publishing
from nano3.data.tokenization.tokenizer import copy_tokenizer
from nano3.utils.console import say, warn
from nano3.utils.errors import Failure, UserError, list_some
from nano3.utils.files import write_text


def find_complete_data(request: PrepRequest, output: Path) -> Manifest | None:
    """Return the published manifest if the output folder holds the complete data of a request.

    A new weight, budget, blend name, or location of the folder is written into manifest.json and blend.json.

    Args:
        request: The preparation.
        output: The output folder.

    Returns:
        The manifest, or None if there is none.

    Raises:
        UserError: If the folder holds other data, or data without its bad rows.
        Failure: If the manifest or a shard is damaged.
    """
    if not (output / "manifest.json").exists():
        return None
    manifest = load_own_manifest(output)
    if manifest.plan_hash != request.hash:
        raise other_data_error(output, manifest, request)
    check_skipped_rows(request, manifest)
    for shard in manifest.shards:
        if problems := check_shard_files(output, manifest, shard):
            raise Failure(f"{problem}. Run again with force=true to rebuild the data." for problem in problems)
    warn_of_modified_inputs(request, manifest)
    changes = update_weights(request, manifest)
    blend = encode_json(make_blend(manifest, output))
    moved = not (output / "blend.json").exists() or (output / "blend.json").read_bytes() != blend.encode()
    changes += repair_tokenizer(request, output, manifest)
    if moved or changes:
        with output_dir.hold_output_lock(output):
            write_text(output / "blend.json", blend)
            write_text(output / "manifest.json", encode_manifest(manifest))
        what = " and ".join(changes) or "location of the shards"
        say(f"{output}: complete; blend.json and manifest.json now have the new {what}")
    else:
        request.cache.save_if_many(output)
        say(f"{output}: complete, nothing to do ({len(manifest.shards)} shards)")
    return manifest


def repair_tokenizer(request: PrepRequest, output: Path, manifest: Manifest) -> list[str]:
    """Copy the tokenizer again if a file of its copy is missing or damaged.

    Args:
        request: The preparation.
        output: The output folder.
        manifest: Its manifest; gets the checksums of files that are not what they were.

    Returns:
        What in the manifest has changed: "tokenizer files", or nothing.
    """
    folder = output / manifest.tokenizer.path
    if not (problems := check_tokenizer(output, manifest)):
        return []
    with output_dir.hold_output_lock(output):
        copy_tokenizer(request.tokenizer, folder)
    say(f"{folder}: copied again ({problems[0]})")
    files = tokenizer_checksums(folder) if manifest.tokenizer.files else {}
    changed = files != manifest.tokenizer.files
    manifest.tokenizer.files = files
    return ["tokenizer files"] * changed


def load_own_manifest(output: Path) -> Manifest:
    """Return the manifest of an output folder.

    Raises:
        UserError: If manifest.json, or another file in its place, was not written by nano3.
        Failure: If nano3's manifest is damaged or has another format.
    """
    try:
        return load_manifest(output)
    except Failure:
        if not is_manifest(output / "manifest.json"):
            output_dir.check_no_foreign_files(output)
        raise


def update_weights(request: PrepRequest, manifest: Manifest) -> list[str]:
    """Set the request's weights, budgets and blend name in the manifest; return which of these words changed."""
    sources = {s.name: s for s in request.sources}
    old_name, old_weights, old_budgets = manifest.blend, manifest.weights, manifest.budgets
    manifest.blend = request.blend
    for dataset in manifest.datasets:
        dataset.weight, dataset.budget = sources[dataset.name].weight, sources[dataset.name].budget
    changed = {
        "weights": old_weights != manifest.weights,
        "budgets": old_budgets != manifest.budgets,
        "name": old_name != manifest.blend,
    }
    return [what for what, is_new in changed.items() if is_new]


def check_output_dir(request: PrepRequest) -> None:
    """Raise UserError if the content of the output folder forbids this preparation; change nothing."""
    output = Path(request.options.output_dir)
    if is_publishing(output):  # publishing is completed first, by `prepare_request`
        return
    check_replaceable(request, output)
    if not request.options.force and (output / "manifest.json").exists():
        check_skipped_rows(request, load_manifest(output))


def check_replaceable(request: PrepRequest, output: Path) -> None:
    """Raise UserError if the output folder holds anything that this request may not replace.

    Args:
        request: The preparation; `force` allows it to replace other data.
        output: The output folder.
    """
    if not (output / "manifest.json").exists():
        if unknown := [n for n in PUBLISHED if (output / n).exists()]:
            raise UserError(
                f"output_dir={output}: has {', '.join(unknown)} but no manifest.json, so nano3 did not make it, or "
                f"cannot identify it. Choose another output_dir, or delete them if they are not needed."
            )
        return
    if request.options.force:
        output_dir.check_replaceable(output)
    elif (manifest := load_own_manifest(output)).plan_hash != request.hash:
        raise other_data_error(output, manifest, request)


def other_data_error(output: Path, manifest: Manifest, request: PrepRequest) -> UserError:
    """Return the error for an output folder that holds the data of another plan.

    Args:
        output: The output folder.
        manifest: Its manifest.
        request: The preparation.
    """
    return UserError(
        f"output_dir={output}: holds other data (plan {manifest.plan_hash[:16]}, now {request.hash[:16]}): "
        f"{list_differences(manifest, request)}. Choose another output_dir, or set force=true to replace it once the "
        f"new data is complete."
    )


def list_differences(manifest: Manifest, request: PrepRequest) -> str:
    """Return what differs between existing data and a request, as far as the manifest shows.

    Args:
        manifest: Manifest of the data.
        request: The preparation.
    """
    options = asdict(request.options)
    # What versions without these options did.
    old_options = {"split_by": "position", "dedup": "none", "sample_tokens": None, **manifest.options}
    found = [
        f"{key} was {old_options[key]}, now {options[key]}"
        for key in sorted(
            old_options.keys() & options.keys() - (set(NOT_HASHED) - {"split_by", "dedup", "sample_tokens"})
        )
        if old_options[key] != options[key]
    ]
    if manifest.dtype != request.dtype:
        found.append(f"dtype was {manifest.dtype}, now {request.dtype}")
    if manifest.options.get("add_eos") and manifest.tokenizer.eod_id != request.tokenizer.eod_id:
        old, new = manifest.tokenizer, request.tokenizer
        found.append(f"documents ended with {old.eod_token!r} ({old.eod_id}), now {new.eod_token!r} ({new.eod_id})")
    if manifest.tokenizer.sha256 != request.tokenizer.sha256:
        found.append(f"the tokenizer was {manifest.tokenizer.model}, now {request.tokenizer.model}")
    names = [d.name for d in manifest.datasets], [d.name for d in request.datasets]
    if names[0] != names[1]:
        found.append(f"its datasets were {', '.join(names[0])}, now {', '.join(names[1])}")
    return "; ".join(found) or "the text or the text field has changed"


def check_skipped_rows(request: PrepRequest, manifest: Manifest) -> None:
    """Raise UserError for data built with bad_rows=skip if bad_rows=fail and rows were skipped.

    Args:
        request: The preparation.
        manifest: Manifest of the data.
    """
    if request.options.bad_rows == "skip":
        return
    problems = []
    for dataset in manifest.datasets:
        bad = {reason: rows for reason, rows in dataset.skipped.items() if reason not in FILTERS}
        if dataset.unencoded:
            bad["not tokenized"] = dataset.unencoded
        if bad:
            what = ", ".join(f"{rows:,} {reason}" for reason, rows in bad.items())
            problems.append(
                f"dataset {dataset.name!r}: the existing data was made without {sum(bad.values()):,} bad rows "
                f"({what}), and bad_rows=fail allows none. Set bad_rows=skip to use it, or correct the rows and set "
                f"force=true."
            )
    if problems:
        raise UserError(problems)


def warn_of_modified_inputs(request: PrepRequest, manifest: Manifest) -> None:
    """Warn of large files modified since the data was made, as their fingerprints do not cover every byte.

    Args:
        request: The preparation.
        manifest: Manifest of the data.
    """
    entries = {d.name: d.inputs for d in manifest.datasets}
    for dataset in request.datasets:
        now = dict(zip(dataset.keys, dataset.times, strict=True))
        modified = [
            file.name
            for file in entries[dataset.name]
            if file.bytes > WHOLE_FILE_LIMIT and now.get(file.name, 0) != file.mtime_ns != 0
        ]
        if modified:
            warn(
                f"dataset {dataset.name!r}: {list_some(modified, 3)}: changed on disk since the data was made; "
                f"size and samples of the content are the same, so the text is assumed unchanged. If it is not, set "
                f"force=true."
            )


def is_published(plan: Plan) -> bool:
    """Return whether the output folder holds the plan's data and no build of it is in progress."""
    output = Path(plan.output_dir)
    if not (output / "manifest.json").exists():
        return False
    building = (output_dir.build_dir(output, plan.hash) / "units").is_dir()
    return not building and load_manifest(output).plan_hash == plan.hash


# Interrupted builds


def set_up_build(request: PrepRequest, output: Path) -> Path:
    """Create the folder of a build, with the plan and everything reusable from earlier builds.

    Needs the exclusive lock of the output folder.

    Args:
        request: The preparation.
        output: The output folder.

    Returns:
        Path of the plan.

    Raises:
        UserError: If the folder holds other data.
        Failure: If a file cannot be read, downloaded, or written.
    """
    output_dir.finish_publishing(output)
    check_replaceable(request, output)
    build = output_dir.build_dir(output, request.hash)
    saved = read_plan(build)
    plan = resume_plan(saved, request) if saved else None
    if plan is None:
        plan = make_plan(request)
        reuse_partial_build(plan, build)
    for sub in ("units", "shards", *SPLITS):
        (build / sub).mkdir(parents=True, exist_ok=True)
    plan.save(build / "plan.json")
    request.cache.save(output)
    download_inputs(plan)
    for warning in plan.warnings:
        warn(warning)
    return build / "plan.json"


def download_inputs(plan: Plan) -> None:
    """Download the files of hub datasets if hf_files=download, as the tasks may run without a network."""
    remote = [d for d in plan.datasets if d.root.startswith("hf://")]
    if plan.options.hf_files == "download" and remote:
        from nano3.data.sources.hub import endpoint
        from nano3.data.sources.hub_cache import download_files

        files = [(d.root, key, size) for d in remote for key, size in zip(d.keys, d.sizes, strict=True)]
        download_files(files, endpoint())


def read_plan(build: Path) -> Plan | None:
    """Return the plan of a build, or None if it is missing, damaged, or of another format."""
    try:
        plan = load_plan(build / "plan.json")
    except Failure:
        return None
    return plan if plan.format == PLAN_FORMAT else None


def resume_plan(saved: Plan, request: PrepRequest) -> Plan | None:
    """Return the saved plan with the request's weights, budgets, paths, and options; this saves scanning the files.

    Args:
        saved: Plan of an interrupted build.
        request: The preparation.

    Returns:
        The plan, or None if a file has changed or skipped rows are needed.
    """
    if saved.hash != request.hash or needs_skipped_rows(saved, request):
        return None
    for old, new in zip(saved.datasets, request.datasets, strict=True):
        now = {identity[0]: identity for identity in new.identities}  # the plan of a sample has fewer files
        if any(now.get(identity[0]) != identity for identity in old.identities):
            return None
        old.weight, old.path, old.root, old.revision = new.weight, new.path, new.root, new.revision
        old.budget = new.budget
    output = str(Path(request.options.output_dir).absolute())
    return msgspec.structs.replace(
        saved, blend=request.blend, output_dir=output, options=request.options, tokenizer=request.tokenizer
    )


def needs_skipped_rows(old: Plan, new: PrepRequest | Plan) -> bool:
    """Return whether the old plan skips bad rows and the new one fails on them."""
    return old.options.bad_rows == "skip" and new.options.bad_rows == "fail"


def reuse_partial_build(plan: Plan, build: Path) -> None:
    """Turn an interrupted build of this plan, or of one with some other files, into the build of this plan.

    Stale receipts are deleted first and the folder is renamed last, so the process may be killed at any time.

    Args:
        plan: The plan.
        build: Folder of its build.
    """
    others = [p for p in build.parent.iterdir() if (p / "units").is_dir() and p != build]
    for folder in [build, *sorted(others)]:
        old = read_plan(folder)
        if old is None or not same_layout(old, plan):
            continue
        stale = stale_units(old, plan, folder)
        # A text that appears or disappears may change what is left out of any shard.
        anywhere = bool(stale) and plan.drops_documents
        for shard in plan.shards():
            if anywhere or may_hold_documents(plan, shard, stale):
                shard_receipt_path(folder, plan, *shard).unlink(missing_ok=True)
        for number in stale:
            unit_receipt_path(folder, number).unlink(missing_ok=True)
        if folder != build:
            output_dir.remove_path(build)
            folder.rename(build)
        kept = len(list((build / "units").glob("*.json"))) if (build / "units").is_dir() else 0
        if kept:
            say(f"input has changed since an interrupted run: {kept:,} finished units are kept, the rest is rebuilt")
        return
    if others or (build / "units").is_dir():
        say(
            f"{build.parent.parent}: the interrupted build there has other options or other units: starting over "
            f"beside it. It is deleted when the new data is published."
        )
    output_dir.remove_path(build)


def same_layout(old: Plan, new: Plan) -> bool:
    """Return whether both plans have the same numbers of units and shards, options, and tokenizer."""

    def shape(plan: Plan) -> list[tuple[object, ...]]:
        return [(d.name, d.text_field, d.text_separator, d.units, tuple(d.shards)) for d in plan.datasets]

    settings = [hashed_settings(plan.options, plan.tokenizer, plan.dtype) for plan in (old, new)]
    return settings[0] == settings[1] and shape(old) == shape(new)


def stale_units(old: Plan, new: Plan, folder: Path) -> set[int]:
    """Return the numbers of the units of an old build that the new plan would build differently.

    Args:
        old: Plan of the build.
        new: The new plan, with the same layout.
        folder: Folder of the build.
    """
    moved = {text for text, _ in set(old.moved) ^ set(new.moved)}
    exact = new.options.dedup == "exact"
    stale = {unit for unit in range(new.units) if moved and may_hold_texts(folder, unit, moved, exact)}
    for number, (before, after) in enumerate(zip(old.datasets, new.datasets, strict=True)):
        base = new.first_units[number]
        stale.update(base + unit for unit in stale_in_dataset(before, after))
    if needs_skipped_rows(old, new):
        for unit in set(range(new.units)) - stale:
            receipt = read_receipt(unit_receipt_path(folder, unit), UnitReceipt)
            if receipt and (receipt.unencoded or set(receipt.skipped) - set(FILTERS)):
                stale.add(unit)
    return stale


def stale_in_dataset(before: DatasetPlan, after: DatasetPlan) -> set[int]:
    """Return the units, numbered in the dataset, that read a changed file; all if their bounds have moved."""
    if list(before.layout) != list(after.layout):
        return set(range(after.units))
    pairs = zip(before.identities, after.identities, strict=True)
    changed = {file for file, (old, new) in enumerate(pairs) if old != new}
    if not changed:
        return set()
    return {u for u in range(after.units) if any(file in changed for file, _ in after.file_ranges(u))}


def may_hold_documents(plan: Plan, shard: tuple[int, int, int], units: set[int]) -> bool:
    """Return whether a shard may hold documents of any of these units.

    Args:
        plan: The plan.
        shard: (split, dataset, number of the shard in them).
        units: Numbers of units in the plan.
    """
    split, dataset, number = shard
    first, last = plan.datasets[dataset].units_of_shard(split, number)
    base = plan.first_units[dataset]
    if first > last:  # empty now, but maybe not before the bounds moved
        first, last = 0, plan.datasets[dataset].units - 1
    return any(base + unit in units for unit in range(first, last + 1))
