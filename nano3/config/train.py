"""Sections `train`, `optimizer`, `scheduler`, `logger` and `checkpoint` of a run."""

from dataclasses import dataclass, field
from typing import Any

# Values of train.document_boundaries.
BOUNDARIES = ("cross", "isolate")


@dataclass
class LossMaskConfig:
    """Predictions that do not count in the loss, in training and validation."""

    # Leave out the prediction that follows an end-of-document token: the first token of the next document. The
    # end-of-document token itself is still learned (Megatron's eod_mask_loss).
    eod: bool = False


@dataclass
class TrainConfig:
    """Length of a run and its batch sizes. A sample is one sequence of `seq_length` tokens."""

    # Number of iterations (optimizer steps).
    train_iters: int = 1700
    # Samples per iteration, summed over all ranks.
    global_batch_size: int = 32
    # Samples per forward pass of one rank. Gradients are accumulated over global_batch_size /
    # (micro_batch_size x data-parallel size) passes.
    micro_batch_size: int = 1
    # Tokens per sample.
    seq_length: int = 4096
    # Whether the documents of a sample see each other. cross: a token sees all earlier tokens of its sample. isolate:
    # attention, Mamba state, convolution and positions start again at each document (docs/configure-a-run.md).
    document_boundaries: str = "cross"
    # Predictions that do not count in the loss.
    loss_mask: LossMaskConfig = field(default_factory=LossMaskConfig)
    # Random seed of initial weights, data order and dropout.
    seed: int = 1234
    # Run validation every this many iterations; 0 disables validation.
    eval_interval: int = 100
    # Number of global batches per validation.
    eval_iters: int = 8
    # CPU threads per rank (backend=transformers); null uses half the CPU cores,
    # divided among the ranks of this machine.
    threads: int | None = None
    # End the run, and restart it on Slurm, if a rank makes no progress for this many seconds (or for five times its
    # longest step after the first, if that is more); the stacks of all ranks are written to <run folder>/hang. null
    # waits forever.
    hang_timeout_s: float | None = 300.0
    # Save a checkpoint and stop after this many minutes; null sets no time limit.
    exit_duration_in_mins: float | None = None
    # Save a checkpoint and stop after this iteration without changing the schedule; null runs to train_iters.
    exit_iteration: int | None = None
    # Iterations to leave out, as pairs of the first and the last one, both included: [[120, 125], [300, 300]]. They are
    # counted and their samples are passed over; weights and learning rate stay as they are.
    skip_iterations: list[list[int]] = field(default_factory=list)
    # Order of the samples: megatron draws it as Megatron's blended dataset does; nano3 reads every token of a dataset
    # once an epoch, in an order that needs no index and can change the mixture (docs/mix-datasets-exactly.md).
    sample_order: str = "megatron"
    # Stages of the run, each with a blend: [{until: 60%, blend: {docs: 0.7, code: {epochs: 2.5}}}, {blend: {docs: 1}}].
    # until is a share, an iteration or '3e9 tokens'; a dataset has a weight, epochs or tokens, and optionally
    # max_epochs. Empty uses the blend of the data. Needs train.sample_order=nano3; may change on a resume.
    mixture: list[Any] = field(default_factory=list)


@dataclass
class OptimizerConfig:
    """AdamW. Weight decay applies to parameters with two or more dimensions."""

    # Maximum learning rate.
    lr: float = 1e-3
    # Learning rate at the end of the schedule.
    min_lr: float = 1e-5
    # Decay rate of AdamW's first moment.
    adam_beta1: float = 0.9
    # Decay rate of AdamW's second moment.
    adam_beta2: float = 0.95
    # Term added to AdamW's denominator for numerical stability.
    adam_eps: float = 1e-8
    # Decoupled weight decay coefficient, multiplied by the learning rate.
    weight_decay: float = 0.1
    # Maximum global norm of the gradient; 0 disables clipping.
    clip_grad: float = 1.0


@dataclass
class SchedulerConfig:
    """Learning-rate schedule, as computed by megatron.core.optimizer_param_scheduler."""

    # Shape of the schedule: WSD (warmup, stable, decay), cosine, linear, inverse-square-root or constant.
    lr_decay_style: str = "WSD"
    # Iterations of linear warmup from 0 to the maximum learning rate.
    lr_warmup_iters: int = 32
    # Iterations of the decay at the end of a WSD schedule; null uses a fifth of train.train_iters.
    lr_wsd_decay_iters: int | None = None
    # Shape of the decay of a WSD schedule: minus_sqrt, linear, cosine or exponential.
    lr_wsd_decay_style: str = "minus_sqrt"


@dataclass
class LoggerConfig:
    """What is logged, and where. metrics.jsonl is always written."""

    # Print and record metrics every this many iterations.
    log_interval: int = 10
    # TensorBoard folder; null uses <run folder>/tensorboard.
    tensorboard_dir: str | None = None
    # Prompts for the finished model to complete (backend=transformers). The completions are printed
    # and saved to <run folder>/samples.txt.
    sample_prompts: list[str] = field(default_factory=list)
    # Weights & Biases project; null uses run.wandb.project.
    wandb_project: str | None = None
    # Weights & Biases user or team; null uses run.wandb.entity.
    wandb_entity: str | None = None


@dataclass
class CheckpointConfig:
    """Which checkpoints are saved and loaded. A run resumes from its own newest checkpoint in `save`.

    If it has none yet, it starts from `load`.
    """

    # Folder to save checkpoints in; null uses <run folder>/checkpoints.
    save: str | None = None
    # Folder to load a checkpoint from if the run has none of its own; null uses the same folder as save. A
    # different folder starts a new phase at iteration 0 from its weights.
    load: str | None = None
    # When load is a different folder, continue at its iteration and in the same
    # schedule instead of starting a new phase.
    keep_iteration: bool = False
    # Save a checkpoint every this many iterations, and at the end; 0 never saves (backend=megatron).
    save_interval: int = 100
    # Keep only this many of the newest checkpoints; 0 keeps all.
    keep_last: int = 2
    # What a damaged newest checkpoint leads to. fallback: it is renamed to iter_*.damaged and the run resumes from the
    # newest sound one before it. refuse: the run does not start.
    on_damage: str = "fallback"
    # End the run after this many failed saves in a row, for example on a full disk. Before that, a failed save is
    # reported and the next one is taken at the next interval. The last save of a run must not fail.
    max_failed_saves: int = 3
    # Export every this many checkpoints, and the last one of the run, to <run folder>/exports/iter_N as a Hugging Face
    # model, in a background process of low priority; 0 exports none.
    export_every: int = 0
