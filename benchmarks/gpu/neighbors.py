"""How much the loss of a document's tokens depends on its neighbor in a Megatron model, with and without isolation:

    neighbors.py RUN_DIR DATA_DIR HF_DIR

RUN_DIR has a Megatron checkpoint, of which HF_DIR becomes the export. The last line of output is JSON with the largest
differences of a token's loss in nats: `isolate` and `cross` between neighbors, `alone` between an isolated document and
a row of its own.
"""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compare import destroy

if TYPE_CHECKING:
    import torch

LENGTH, DOCUMENT = 1024, 500  # tokens of a row, and of the document in it


def main() -> int:
    run_dir, data_dir, hf_dir = map(Path, sys.argv[1:4])
    os.environ["HF_HUB_OFFLINE"] = "1"
    model = load_model(run_dir, hf_dir)
    print("NEIGHBORS " + json.dumps(compare_neighbors(model, *texts(data_dir))), flush=True)
    destroy()
    return 0


def load_model(run_dir: Path, hf_dir: Path) -> Any:
    """Export the newest checkpoint of a run, and return its Megatron model on the GPU."""
    from nano3.training.megatron.backend import set_environment

    set_environment()
    from megatron.bridge import AutoBridge

    from nano3.training.export import export
    from nano3.training.run.checkpoints import latest_checkpoint

    export(run_dir, hf_dir)
    destroy()
    checkpoint = str(latest_checkpoint(run_dir / "checkpoints"))
    (model,) = AutoBridge.from_hf_pretrained(str(hf_dir)).load_megatron_model(checkpoint, wrap_with_ddp=False)
    return model.cuda().eval()


def losses(model: Any, rows: list[list[list[int]]], isolate: bool) -> "torch.Tensor":
    """Return the losses of rows of documents, one micro batch, as [samples, tokens]; the last token has none."""
    import torch

    from nano3.training.megatron.isolation import join_samples, packed_params

    tokens = torch.tensor([[token for one in row for token in one] for row in rows])
    samples, length = tokens.shape
    positions = torch.cat([torch.arange(len(one)) for row in rows for one in row]).view(samples, length)
    inputs = {"tokens": tokens, "labels": tokens.roll(-1, 1), "loss_mask": tokens, "position_ids": positions}
    more = {}
    if isolate:
        ends = [torch.tensor([0, *(len(one) for one in row)]).cumsum(0) for row in rows]
        bounds = torch.full((samples, length + 1), length, dtype=torch.int32)
        for row, one in zip(bounds, ends, strict=True):
            row[: len(one)] = one
        inputs, documents = join_samples(inputs | {"cu_seqlens": bounds})
        more = {"packed_seq_params": packed_params(documents, torch.device("cuda"))}
    ids, labels, at = (inputs[name].cuda() for name in ("tokens", "labels", "position_ids"))
    with torch.no_grad():
        logits = model(input_ids=ids, position_ids=at, attention_mask=None, **more).float()
    found = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    return found.view(samples, length).cpu()


def compare_neighbors(model: Any, document: list[int], *others: list[int]) -> dict[str, Any]:
    """Return the largest differences of a token's loss between neighbors, and the mean losses, in nats."""

    def second(isolate: bool) -> "list[torch.Tensor]":
        """Return the losses of the document after each neighbor: alone in the micro batch, and as one of two rows."""
        found = [losses(model, [[other, document]], isolate)[0] for other in others]
        found += [losses(model, [[others[0], document], [other, document]], isolate)[1] for other in others]
        return [one[-DOCUMENT:-1] for one in found]

    def spread(found: "list[torch.Tensor]") -> float:
        return max(float((one - found[0]).abs().max()) for one in found)

    first = [losses(model, [[document, other]], isolate=True)[0][: DOCUMENT - 1] for other in others]
    isolated, crossing = [*second(True), *first], second(False)
    alone = losses(model, [[document]], isolate=False)[0][:-1]
    return {
        "isolate": spread(isolated),
        "cross": spread(crossing),
        "alone": max(float((one - alone).abs().max()) for one in isolated),
        "mean loss": {
            "isolate": float(isolated[0].mean()),
            "cross": float(crossing[0].mean()),
            "alone": float(alone.mean()),
        },
    }


def texts(data_dir: Path) -> list[list[int]]:
    """Return a document of the validation split, cut to DOCUMENT tokens, and three neighbors that fill the row."""
    from nano3.data.dataset.indexed import IndexedFile
    from nano3.training.dataset import open_data

    found: list[list[int]] = []
    for shard in open_data(data_dir).split("valid"):
        indexed = IndexedFile(shard.prefix)
        for document in map(indexed.document, range(len(indexed))):
            wanted = LENGTH - DOCUMENT if found else DOCUMENT
            if len(document) >= wanted and len(found) < 4:
                found.append(document[:wanted].tolist())
    assert len(found) == 4
    return found


if __name__ == "__main__":
    sys.exit(main())
