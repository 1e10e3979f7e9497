"""Configuration of `python -m nano3.data_prep`."""

from dataclasses import dataclass, field

from nano3.config.blend import BlendConfig
from nano3.config.cluster import ClusterConfig
from nano3.config.pretrain import WandbConfig


@dataclass
class PrepOptions:
    """Options that determine the prepared data and how the work is done. They can be used without Hydra."""

    # Output folder of the prepared data: train/, valid/, test/, blend.json and manifest.json.
    output_dir: str = "output/nano3/stage0_pretrain"
    # Tokenizer: a Hugging Face hub id, a local folder with tokenizer.json, or a tokenizer.json file.
    tokenizer_model: str = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    # Add the beginning-of-sequence token before each document.
    add_bos: bool = False
    # Add the end-of-document token after each document. Keep this on: Megatron
    # packs several documents into one sample.
    add_eos: bool = True
    # The token that ends documents, by its text or its id; null takes the tokenizer's eos_token. Set it if that one
    # ends a turn of a conversation, as in chat models.
    eod_token: str | None = None
    # Encode the text of special tokens inside documents, such as "</s>", as plain
    # text instead of as the special token.
    split_special_tokens: bool = False
    # Total number of shards over all datasets and splits. Shards have about the same number of tokens.
    num_shards: int = 128
    # Use only this many documents of each dataset, spread over its files; null uses all documents.
    sample: int | None = None
    # Use only this many tokens of each dataset, for example 2e9, spread over its files; not together with sample. Each
    # shard has its share of them, to within one document.
    sample_tokens: float | None = None
    # Skip documents with fewer characters than this; 0 skips none. Skipped documents are counted in the manifest.
    min_doc_chars: int = 0
    # Truncate documents after this many tokens and keep the end-of-document token; null never truncates.
    max_doc_tokens: int | None = None
    # Fraction of documents in the validation split, from 0 to 1. Documents are assigned
    # by a hash of their text, see split_by.
    valid_fraction: float = 0.005
    # Fraction of documents in the test split, from 0 to 1.
    test_fraction: float = 0.005
    # What decides the split of a document: text (equal texts share a split, in all datasets), position (a hash of
    # dataset, file and row, as in data of nano3 0.1.0) or auto (the rule of what output_dir holds, else text).
    split_by: str = "auto"
    # What happens to documents whose text an earlier document has, in any dataset: none (they are counted and kept) or
    # exact (they are dropped and counted). Datasets come in the order of the blend, then files, then rows.
    dedup: str = "none"
    # Token type on disk: auto (uint16 if the vocabulary fits, else int32), uint16 or int32.
    dtype: str = "auto"
    # Tokenizer engine: auto (the fastest engine verified to be exact), strict (like auto, but fail instead of falling
    # back) or tokenizers (the reference).
    engine: str = "auto"
    # Compare one document in this many, or a section of a long one, with the
    # reference tokenizer; 0 disables the check.
    check_every: int = 10000
    # How to handle rows that cannot be read (text field missing or null, not UTF-8):
    # fail, or skip (skip and count them).
    bad_rows: str = "fail"
    # Stop a run with bad_rows=skip if a dataset has more bad rows than this: a share of its rows if below 1, else a
    # number of rows; null has no limit. Published data is not affected.
    max_bad_rows: float | None = 0.01
    # How to read the files of hf:// datasets: stream (read remotely, store nothing) or download (download the files of
    # the plan into the hub cache first; later preparations read them from there, even offline).
    hf_files: str = "stream"
    # Prepare everything from scratch, and replace existing data once the new data is complete.
    force: bool = False
    # Number of worker processes on this machine; null uses the number of CPU cores.
    workers: int | None = None


@dataclass
class DataPrepConfig(PrepOptions):
    """All keys of `python -m nano3.data_prep`."""

    # Blend file (JSON) to use instead of the data_blend group; null uses data_blend.
    blend_path: str | None = None
    # Group: the datasets to prepare and their weights.
    data_blend: BlendConfig = field(default_factory=BlendConfig)
    # Group: where the work runs.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Overrides of a pretraining run to start once the data is prepared. Usually set with --then
    # WORDS... at the end of the command line.
    then: list[str] = field(default_factory=list)
    # Show the plan (files, rows, shards, disk space) and the job script; write and submit nothing.
    dry_run: bool = False
    # Parent folder of the job files and logs of a preparation on Slurm, which are in <job_dir>/prep-<blend>.
    job_dir: str = "output/nano3/runs"
    # Container image of the Slurm tasks, used unless cluster.container_runtime is none; null uses no container.
    container: str | None = None
    # Name of the artifact under which the finished data is registered.
    artifact: str = "DataBlendsArtifact-pretrain"
    # Alias of the registered artifact; null uses the blend's name, with '-' for
    # characters that are not allowed in an alias.
    alias: str | None = None
    # Weights & Biases: whether to record the artifact there too, by reference.
    wandb: WandbConfig = field(default_factory=WandbConfig)
