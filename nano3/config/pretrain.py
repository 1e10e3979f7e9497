"""Configuration of `python -m nano3.pretrain`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nano3.config.blend import BlendConfig
from nano3.config.cluster import ClusterConfig
from nano3.config.guard import GuardConfig
from nano3.config.ladder import LadderConfig
from nano3.config.model import ModelConfig
from nano3.config.train import CheckpointConfig, LoggerConfig, OptimizerConfig, SchedulerConfig, TrainConfig


@dataclass
class EnvConfig:
    """Environment of a run. It belongs to the experiment, not to the cluster."""

    # Container image of the run (registry URL, .sqsh or .sif file), used unless
    # cluster.container_runtime is none; null uses no image.
    container: str | None = None


@dataclass
class WandbConfig:
    """Weights & Biases logging. Optional; it requires the extra `wandb`."""

    # Weights & Biases mode: online, offline or disabled.
    mode: str = "disabled"
    # Project to log to.
    project: str = "nano3"
    # User or team that owns the project; null uses your default entity.
    entity: str | None = None


@dataclass
class RunConfig:
    """Name, data and folder of a run."""

    # Name of the run and of its folder. Starting a run with an existing name resumes it.
    name: str = "pretrain"
    # Data to train on: an artifact (name:alias), or a folder with blend.json and manifest.json.
    data: str = "DataBlendsArtifact-pretrain:${data_blend.name}"
    # Run folder: resolved configuration, log, metrics.jsonl and checkpoints.
    output_dir: str = "output/nano3/runs/${run.name}"
    # Environment of the run.
    env: EnvConfig = field(default_factory=EnvConfig)
    # Weights & Biases logging.
    wandb: WandbConfig = field(default_factory=WandbConfig)


@dataclass
class RecipeConfig:
    """Megatron-Bridge recipe to which all other settings are applied (backend=megatron)."""

    # Dotted path of the recipe function, in megatron.bridge.recipes or megatron.bridge.perf_recipes.
    _target_: str = "megatron.bridge.recipes.nemotronh.nemotron_3_nano.nemotron_3_nano_pretrain_config"
    # Path of the blend file; by default the blend.json of run.data.
    per_split_data_args_path: str = "${art:data,path}/blend.json"


@dataclass
class PretrainConfig:
    """All keys of `python -m nano3.pretrain`."""

    # Name, data and folder of the run.
    run: RunConfig = field(default_factory=RunConfig)
    # Training backend: megatron (Megatron-Bridge on GPUs) or transformers (the reference, on CPU or one GPU).
    backend: str = "megatron"
    # Megatron-Bridge recipe to start from (backend=megatron).
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    # Group: the blend to train on. Its name selects the data artifact.
    data_blend: BlendConfig = field(default_factory=BlendConfig)
    # Group: architecture and parallelism.
    model: ModelConfig = field(default_factory=ModelConfig)
    # Group: length of the run, batch sizes and sequence length.
    train: TrainConfig = field(default_factory=TrainConfig)
    # AdamW: learning rates, weight decay and gradient clipping.
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # Learning-rate schedule.
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    # What is logged, and where.
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    # Which checkpoints are saved, and which one a run starts from.
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    # What happens when the loss or the gradient norm of an iteration is abnormal.
    guard: GuardConfig = field(default_factory=GuardConfig)
    # Size of a model of the ladder, from which model=ladder and train=ladder derive their settings.
    ladder: LadderConfig = field(default_factory=LadderConfig)
    # Any other field of Megatron-Bridge's ConfigContainer (backend=megatron), checked against its dataclasses.
    megatron: dict[str, Any] = field(default_factory=dict)
    # Group: where the run is executed.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    # Metric of metrics.jsonl that a run returns to the sweeper of `--multirun`, for example to Optuna: valid_loss,
    # valid_loss/<dataset>, loss or any other.
    objective: str = "valid_loss"
    # Which value of that metric: last, min or max.
    objective_take: str = "last"
    # Show the resolved configuration, the preflight table and the job script; start and submit nothing.
    dry_run: bool = False


def megatron_section(config: PretrainConfig, name: str) -> Mapping[str, Any]:
    """Return section `name` of the `megatron:` dict, or an empty mapping if it is absent or not a mapping."""
    section = config.megatron.get(name)
    return section if isinstance(section, Mapping) else {}
