"""The configuration of `python -m nano3.data_prep`: flat keys, each documented where it is declared."""

from dataclasses import dataclass, field

from nano3.config.blend import BlendConfig
from nano3.config.cluster import ClusterConfig
from nano3.config.pretrain import WandbConfig


@dataclass
class PrepOptions:
    """What decides the bytes of the prepared data, and how the work is done. Plain values, no Hydra needed."""

    # Where train/, valid/, test/, blend.json and manifest.json go.
    output_dir: str = "output/nano3/stage0_pretrain"
    # Hugging Face hub id, a local folder with tokenizer.json, or a tokenizer.json file.
    tokenizer_model: str = "nvidia/NVIDIA-Nemotron-Nano-9B-v2"
    # Put the beginning-of-sequence token before each document.
    add_bos: bool = False
    # Put the end-of-document token after each document (Megatron packs documents, so keep this on).
    add_eos: bool = True
    # Encode special-token text inside documents ("</s>") as plain text instead of as the special token.
    split_special_tokens: bool = False
    # Number of shards over all datasets and splits; each is about equal in tokens.
    num_shards: int = 128
    # Take only N documents of each dataset, spread over its files. null takes all.
    sample: int | None = None
    # Skip documents with fewer characters than this (counted in the manifest).
    min_doc_chars: int = 0
    # Cut documents after this many tokens; the end-of-document token stays. null never cuts.
    max_doc_tokens: int | None = None
    # Share of documents in the validation split, 0 to 1 (chosen by a hash of dataset, file and row).
    valid_fraction: float = 0.005
    # Share of documents in the test split, 0 to 1.
    test_fraction: float = 0.005
    # Token dtype on disk: auto (uint16 when the vocabulary fits, else int32), uint16 or int32.
    dtype: str = "auto"
    # Tokenizer engine: auto (fastest proven exact), strict (stop instead of falling back), tokenizers (the reference).
    engine: str = "auto"
    # Re-check one document in this many, or a stretch of a long one, against the reference tokenizer; 0 never.
    check_every: int = 10000
    # A row that cannot be read (no text field, not UTF-8, null): fail, or skip (skip and count).
    bad_rows: str = "fail"
    # Files of hf:// datasets: stream (read in place, stored nowhere) or download (the files that the plan needs go into
    # the hub's cache first; the next preparation takes them from there, without a network too).
    hf_files: str = "stream"
    # Do everything again and replace the old data once the new is whole.
    force: bool = False
    # Worker processes on this machine; null takes the number of cores.
    workers: int | None = None


@dataclass
class DataPrepConfig(PrepOptions):
    """All keys of `python -m nano3.data_prep`."""

    # A blend file (JSON); when set it takes the place of the data_blend group.
    blend_path: str | None = None
    # Group: which blend.
    data_blend: BlendConfig = field(default_factory=BlendConfig)
    # Group: where the work runs.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Overrides of a pretraining run to start when the data is there; `--then WORDS...` at the end of the line fills it.
    then: list[str] = field(default_factory=list)
    # Show the plan (files, rows, shards, disk) and the job script; write and submit nothing.
    dry_run: bool = False
    # Where the job files and logs of a preparation on Slurm go, as <job_dir>/prep-<blend>.
    job_dir: str = "output/nano3/runs"
    # Container image of the tasks on Slurm, used when cluster.container_runtime is not none; null: without a container.
    container: str | None = None
    # Name of the artifact that is registered at the end.
    artifact: str = "DataBlendsArtifact-pretrain"
    # Its alias; null takes the blend's name, with '-' for what an alias may not have.
    alias: str | None = None
    # Weights & Biases: whether the artifact is recorded there too, by reference.
    wandb: WandbConfig = field(default_factory=WandbConfig)
