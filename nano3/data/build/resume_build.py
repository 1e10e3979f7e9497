"""What is in the output folder already, and what of it can be kept: finished data, or a build that was interrupted.

A build may go on although its input has changed since: a unit is kept when every file it reads is still what it was.
"""

from dataclasses import asdict
from pathlib import Path

import msgspec

from nano3.data.build.receipts import UnitReceipt, read_receipt, shard_receipt, unit_receipt
from nano3.data.dataset import output_dir
from nano3.data.dataset.manifest import Manifest, encode_json, load_manifest, make_blend
from nano3.data.dataset.verify import check_shard_files
from nano3.data.planning.plan import NOT_HASHED, PLAN_FORMAT, SPLITS, DatasetPlan, Plan, hashed_settings, load_plan
from nano3.data.planning.planner import PrepRequest, make_plan
from nano3.data.sources.discovery import WHOLE_FILE_LIMIT
from nano3.data.sources.own_files import PUBLISHED, is_publishing
from nano3.data.tokenization.tokenizer import copy_tokenizer
from nano3.utils.console import say, warn
from nano3.utils.errors import Failure, UserError
from nano3.utils.files import write_text

FILTERS = ("short",)  # reasons to leave a document out that are not faults of its row


def find_complete_data(request: PrepRequest, output: Path) -> Manifest | None:
    """The published manifest when it is of this plan and its files are there; a new weight or name is written into
    it.
    """
    if not (output / "manifest.json").exists():
        return None
    manifest = load_manifest(output)
    if manifest.plan_hash != request.hash:
        raise other_data_error(output, manifest, request)
    check_skipped_rows(request, manifest)
    for shard in manifest.shards:
        if problems := check_shard_files(output, manifest, shard):
            raise Failure(f"{problem}. Run again with force=true to make the data again." for problem in problems)
    warn_of_modified_inputs(request, manifest)
    weights = {s.name: s.weight for s in request.sources}
    before = (manifest.blend, [d.weight for d in manifest.datasets])
    manifest.blend = request.blend
    for dataset in manifest.datasets:
        dataset.weight = weights[dataset.name]
    blend = encode_json(make_blend(manifest, output))
    moved = not (output / "blend.json").exists() or (output / "blend.json").read_text() != blend
    tokenizer = output / manifest.tokenizer.path
    if not (tokenizer / "tokenizer.json").exists():
        with output_dir.hold_output_lock(output):
            copy_tokenizer(request.tokenizer, tokenizer)
        say(f"{tokenizer}: was missing; copied again")
    news = [
        what
        for what, old, new in (
            ("weights", before[1], [d.weight for d in manifest.datasets]),
            ("name", before[0], manifest.blend),
        )
        if old != new
    ]
    if moved or news:
        with output_dir.hold_output_lock(output):
            write_text(output / "blend.json", blend)
            write_text(output / "manifest.json", encode_json(manifest))
        what = " and ".join(news) or "place of the shards"
        say(f"{output}: complete; blend.json and manifest.json now have the new {what}")
    else:
        request.cache.save_if_many(output)
        say(f"{output}: complete, nothing to do ({len(manifest.shards)} shards)")
    return manifest


def check_output_dir(request: PrepRequest) -> None:
    """Raise `UserError` when what lies in the output folder forbids this preparation; changes nothing there."""
    output = Path(request.options.output_dir)
    if request.options.force or is_publishing(output):  # the start that follows finishes the publishing first
        return
    check_replaceable(request, output)
    if (output / "manifest.json").exists():
        check_skipped_rows(request, load_manifest(output))


def check_replaceable(request: PrepRequest, output: Path) -> None:
    """Raise `UserError` when the output folder holds what this request would replace without having been told to."""
    if not (output / "manifest.json").exists():
        if strange := [n for n in PUBLISHED if (output / n).exists()]:
            raise UserError(
                f"output_dir={output}: has {', '.join(strange)} but no manifest.json, so nano3 did not make it, or "
                f"cannot tell what it is. Choose another output_dir, or remove them if they are of no use."
            )
    elif not request.options.force and (found := load_manifest(output)).plan_hash != request.hash:
        raise other_data_error(output, found, request)


def other_data_error(output: Path, there: Manifest, request: PrepRequest) -> UserError:
    return UserError(
        f"output_dir={output}: holds other data (plan {there.plan_hash[:16]}, now {request.hash[:16]}): "
        f"{list_differences(there, request)}. Choose another output_dir, or set force=true to replace it once the new data "
        f"is whole."
    )


def list_differences(there: Manifest, request: PrepRequest) -> str:
    """What makes a request another one than that of the data which are there, as far as the manifest tells."""
    options = asdict(request.options)
    found = [
        f"{key} was {there.options[key]}, now {options[key]}"
        for key in sorted(there.options.keys() & options.keys() - NOT_HASHED)
        if there.options[key] != options[key]
    ]
    if there.dtype != request.dtype:
        found.append(f"dtype was {there.dtype}, now {request.dtype}")
    if there.tokenizer.sha256 != request.tokenizer.sha256:
        found.append(f"the tokenizer was {there.tokenizer.model}, now {request.tokenizer.model}")
    names = [d.name for d in there.datasets], [d.name for d in request.datasets]
    if names[0] != names[1]:
        found.append(f"its datasets were {', '.join(names[0])}, now {', '.join(names[1])}")
    return "; ".join(found) or "the text has changed, or which field of it is read"


def check_skipped_rows(request: PrepRequest, manifest: Manifest) -> None:
    """Data from which bad rows were left out is not what somebody asks for who wants them to stop the run."""
    if request.options.bad_rows == "skip":
        return
    problems = []
    for dataset in manifest.datasets:
        bad = {reason: rows for reason, rows in dataset.skipped.items() if reason not in FILTERS}
        if bad:
            what = ", ".join(f"{rows:,} {reason}" for reason, rows in bad.items())
            problems.append(
                f"dataset {dataset.name!r}: the data there was made without {sum(bad.values()):,} bad rows "
                f"({what}), and bad_rows=fail allows none. Set bad_rows=skip to take it as it is; "
                f"or mend the rows and set force=true."
            )
    if problems:
        raise UserError(problems)


def warn_of_modified_inputs(request: PrepRequest, manifest: Manifest) -> None:
    """Name large files whose time differs from that in the manifest: their fingerprints do not cover every byte."""
    entries = {d.name: d.inputs for d in manifest.datasets}
    for dataset in request.datasets:
        now = dict(zip(dataset.keys, dataset.times, strict=True))
        touched = [
            file.name
            for file in entries[dataset.name]
            if file.bytes > WHOLE_FILE_LIMIT and now.get(file.name, 0) != file.mtime_ns
        ]
        if touched:
            more = f" and {len(touched) - 3:,} more" if len(touched) > 3 else ""
            warn(
                f"dataset {dataset.name!r}: {', '.join(touched[:3])}{more}: changed on disk since the data was made; "
                f"size and samples of the content are the same, so it is taken for the same text. If it is not, set "
                f"force=true."
            )


def is_published(plan: Plan) -> bool:
    """Whether the output folder already holds this plan's data and no build of it is under way."""
    output = Path(plan.output_dir)
    if not (output / "manifest.json").exists():
        return False
    building = (output_dir.build_dir(output, plan.hash) / "units").is_dir()
    return not building and load_manifest(output).plan_hash == plan.hash


# Unfinished builds


def set_up_build(request: PrepRequest, output: Path) -> Path:
    """The path of the plan to work on, in a folder that holds what can be kept of earlier work. Needs the exclusive
    lock.
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
    download_files(plan)
    for note in [note for d in plan.datasets for note in d.warnings]:
        warn(note)
    return build / "plan.json"


def download_files(plan: Plan) -> None:
    """Before any task runs, download what is to be downloaded; tasks may run where there is no network."""
    remote = [d for d in plan.datasets if d.root.startswith("hf://")]
    if plan.options.hf_files == "download" and remote:
        from nano3.data.sources.hub import endpoint
        from nano3.data.sources.hub_cache import download_files

        download_files(
            [(d.root, key, size) for d in remote for key, size in zip(d.keys, d.sizes, strict=True)], endpoint()
        )


def read_plan(build: Path) -> Plan | None:
    """The plan of a build; None when there is none, or none that can be read."""
    try:
        plan = load_plan(build / "plan.json")
    except Failure:
        return None
    return plan if plan.format == PLAN_FORMAT else None


def resume_plan(saved: Plan, request: PrepRequest) -> Plan | None:
    """The saved plan with what may differ from run to run; None when a file has changed. Saves reading for it again."""
    if saved.hash != request.hash or needs_skipped_rows(saved, request):
        return None
    for old, new in zip(saved.datasets, request.datasets, strict=True):
        now = {identity[0]: identity for identity in new.identities}  # a sample's plan has fewer files
        if any(now.get(identity[0]) != identity for identity in old.identities):
            return None
        old.weight, old.path, old.root, old.revision = new.weight, new.path, new.root, new.revision
    output = str(Path(request.options.output_dir).absolute())
    return msgspec.structs.replace(
        saved, blend=request.blend, output_dir=output, options=request.options, tokenizer=request.tokenizer
    )


def needs_skipped_rows(old: Plan, new: PrepRequest | Plan) -> bool:
    """Whether bad rows were skipped but are now to stop the run."""
    return old.options.bad_rows == "skip" and new.options.bad_rows == "fail"


def reuse_partial_build(plan: Plan, build: Path) -> None:
    """Make of an unfinished build, of this plan or of one that differs in some files, the start of this one.

    Receipts of what is stale go first and the folder gets its name last, so a kill in between does no harm.
    """
    folders = [p for p in build.parent.iterdir() if (p / "units").is_dir() and p != build]
    for place in [build, *sorted(folders)]:
        old = read_plan(place)
        if old is None or not same_layout(old, plan):
            continue
        units = stale_units(old, plan, place)
        for shard in plan.shards():
            if may_hold_documents(plan, shard, units):
                shard_receipt(place, plan, *shard).unlink(missing_ok=True)
        for number in units:
            unit_receipt(place, number).unlink(missing_ok=True)
        if place != build:
            output_dir.remove_path(build)
            place.rename(build)
        kept = len(list((build / "units").glob("*.json"))) if (build / "units").is_dir() else 0
        if kept:
            say(f"input has changed since an unfinished run: {kept:,} finished units are kept, the rest is made anew")
        return
    if folders or (build / "units").is_dir():
        say(
            f"{build.parent.parent}: unfinished work there has other options or is cut elsewhere: starting over beside "
            f"it. It goes when this is published."
        )
    output_dir.remove_path(build)


def same_layout(old: Plan, new: Plan) -> bool:
    """Whether units and shards of both plans have the same numbers and are made by the same recipe."""

    def shape(plan: Plan) -> list[tuple[object, ...]]:
        return [(d.name, d.text_field, d.units, tuple(d.shards)) for d in plan.datasets]

    recipes = [hashed_settings(plan.options, plan.tokenizer, plan.dtype) for plan in (old, new)]
    return recipes[0] == recipes[1] and shape(old) == shape(new)


def stale_units(old: Plan, new: Plan, place: Path) -> set[int]:
    """Numbers of the units that would not come out as their receipts say."""
    stale: set[int] = set()
    for number, (before, after) in enumerate(zip(old.datasets, new.datasets, strict=True)):
        base = new.first_units[number]
        stale.update(base + unit for unit in stale_in_dataset(before, after))
    if needs_skipped_rows(old, new):
        for unit in set(range(new.units)) - stale:
            receipt = read_receipt(unit_receipt(place, unit), UnitReceipt)
            if receipt and set(receipt.skipped) - set(FILTERS):
                stale.add(unit)
    return stale


def stale_in_dataset(before: DatasetPlan, after: DatasetPlan) -> set[int]:
    """Units, counted in the dataset, that read a changed file; all of them when the cuts have moved."""
    if list(before.layout) != list(after.layout):
        return set(range(after.units))
    pairs = zip(before.identities, after.identities, strict=True)
    changed = {file for file, (old, new) in enumerate(pairs) if old != new}
    if not changed:
        return set()
    return {u for u in range(after.units) if any(file in changed for file, _ in after.file_ranges(u))}


def may_hold_documents(plan: Plan, shard: tuple[int, int, int], units: set[int]) -> bool:
    """Whether a shard may hold documents of any of these units."""
    split, dataset, number = shard
    first, last = plan.datasets[dataset].units_of_shard(split, number)
    base = plan.first_units[dataset]
    if first > last:  # empty; where the cuts have moved it may not have been
        first, last = 0, plan.datasets[dataset].units - 1
    return any(base + unit in units for unit in range(first, last + 1))
