"""From a request to a plan: check it, find and fingerprint the files, lay out units and shards."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nano3.config import PrepOptions, SourceConfig
from nano3.data.planning.moved_texts import move_texts
from nano3.data.planning.plan import DatasetPlan, Plan, content_hash, lay_out, plan_hash
from nano3.data.planning.sampling import sample_rows, sample_rows_for_tokens
from nano3.data.planning.split_rule import resolve_split_rule
from nano3.data.planning.splits import set_bounds
from nano3.data.sources.discovery import discover_files
from nano3.data.sources.fingerprint_cache import FingerprintCache, load_fingerprint_cache
from nano3.data.sources.formats import FORMATS
from nano3.data.sources.listing import check_name, local_path
from nano3.data.sources.reader_process import ReaderProcess
from nano3.data.sources.url_credentials import take_credentials
from nano3.data.tokenization.tokenizer import UINT16_VOCAB, TokenizerInfo, find_tokenizer, is_local_path, smallest_dtype
from nano3.utils.errors import Failure, Nano3Error, UserError, combine_errors, did_you_mean
from nano3.utils.gc_pause import gc_paused

CHOICES = {
    "dtype": ("auto", "uint16", "int32"),
    "engine": ("auto", "strict", "tokenizers"),
    "bad_rows": ("fail", "skip"),
    "hf_files": ("stream", "download"),
    "split_by": ("auto", "text", "position"),
    "dedup": ("none", "exact"),
}
ESTIMATE_BITS = 12
MAX_SHARDS = 32_766  # Megatron-Core's BlendedDataset numbers shards in int16


@dataclass
class PrepRequest:
    """A checked request whose files are found and whose identity is known. Cheap enough to make in every run.

    Attributes:
        sources: The datasets as configured.
        options: Options of the preparation; `split_by` is "text" or "position".
        blend: Name of the blend.
        tokenizer: The tokenizer.
        dtype: NumPy name of the token dtype on disk.
        datasets: Plans of the datasets, without split bounds, shards and units.
        hash: Identity of the bytes to be made (`plan_hash`).
        cache: Fingerprints of the files, to be saved for the next run.
    """

    sources: list[SourceConfig]
    options: PrepOptions
    blend: str
    tokenizer: TokenizerInfo
    dtype: str
    datasets: list[DatasetPlan]
    hash: str
    cache: FingerprintCache

    @property
    def content(self) -> str:
        """The `Manifest.content` that the data will have."""
        weights = {s.name: float(s.weight) for s in self.sources}
        return content_hash(self.hash, weights, {s.name: s.budget for s in self.sources if s.budget})


def make_request(sources: list[SourceConfig], options: PrepOptions, blend: str) -> PrepRequest:
    """Check a request and find its files. The network is used only if nothing else is wrong.

    Args:
        sources: The datasets.
        options: Options of the preparation.
        blend: Name of the blend.

    Raises:
        UserError: The request is wrong. The error lists all problems.
        Failure: At least one problem is not a mistake in the request. The error lists all problems.
    """
    sources = [replace(source, path=take_credentials(source.path)) for source in sources]
    problems = check_options(options) + check_sources(sources)
    if problems:
        raise combine_errors([UserError(problems), *collect_problems(sources, options)])
    failures: list[Nano3Error] = []
    cache = load_fingerprint_cache(Path(options.output_dir))
    tokenizer, datasets = discover_datasets(sources, options, cache, failures)
    if failures or tokenizer is None:
        raise combine_errors(failures)
    dtype = smallest_dtype(tokenizer.vocab_size) if options.dtype == "auto" else options.dtype
    if dtype == "uint16" and tokenizer.vocab_size >= UINT16_VOCAB:
        raise UserError(f"dtype=uint16: the vocabulary of {tokenizer.vocab_size:,} ids does not fit. Set dtype=auto.")
    by_position = replace(options, split_by="position")
    rule = resolve_split_rule(options, plan_hash(datasets, by_position, tokenizer, dtype))
    if options.dedup == "exact" and rule == "position":
        raise UserError(
            f"dedup=exact: the data in output_dir={options.output_dir} has split_by=position, and duplicates are only "
            f"dropped with split_by=text. Choose another output_dir, or set force=true split_by=text to replace it."
        )
    options = replace(options, split_by=rule)
    identity = plan_hash(datasets, options, tokenizer, dtype)
    return PrepRequest(sources, options, blend, tokenizer, dtype, datasets, identity, cache)


def collect_problems(sources: list[SourceConfig], options: PrepOptions) -> list[Nano3Error]:
    """Return the errors of tokenizer and datasets that can be found without the network."""
    failures: list[Nano3Error] = []
    local = [source for source in sources if local_path(source.path) is not None]
    discover_datasets(local, options, load_fingerprint_cache(Path(options.output_dir)), failures, network=False)
    return failures


def discover_datasets(
    sources: list[SourceConfig],
    options: PrepOptions,
    cache: FingerprintCache,
    failures: list[Nano3Error],
    network: bool = True,
) -> tuple[TokenizerInfo | None, list[DatasetPlan]]:
    """Find the tokenizer and the files of all datasets.

    Args:
        sources: The datasets.
        options: Options of the preparation.
        cache: Files in it are not opened.
        failures: Errors are added here.
        network: Whether a tokenizer may be looked up on the Hub.

    Returns:
        The tokenizer, or None, and the datasets without errors.
    """
    tokenizer, datasets = None, []
    try:
        if network or is_local_path(options.tokenizer_model):
            tokenizer = find_tokenizer(options.tokenizer_model, options.add_bos, options.add_eos, options.eod_token)
    except Nano3Error as error:
        failures.append(error)
    with gc_paused():  # 10^5 files are a million objects
        for source in sources:
            try:
                datasets.append(discover_dataset(source, options, cache))
            except Nano3Error as error:
                failures.append(error)
    return tokenizer, datasets


def discover_dataset(source: SourceConfig, options: PrepOptions, cache: FingerprintCache) -> DatasetPlan:
    """List and identify the files of a dataset."""
    found = discover_files(source, options.output_dir, cache, save_list=options.hf_files == "download")
    return DatasetPlan(
        name=source.name,
        weight=float(source.weight),
        path=source.path,
        text_field=source.text_field,
        root=found.root,
        revision=found.revision,
        keys=found.keys,
        sizes=found.sizes,
        fingerprints=found.fingerprints,
        formats=found.formats,
        estimated_bytes=[estimate_bytes(size, kind) for size, kind in zip(found.sizes, found.formats, strict=True)],
        times=found.mtimes,
        ctimes=found.ctimes,
        text_separator=source.text_separator,
        budget=source.budget,
    )


def estimate_bytes(size: int, kind: str) -> int:
    """Return about the bytes of text in a file, rounded up to ESTIMATE_BITS significant bits.

    Because of the rounding, fixing a row of a file seldom moves the bounds of units, and finished units can be reused.

    Args:
        size: Bytes of the file.
        kind: Format of the file.
    """
    estimate = size * FORMATS[kind].text_per_byte
    step = 1 << max(estimate.bit_length() - ESTIMATE_BITS, 0)
    return -(-estimate // step) * step


def make_plan(request: PrepRequest) -> Plan:
    """Complete a request to a plan: samples, split bounds, shards and units.

    Raises:
        UserError: A dataset has no documents, or its text field is wrong. The error lists all problems.
        Failure: A row or a file is bad. The error lists all problems.
    """
    failures: list[Nano3Error] = []
    hashes: list[np.ndarray | None] = []
    for dataset in request.datasets:
        try:
            hashes.append(complete_dataset(dataset, request.options, request.tokenizer))
        except Nano3Error as error:
            problems = [p if p.startswith("dataset ") else f"dataset {dataset.name!r}: {p}" for p in error.problems]
            failures.append(UserError(problems) if isinstance(error, UserError) else Failure(problems))
    if failures:
        raise combine_errors(failures)
    moved = move_texts(request.datasets, hashes, request.options)
    lay_out(request.datasets, request.options)
    return Plan(
        hash=request.hash,
        blend=request.blend,
        output_dir=str(Path(request.options.output_dir).absolute()),
        options=PrepOptions(
            **{k: v for k, v in asdict(request.options).items() if k in PrepOptions.__dataclass_fields__}
        ),
        tokenizer=request.tokenizer,
        dtype=request.dtype,
        datasets=request.datasets,
        moved=moved,
    )


def complete_dataset(dataset: DatasetPlan, options: PrepOptions, tokenizer: TokenizerInfo) -> np.ndarray | None:
    """Reduce a dataset to the requested sample, set the bounds of its splits, and return what `set_bounds` does."""
    with ReaderProcess() as process:
        if options.sample is not None:
            sample_rows(dataset, options.sample, process)
        elif options.sample_tokens is not None:
            sample_rows_for_tokens(dataset, int(options.sample_tokens), tokenizer, process)
        if not dataset.keys or not sum(dataset.estimated_bytes):
            raise UserError(f"dataset {dataset.name!r}: path={dataset.path}: no documents in its files.")
        return set_bounds(dataset, options, process.documents)


def check_options(options: PrepOptions) -> list[str]:
    """Return a problem for each option that is out of range."""
    problems = selection_problems(options)
    for name, allowed in CHOICES.items():
        if (value := getattr(options, name)) not in allowed:
            problems.append(f"{name}={value}:{did_you_mean(str(value), allowed)}")
    for name in ("num_shards", "sample", "max_doc_tokens", "workers"):
        if (value := getattr(options, name)) is not None and value < 1:
            problems.append(f"{name}={value}: must be at least 1.")
    if options.num_shards > MAX_SHARDS:
        problems.append(
            f"num_shards={options.num_shards}: Megatron's blends have at most {MAX_SHARDS:,} shards; give fewer."
        )
    for name in ("min_doc_chars", "check_every"):
        if (value := getattr(options, name)) < 0:
            problems.append(f"{name}={value}: must not be negative.")
    if (limit := options.max_bad_rows) is not None and not (0 <= limit < 1 or (limit >= 1 and limit % 1 == 0)):
        problems.append(
            f"max_bad_rows={limit}: must be a share from 0 to below 1, a whole number of rows, or null for no limit."
        )
    try:
        check_name(str(Path(options.output_dir).absolute()), f"output_dir={options.output_dir}")
    except UserError as error:
        problems += error.problems
    fractions = (options.valid_fraction, options.test_fraction)
    if not all(0 <= f < 1 for f in fractions) or sum(fractions) >= 1 or not np.isfinite(sum(fractions)):
        problems.append(
            f"valid_fraction={fractions[0]}, test_fraction={fractions[1]}: each must be at least 0 and both "
            f"together less than 1."
        )
    return problems


def selection_problems(options: PrepOptions) -> list[str]:
    """Return what is wrong with the options that choose documents: sample, sample_tokens, dedup."""
    problems = []
    if (tokens := options.sample_tokens) is not None:
        if not (tokens >= 1 and tokens % 1 == 0):
            problems.append(f"sample_tokens={tokens}: must be a whole number of tokens, at least 1.")
        if options.sample is not None:
            problems.append(f"sample={options.sample} and sample_tokens={tokens:g}: give one of the two.")
    if options.dedup == "exact" and options.split_by == "position":
        problems.append(
            "dedup=exact: needs split_by=text or auto, by which equal texts share a split. Leave split_by=position out."
        )
    return problems


def check_sources(sources: list[SourceConfig]) -> list[str]:
    """Return a problem for each dataset with a wrong name, weight or budget."""
    problems = [] if sources else ["the blend has no dataset."]
    names = [s.name for s in sources]
    problems += [
        f"dataset {name!r} is named {count} times; names must be unique."
        for name, count in Counter(names).items()
        if count > 1
    ]
    for source in sources:
        if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", source.name):
            problems.append(f"dataset {source.name!r}: a name consists of letters, digits and . _ + -")
        if not (np.isfinite(source.weight) and source.weight > 0):
            problems.append(f"dataset {source.name!r}: weight={source.weight} must be a positive number.")
        problems += [
            f"dataset {source.name!r}: {key}={value} must be a positive number."
            for key, value in source.budget.items()
            if not (np.isfinite(value) and value > 0)
        ]
        if source.epochs is not None and source.tokens is not None:
            problems.append(f"dataset {source.name!r}: give one of weight, epochs and tokens.")
    return problems
