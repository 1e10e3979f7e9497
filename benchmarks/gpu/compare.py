"""Compare the losses of Megatron and Hugging Face for the same weights and batch, and generate text:

    compare.py RUN_DIR DATA_DIR HF_DIR FRESH_DIR

RUN_DIR has a Megatron checkpoint, HF_DIR becomes its export, and FRESH_DIR holds an untrained Hugging Face model.
"""

import json
import os
import sys
import time
from pathlib import Path

PROMPTS = ("def main(", "The function returns", "import os\n")
BATCH, LENGTH = 4, 1024


def main() -> int:
    run_dir, data_dir, hf_dir, fresh = map(Path, sys.argv[1:5])
    os.environ["HF_HUB_OFFLINE"] = "1"
    from nano3.training.megatron.backend import set_environment

    set_environment()
    import torch
    from megatron.bridge import AutoBridge
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from nano3.training.dataset import open_data
    from nano3.training.export import export
    from nano3.training.run.checkpoints import latest_checkpoint

    started = time.monotonic()
    export(run_dir, hf_dir)
    print(f"EXPORT {time.monotonic() - started:.1f} s: {sorted(p.name for p in hf_dir.iterdir())}", flush=True)
    destroy()
    ids, labels = batch(open_data(data_dir))
    results = {}

    def loss(logits: torch.Tensor) -> float:
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten()).item()

    def hf(path: Path, dtype: torch.dtype) -> float:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).cuda().eval()
        with torch.no_grad():
            return loss(model(input_ids=ids, use_cache=False).logits)

    def megatron(models: list) -> float:
        model = models[0].cuda().eval()
        positions = torch.arange(LENGTH, device="cuda").expand(BATCH, LENGTH).contiguous()
        with torch.no_grad():
            return loss(model(input_ids=ids, position_ids=positions, attention_mask=None)[..., : config.vocab_size])

    bridge = AutoBridge.from_hf_pretrained(str(hf_dir))
    config = bridge.hf_pretrained.config
    tokenizer = AutoTokenizer.from_pretrained(hf_dir)
    model = AutoModelForCausalLM.from_pretrained(hf_dir, dtype=torch.bfloat16).cuda().eval()
    results["text"] = {}
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to("cuda")
        out = model.generate(tokens["input_ids"], max_new_tokens=48, do_sample=False)
        results["text"][prompt] = tokenizer.decode(out[0], skip_special_tokens=True)
    del model
    results["trained"] = {"hf bf16": hf(hf_dir, torch.bfloat16), "hf fp32": hf(hf_dir, torch.float32)}
    results["trained"]["megatron bf16"] = megatron(
        bridge.load_megatron_model(str(latest_checkpoint(run_dir / "checkpoints")), wrap_with_ddp=False)
    )
    print("COMPARE " + json.dumps(results), flush=True)
    destroy()

    results["fresh"] = {"hf bf16": hf(fresh, torch.bfloat16), "hf fp32": hf(fresh, torch.float32)}
    provider = AutoBridge.from_hf_pretrained(str(fresh)).to_megatron_provider(load_weights=True)
    provider.seq_length, provider.gradient_accumulation_fusion = LENGTH, False
    provider.finalize()
    results["fresh"]["megatron bf16"] = megatron(provider.provide_distributed_model(wrap_with_ddp=False))
    print("COMPARE " + json.dumps(results), flush=True)
    destroy()
    return 0


def batch(data):
    """Return the first 4 x 1,024 tokens of the validation split and the token after each."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    shards = [IndexedDataset(str(s.prefix)) for s in data.split("valid")]
    flat = np.concatenate([shard[i] for shard in shards for i in range(len(shard))])[: BATCH * (LENGTH + 1)]
    rows = torch.tensor(flat.astype("int64")).view(BATCH, LENGTH + 1).cuda()
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def destroy() -> None:
    import torch
    from megatron.core import parallel_state

    if torch.distributed.is_initialized():
        parallel_state.destroy_model_parallel()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
