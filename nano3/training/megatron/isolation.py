"""train.document_boundaries=isolate with Megatron-Bridge: its forward step with packed documents.

GPTDataset returns the document bounds of a sample (`dataset.inter_document_masking`), padded to one length so that
samples can be stacked. Megatron-Bridge's own forward step does not remove that padding and takes one sample at a time.
The one here joins the samples of a micro batch to a single row and passes the bounds to the model: attention takes them
in Transformer Engine's format "thd", Mamba's convolution and state take the document of each token (`seq_idx`), and
experts get the samples back one by one, so that a loss over a sequence stays one over a sample.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nano3.config import PretrainConfig
from nano3.training.checks.parallel_layout import parallel_layout
from nano3.training.megatron.schema import Schema
from nano3.training.megatron.settings import override_settings, typed_settings

if TYPE_CHECKING:
    import torch

# Fields that exclude isolation -> which of their values do, and what to do.
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "model.context_parallel_size": (lambda size: size not in (None, 1), "set model.context_parallel_size=1"),
    "model.pipeline_model_parallel_size": (
        lambda size: size not in (None, 1),
        "set model.pipeline_model_parallel_size=1",
    ),
    "model.sequence_parallel": (bool, "set train.micro_batch_size=1, or model.sequence_parallel=false"),
    "model.cuda_graph_impl": (
        lambda kind: kind not in (None, "none"),
        "CUDA graphs take no documents of changing lengths; leave it out",
    ),
    "model.transformer_impl": (lambda kind: kind == "local", "only transformer_engine isolates documents"),
    "model.hybrid_layer_pattern": (lambda pattern: "/" in str(pattern), "leave out multi-token prediction"),
    "model.mtp_num_layers": (bool, "leave out multi-token prediction"),
    "model.overlap_moe_expert_parallel_comm": (bool, "set it to false"),
    "comm_overlap.overlap_moe_expert_parallel_comm": (bool, "set it to false"),
}
# Fields of a batch that have one value per token.
TOKEN_FIELDS = ("tokens", "labels", "loss_mask", "position_ids")


@dataclass(frozen=True)
class PackedDocuments:
    """Where the documents of a micro batch lie once its samples are joined to one row.

    Attributes:
        bounds: int32 tensor of shape [documents + 1]: the first token of each document, then the number of tokens.
        longest: Tokens of the longest document.
        sample_length: Tokens of a sample.
    """

    bounds: "torch.Tensor"
    longest: int
    sample_length: int


def join_samples(batch: "dict[str, torch.Tensor]") -> "tuple[dict[str, torch.Tensor], PackedDocuments]":
    """Return the token fields of a micro batch as one row of shape [1, samples x tokens], and its documents.

    A document never reaches from one sample into the next: each sample has bounds at both ends.

    Args:
        batch: Samples of GPTDataset with `cu_seqlens`, stacked: [samples, tokens], and [samples, tokens + 1] for the
            bounds, which end with repetitions of the number of tokens.
    """
    import torch

    samples, length = batch["tokens"].shape
    first = torch.arange(samples, dtype=torch.int32).unsqueeze(1) * length
    bounds = torch.unique_consecutive((batch["cu_seqlens"] + first).flatten())
    longest = int((bounds[1:] - bounds[:-1]).max())
    return {name: batch[name].reshape(1, -1) for name in TOKEN_FIELDS}, PackedDocuments(bounds, longest, length)


def document_of_tokens(bounds: "torch.Tensor", tokens: int) -> "torch.Tensor":
    """Return the number of the document of each token, int32 of shape [1, tokens], without waiting for the GPU.

    Args:
        bounds: Bounds of the documents, as in `PackedDocuments`.
        tokens: Tokens of all documents.
    """
    import torch

    positions = torch.arange(tokens, dtype=bounds.dtype, device=bounds.device)
    return torch.searchsorted(bounds[1:], positions, right=True, out_int32=True).unsqueeze(0)


class PackedBatches:
    """Iterates over the micro batches of `batches`, each joined to one row; `documents` are those of the last one."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self.documents: PackedDocuments | None = None

    def __iter__(self) -> "PackedBatches":
        """Return itself."""
        return self

    def __next__(self) -> "dict[str, torch.Tensor]":
        """Return the token fields of the next micro batch."""
        joined, self.documents = join_samples(next(self._batches))
        return joined


def packed_params(documents: PackedDocuments, device: Any) -> Any:
    """Return Megatron's PackedSeqParams of a micro batch.

    Args:
        documents: The documents of the joined row.
        device: Device of the model.
    """
    from megatron.core.packed_seq_params import PackedSeqParams

    tokens, bounds = int(documents.bounds[-1]), documents.bounds
    if device.type == "cuda":
        bounds = bounds.pin_memory().to(device, non_blocking=True)
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=documents.longest,
        max_seqlen_kv=documents.longest,
        seq_idx=document_of_tokens(bounds, tokens),
        tokens_per_sample=documents.sample_length,
    )


def isolated_forward_step(state: Any, data_iterator: Any, model: Any, return_schedule_plan: bool = False) -> Any:
    """Run a micro batch whose documents do not see each other; in place of Megatron-Bridge's `forward_step`.

    Args:
        state: Megatron-Bridge's state of the run. It is passed because of the name of the parameter.
        data_iterator: Micro batches of GPTDataset with `cu_seqlens`.
        model: The model.
        return_schedule_plan: Not supported; `isolation_problems` refuses the setting that asks for it.

    Returns:
        The losses per token, and the function that sums them up under the loss mask.
    """
    from megatron.bridge.training.gpt_step import get_batch
    from megatron.bridge.training.losses import create_masked_next_token_loss_function
    from megatron.bridge.training.utils.flop_utils import accumulate_flops_metadata
    from megatron.bridge.training.utils.pg_utils import get_pg_collection

    if return_schedule_plan:
        raise NotImplementedError("train.document_boundaries=isolate with overlap_moe_expert_parallel_comm")
    batches = PackedBatches(data_iterator)
    state.timers("batch-generator", log_level=2).start()
    with state.straggler_timer(bdata=True):
        groups = get_pg_collection(model)
        tokens, labels, loss_mask, _, position_ids, _ = get_batch(batches, state.cfg, pg_collection=groups)
        assert batches.documents is not None  # the last call of `next` set it
        packed = packed_params(batches.documents, tokens.device)
    state.timers("batch-generator").stop()
    # From the bounds on the host: those on the GPU would make every step wait for it.
    accumulate_flops_metadata(state, tokens, cu_seqlens=batches.documents.bounds)
    with state.straggler_timer:
        losses = model(
            input_ids=tokens,
            position_ids=position_ids,
            attention_mask=None,
            labels=labels,
            packed_seq_params=packed,
        )
    checks = state.cfg.rerun_state_machine
    return losses, create_masked_next_token_loss_function(
        loss_mask,
        check_for_nan_in_loss=checks.check_for_nan_in_loss,
        check_for_spiky_loss=checks.check_for_spiky_loss,
    )


def choose_forward_step(config: PretrainConfig) -> Any:
    """Return the forward step of a run: Megatron-Bridge's own unless documents are isolated."""
    if config.train.document_boundaries == "isolate":
        return isolated_forward_step
    from megatron.bridge.training.gpt_step import forward_step

    return forward_step


def isolation_problems(config: PretrainConfig, known: Schema) -> list[str]:
    """Return the settings that cannot be combined with train.document_boundaries=isolate.

    Args:
        config: The run's configuration.
        known: The schema of its recipe.
    """
    if config.train.document_boundaries != "isolate":
        return []
    chosen = {s.path: s for s in [*typed_settings(config), *override_settings(config.megatron, known)]}
    # Megatron-Bridge turns sequence parallelism off on one tensor-parallel rank.
    split = config.train.micro_batch_size > 1 and parallel_layout(config, known).tensor > 1
    problems = []
    for path, (refused, fix) in REFUSED.items():
        value = chosen[path].value if path in chosen else known.value(path)
        if path == "model.cuda_graph_impl" and path not in chosen:
            continue  # the recipe's are switched off
        if path == "model.sequence_parallel" and not split:
            continue
        origin = chosen[path].origin if path in chosen else f"the recipe's {path}"
        if refused(value) and not (path == "model.mtp_num_layers" and origin == "model.hybrid_layer_pattern"):
            problems.append(f"train.document_boundaries=isolate is not possible with {origin}={value}: {fix}.")
    return problems
