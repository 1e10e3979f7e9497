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
    # Project to log into.
    project: str = "nano3"
    # User or team that owns the project; null takes your default.
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
    # What the run needs around it.
    env: EnvConfig = field(default_factory=EnvConfig)
    # Weights & Biases.
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

    # Name, data and place.
    run: RunConfig = field(default_factory=RunConfig)
    # megatron (GPU, Megatron-Bridge) or transformers (CPU or one GPU, reference).
    backend: str = "megatron"
    # backend=megatron: the recipe to start from.
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    # Group: which blend; names the data artifact.
    data_blend: BlendConfig = field(default_factory=BlendConfig)
    # Group: architecture and parallelism.
    model: ModelConfig = field(default_factory=ModelConfig)
    # Group: length, batch, sequence.
    train: TrainConfig = field(default_factory=TrainConfig)
    # AdamW: rates, decay, clipping.
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # Learning rate over iterations.
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    # What is told and where.
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    # What is kept, and what a start goes on from.
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # backend=megatron: any other field of Megatron-Bridge's ConfigContainer, checked against its dataclasses.
    megatron: dict[str, Any] = field(default_factory=dict)
    # Group: where it runs.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Show the resolved config, the preflight table and the job script; start and submit nothing.
    dry_run: bool = False
