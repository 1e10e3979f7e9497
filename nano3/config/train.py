"""Groups `train`, `optimizer`, `scheduler`, `logger`, `checkpoint`: how long, how fast, what is kept."""

from dataclasses import dataclass, field


@dataclass
class TrainConfig:
    """Batch arithmetic and length of a run. A sample is one sequence of `seq_length` tokens."""

    # Optimizer steps.
    train_iters: int = 1700
    # Samples per optimizer step over all ranks.
    global_batch_size: int = 32
    # Samples per forward pass of one rank; accumulation = global / (micro x data-parallel size).
    micro_batch_size: int = 1
    # Tokens per sample.
    seq_length: int = 4096
    # Seed of initial weights, data order and dropout.
    seed: int = 1234
    # Validate every this many iterations; 0 never does.
    eval_interval: int = 100
    # Global batches of one validation.
    eval_iters: int = 8
    # CPU threads of one rank (backend=transformers); null takes half the cores, shared by the ranks of this machine.
    threads: int | None = None
    # Stop after this many minutes with a checkpoint; null runs to the end.
    exit_duration_in_mins: float | None = None
    # Stop with a checkpoint after this iteration, without changing the schedule; null runs to train_iters.
    exit_iteration: int | None = None


@dataclass
class OptimizerConfig:
    """AdamW; weight decay on parameters of two or more dimensions."""

    # Highest learning rate.
    lr: float = 1e-3
    # Learning rate at the end of the schedule.
    min_lr: float = 1e-5
    # Decay of AdamW's mean of the gradient.
    adam_beta1: float = 0.9
    # Decay of AdamW's mean of the squared gradient.
    adam_beta2: float = 0.95
    # Added to the root of the squared mean before dividing by it.
    adam_eps: float = 1e-8
    # Decoupled weight decay, relative to the learning rate.
    weight_decay: float = 0.1
    # Largest global norm of the gradient; 0 never clips.
    clip_grad: float = 1.0


@dataclass
class SchedulerConfig:
    """Learning rate over iterations, as megatron.core.optimizer_param_scheduler computes it."""

    # WSD (warmup, stable, decay), cosine, linear, inverse-square-root or constant.
    lr_decay_style: str = "WSD"
    # Iterations of linear warmup from 0.
    lr_warmup_iters: int = 32
    # WSD only: iterations of the decay at the end; null takes a fifth of train.train_iters.
    lr_wsd_decay_iters: int | None = None
    # WSD only: shape of the decay (minus_sqrt, linear, cosine, exponential).
    lr_wsd_decay_style: str = "minus_sqrt"


@dataclass
class LoggerConfig:
    """What is told and where. metrics.jsonl is always written."""

    # Print and record metrics every this many iterations.
    log_interval: int = 10
    # TensorBoard folder; null: <run folder>/tensorboard.
    tensorboard_dir: str | None = None
    # backend=transformers: prompts that the finished model continues, shown and kept in <run folder>/samples.txt.
    sample_prompts: list[str] = field(default_factory=list)
    # Takes the place of run.wandb.project.
    wandb_project: str | None = None
    # Takes the place of run.wandb.entity.
    wandb_entity: str | None = None


@dataclass
class CheckpointConfig:
    """Checkpoints. A run that finds one in `load` goes on from it."""

    # Folder to save in; null: <run folder>/checkpoints.
    save: str | None = None
    # Folder to start from; null: the same as save. Another folder begins a new phase at iteration 0 with its weights.
    load: str | None = None
    # A start from another folder goes on at its iteration, in the same schedule, instead of beginning a new phase.
    keep_iteration: bool = False
    # Save every this many iterations, and at the end; 0 never saves (backend=megatron).
    save_interval: int = 100
    # Keep this many of the newest; 0 keeps all.
    keep_last: int = 2
