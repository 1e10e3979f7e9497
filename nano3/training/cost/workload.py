"""What one GPU of a run holds and computes: architecture, layout, batch, and the settings that cost memory or time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nano3.config import PretrainConfig
from nano3.config.pretrain import megatron_section
from nano3.training.checks.low_precision import BF16, DELAYED
from nano3.training.checks.model_stats import Architecture, RecipeValues
from nano3.training.checks.parallel_layout import ParallelLayout

# Recompute everything between the inputs of two layers (recompute_granularity=full).
FULL: Final = ("full",)
# Names of layer kinds in cuda_graph_modules.
_GRAPHED: Final[dict[str, str]] = {"M": "mamba", "*": "attn", "-": "mlp", "E": "moe"}
BYTES: Final[dict[str, int]] = {"float32": 4, "fp32": 4, "bfloat16": 2, "bf16": 2, "float16": 2, "fp16": 2, "uint8": 1}
# Settings that change parameters, memory or time and are not in these estimates, with their values besides null and
# false that change nothing.
_UNCOUNTED: Final[dict[str, tuple[Any, ...]]] = {
    "model.moe_latent_size": (),
    "model.multi_latent_attention": (),
    "model.experimental_attention_variant": (),
    "model.attention_output_gate": (),
    "model.window_size": (),
    "model.moe_expert_capacity_factor": (),
    "model.expert_tensor_parallel_size": (1,),
    "model.virtual_pipeline_model_parallel_size": (1,),
    "model.fine_grained_activation_offloading": (),
    "model.cpu_offloading": (),
    "model.moe_paged_stash": (),
    "optimizer.optimizer": ("adam",),
    "optimizer.optimizer_cpu_offload": (),
    "ddp.use_megatron_fsdp": (),
    "dist.use_megatron_fsdp": (),
    "dist.use_torch_fsdp2": (),
}


@dataclass(frozen=True)
class Workload:
    """One run, as far as it decides what a GPU has to hold and to compute.

    Attributes:
        model: The architecture.
        layout: How the ranks are divided.
        seq_length: Tokens per sample.
        micro_batch_size: Samples per rank at a time.
        global_batch_size: Samples per iteration.
        sequence_parallel: Whether tensor-parallel ranks split the tokens of norms and residuals.
        recompute: Parts of a layer that the backward pass computes again; FULL for whole layers.
        dispatcher: How tokens reach their experts: allgather, alltoall or flex.
        graph_impl: How CUDA graphs are made; "none" without any.
        graphs: Parts of the model in CUDA graphs.
        offloaded: Parts whose activations are moved to the host.
        isolated: Whether the documents of a sample do not see each other.
        precision: Of the matrix products of the layers, from `low_precision.TITLES`.
        gradient_bytes: Per parameter.
        optimizer_bytes: Per parameter: master weight and moments.
        sharded_optimizer: Whether data-parallel ranks divide the optimizer's state.
    """

    model: Architecture
    layout: ParallelLayout
    seq_length: int
    micro_batch_size: int
    global_batch_size: int
    sequence_parallel: bool = False
    recompute: tuple[str, ...] = ()
    dispatcher: str = "allgather"
    graph_impl: str = "none"
    graphs: tuple[str, ...] = ()
    offloaded: tuple[str, ...] = ()
    isolated: bool = False
    precision: str = BF16
    gradient_bytes: int = 2
    optimizer_bytes: int = 12
    sharded_optimizer: bool = True

    @property
    def fp8(self) -> bool:
        """Whether the matrix products are in a form of FP8. Those in NVFP4 were not measured and count as bf16."""
        return "fp8" in self.precision

    @property
    def tokens(self) -> float:
        """Tokens of one micro batch on one rank."""
        return self.micro_batch_size * self.seq_length / self.layout.context

    @property
    def micro_batches(self) -> int:
        """Micro batches of one iteration per rank; at least 1, since other checks report sizes below that."""
        return max(self.global_batch_size // max(self.micro_batch_size * self.layout.data, 1), 1)

    @property
    def split_tokens(self) -> float:
        """Tokens of norms and residuals on one rank."""
        return self.tokens / (self.layout.tensor if self.sequence_parallel else 1)

    @property
    def local_experts(self) -> float:
        """Routed experts of one MoE layer on one rank."""
        return self.model.num_moe_experts / self.layout.expert

    @property
    def routed_tokens(self) -> float:
        """Copies of tokens that the experts of one rank process in one MoE layer, if routing is balanced."""
        return self.tokens / self.layout.tensor * self.model.moe_router_topk

    def is_graphed(self, kind: str) -> bool:
        """Return whether CUDA graphs launch the kernels of a layer kind."""
        return _GRAPHED[kind] in self.graphs

    def repeats_forward(self, kind: str) -> bool:
        """Return whether the backward pass of a layer kind repeats its forward pass."""
        module = {"E": "moe", "-": "mlp"}.get(kind)
        return self.recompute == FULL or module in self.recompute


def workload_from_config(
    config: PretrainConfig, known: RecipeValues | None, model: Architecture, layout: ParallelLayout
) -> Workload:
    """Return the workload of a configuration for Megatron.

    Args:
        config: The run's configuration.
        known: The recipe's values.
        model: The architecture.
        layout: How the ranks are divided.
    """

    def value(section: str, name: str, default: Any = None) -> Any:
        own: Mapping[str, Any] = megatron_section(config, section)
        if name in own:
            return own[name]
        return known.value(f"{section}.{name}", default) if known else default

    sequence_parallel = config.model.sequence_parallel
    if sequence_parallel is None:
        sequence_parallel = value("model", "sequence_parallel", False)
    train, isolated = config.train, config.train.document_boundaries == "isolate"
    graph_impl = "none" if isolated else str(value("model", "cuda_graph_impl", "none"))  # see `recipe.adaptations`
    offloads = value("model", "fine_grained_activation_offloading", False)
    return Workload(
        model=model,
        layout=layout,
        seq_length=train.seq_length,
        micro_batch_size=train.micro_batch_size,
        global_batch_size=train.global_batch_size,
        sequence_parallel=bool(sequence_parallel) and layout.tensor > 1,
        recompute=_recompute(value("model", "recompute_granularity"), value("model", "recompute_modules")),
        dispatcher=_dispatcher(str(value("model", "moe_token_dispatcher_type", "alltoall")), config, layout),
        graph_impl=graph_impl,
        graphs=_names(value("model", "cuda_graph_modules")) if graph_impl != "none" else (),
        offloaded=_names(value("model", "offload_modules")) if offloads else (),
        isolated=isolated,
        precision=_precision(config, value),
        gradient_bytes=4 if value("mixed_precision", "grad_reduce_in_fp32", False) else 2,
        optimizer_bytes=_optimizer_bytes(value),
        sharded_optimizer=bool(value("optimizer", "use_distributed_optimizer", True)),
    )


def uncounted_warning(config: PretrainConfig, known: RecipeValues | None, w: Workload) -> str | None:
    """Return the sentence that names the settings of a run that its estimates leave out, or None without any.

    Args:
        config: The run's configuration.
        known: The recipe's values.
        w: Its workload.
    """
    found = ["train.document_boundaries=isolate"] if w.isolated else []
    found += ["NVFP4, which counts as bf16"] if w.precision == "nvfp4" else []
    for path, neutral in _UNCOUNTED.items():
        section, _, name = path.partition(".")
        own: Mapping[str, Any] = megatron_section(config, section)
        value = own[name] if name in own else known.value(path) if known else None
        if value is not None and value is not False and value not in neutral:
            found.append(f"megatron.{path}={str(value).lower() if value is True else value}")
    if not found:
        return None
    return f"not estimated: {', '.join(found)}. Parameters, memory and time of this run can differ from the figures."


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _recompute(granularity: Any, modules: Any) -> tuple[str, ...]:
    if granularity == "full":
        return FULL
    return _names(modules) or ("core_attn",) if granularity == "selective" else ()


def _dispatcher(chosen: str, config: PretrainConfig, layout: ParallelLayout) -> str:
    """Return the dispatcher as `recipe.adaptations` leaves it on ranks that have deep_ep."""
    if chosen != "flex" or "moe_token_dispatcher_type" in megatron_section(config, "model") or layout.expert > 1:
        return chosen
    return "allgather" if layout.tensor == 1 else "alltoall"


def _precision(config: PretrainConfig, value: Callable[[str, str], Any]) -> str:
    """Return the precision of matrix products, from the name or the fields of the section mixed_precision."""
    chosen = config.megatron.get("mixed_precision")
    if isinstance(chosen, str):
        chosen = chosen.lower().replace("-", "_").replace("fp8_delayed", DELAYED)
        return next((name for name in ("mxfp8", "nvfp4", DELAYED, "fp8") if name in chosen), BF16)
    if value("mixed_precision", "fp4"):
        return "nvfp4"
    recipes = {"mxfp8": "mxfp8", "delayed": DELAYED}
    return recipes.get(str(value("mixed_precision", "fp8_recipe")), "fp8") if value("mixed_precision", "fp8") else BF16


def _optimizer_bytes(value: Any) -> int:
    """Return the bytes per parameter of master weight and both moments."""
    if not value("optimizer", "use_precision_aware_optimizer", False):
        return 12
    names = ("main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")
    return sum(BYTES.get(str(value("optimizer", name, "float32")).removeprefix("torch."), 4) for name in names)
