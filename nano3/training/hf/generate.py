"""Generate text with a trained model through transformers' from_pretrained and generate."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nano3.training.run.checkpoints import latest_checkpoint, recorded_checkpoint_dir
from nano3.utils.errors import UserError


@dataclass(frozen=True)
class Generation:
    """A prompt and the text that the model generated after it."""

    prompt: str
    text: str


def exported_model(run_dir: Path) -> Path:
    """Return the hf/ folder of a finished run's last checkpoint.

    Raises:
        UserError: The run has none.
    """
    folder = latest_checkpoint(recorded_checkpoint_dir(run_dir))
    if folder is None or not (folder / "hf").is_dir():
        raise UserError(f"{run_dir} has no exported model yet: it is written when the run reaches train.train_iters.")
    return folder / "hf"


def generate(
    model_dir: Path,
    prompts: Sequence[str],
    max_new_tokens: int = 60,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[Generation]:
    """Continue each prompt. The same seed gives the same text.

    Args:
        model_dir: A Hugging Face model folder.
        prompts: The texts to continue.
        max_new_tokens: Tokens to generate after each prompt.
        temperature: Sampling temperature; 0 takes the likeliest token each time.
        seed: Seed of the sampling.

    Raises:
        UserError: The temperature is negative.
    """
    if temperature < 0:
        raise UserError(f"temperature={temperature:g} must be 0 (likeliest token) or more; 0.8 is usual.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    choice = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    samples = []
    for prompt in prompts:
        torch.manual_seed(seed)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, **choice)
        samples.append(Generation(prompt, str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))))
    return samples
