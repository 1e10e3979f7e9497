"""Group `data_blend`: which text is mixed, in which proportion. Plain dataclasses; sources are read by `nano3.data`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class SourceConfig:
    """One dataset of a blend, as written in a blend file or in `conf/data_blend/*.yaml`."""

    # Unique name; names the source in receipts, accounting and `valid_loss/<name>`.
    name: str = MISSING
    # hf://org/name, a file, a folder (searched recursively), a glob, or any fsspec URL (s3://, gs://, https://).
    path: str = MISSING
    # Relative weight in the blend; any positive number, normalised over the datasets.
    weight: float = 1.0
    # hf:// only: which split of the dataset on the hub.
    split: str = "train"
    # hf:// only: which configuration ("subset") of the dataset on the hub.
    subset: str | None = None
    # hf:// only: branch, tag or commit; the commit it resolves to is pinned in the manifest.
    revision: str | None = None
    # Column (parquet, Arrow) or key (jsonl) that holds the document's text. Plain .txt files are one document each.
    text_field: str = "text"


@dataclass
class BlendConfig:
    """A named blend."""

    # Short name; also the alias under which the prepared data is registered (DataBlendsArtifact-pretrain:<name>).
    name: str = MISSING
    # Each entry has the keys of SourceConfig; a list of plain dicts so that entries can be given on the command line.
    datasets: list[Any] = field(default_factory=list)
