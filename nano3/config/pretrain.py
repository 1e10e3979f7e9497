"""The configuration of `python -m nano3.pretrain`."""

from dataclasses import dataclass, field
from typing import Any

from nano3.config.blend import BlendConfig
from nano3.config.cluster import ClusterConfig
from nano3.config.model import ModelConfig
from nano3.config.train import CheckpointConfig, LoggerConfig, OptimizerConfig, SchedulerConfig, TrainConfig


@dataclass
class EnvConfig:
    """What the run needs around it; belongs to the experiment, not to the cluster."""

    # Container image (registry URL, .sqsh or .sif file); used when cluster.container_runtime is not none.
    container: str | None = None


@dataclass
class WandbConfig:
    """Weights & Biases. Needs the extra `wandb`; everything works without it."""

    # online, offline or disabled.
    mode: str = "disabled"
    project: str = "nano3"
    entity: str | None = None


@dataclass
class RunConfig:
    """Name, data and place of one run."""

    # Names the run folder; starting the same name again goes on where it stopped.
    name: str = "pretrain"
    # An artifact (name:alias) or a folder that holds blend.json and manifest.json.
    data: str = "DataBlendsArtifact-pretrain:${data_blend.name}"
    # Run folder: frozen config, log, metrics.jsonl, checkpoints.
    output_dir: str = "output/nano3/runs/${run.name}"
    env: EnvConfig = field(default_factory=EnvConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class RecipeConfig:
    """backend=megatron: the Megatron-Bridge recipe that everything else is applied onto."""

    # Dotted path of a recipe function; packages allowed: megatron.bridge.recipes.
    _target_: str = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config"
    # The blend file; its path comes from run.data.
    per_split_data_args_path: str = "${art:data,path}/blend.json"


@dataclass
class PretrainConfig:
    """All keys of `python -m nano3.pretrain`."""

    run: RunConfig = field(default_factory=RunConfig)
    # megatron (GPU, Megatron-Bridge) or transformers (CPU or one GPU, reference).
    backend: str = "megatron"
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    # Group: which blend; names the data artifact.
    data_blend: BlendConfig = field(default_factory=BlendConfig)
    # Group: architecture and parallelism.
    model: ModelConfig = field(default_factory=ModelConfig)
    # Group: length, batch, sequence.
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # backend=megatron: any other field of Megatron-Bridge's ConfigContainer, checked against its dataclasses.
    megatron: dict[str, Any] = field(default_factory=dict)
    # Group: where it runs.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Show the resolved config, the preflight table and the job script; start and submit nothing.
    dry_run: bool = False
