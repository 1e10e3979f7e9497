"""Choose the token that ends documents, and notice tokenizers of chat models, whose eos_token ends a turn."""

from pathlib import Path

from nano3.utils.errors import UserError, did_you_mean
from nano3.utils.files import read_json

# Tokens that end a document in the tokenizers of base models.
DOCUMENT_ENDS = (
    "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>",
    "<|end_of_document|>", "<|eos|>", "<EOD>", "<|eod|>", "<EOS>", "[EOS]", "[eos]", "<｜end▁of▁sentence｜>",
    "<|END_OF_TEXT_TOKEN|>",
)  # fmt: skip
# Tokens that end a turn of a conversation and no document.
TURN_ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>", "<|end|>", "<|eom_id|>", "<turn|>",
    "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<|im_sep|>", "<|return|>", "<|user|>", "<|assistant|>", "<|call|>",
)  # fmt: skip


def find_token(given: str, ids: dict[str, int], special: list[str]) -> str:
    """Return the token that `eod_token` names by its text or its id.

    Args:
        given: The option.
        ids: Id of each token.
        special: The tokenizer's added tokens, to suggest one.

    Raises:
        UserError: There is no such token.
    """
    if given in special:
        return given
    if given.isdigit():
        found = next((token for token, number in ids.items() if number == int(given)), None)
        if found is None:
            raise UserError(f"eod_token={given}: the tokenizer has no such id; ids go from 0 to {max(ids.values()):,}.")
        return found
    if given in ids:
        return given
    raise UserError(f"eod_token={given}: the tokenizer has no such token.{did_you_mean(given, special or list(ids))}")


def end_of_turn_problem(model: str, eod: str, ids: dict[str, int], special: list[str], folder: Path) -> tuple[str, str]:
    """Return why the eos_token of a tokenizer probably ends no document: (error, warning), both "" if it seems to.

    It is an error if the token is a known end of turn and the tokenizer has a known end of document too. It is a
    warning if there is no such token, or if only the chat template uses the token as an end of turn.

    Args:
        model: The option `tokenizer_model`.
        eod: The eos_token.
        ids: Id of each token.
        special: The tokenizer's added tokens.
        folder: Folder of the tokenizer's files.
    """
    if eod in DOCUMENT_ENDS:
        return "", ""
    known = eod in TURN_ENDS
    if not known and eod not in chat_template(folder):
        return "", ""
    ends = [token for token in special if token in DOCUMENT_ENDS]
    what = f"tokenizer_model={model}: its eos_token {eod!r} (id {ids[eod]}) ends a turn of a conversation"
    if not ends:
        return "", f"{what}, and it will end documents too, as the tokenizer has no known end-of-document token."
    others = " or ".join(f"eod_token={ids[token]} for {token!r}" for token in ends)
    choice = f"Set {others}, which ends documents, or eod_token={ids[eod]} to end them with {eod!r}."
    return (f"{what}, not a document. {choice}", "") if known else ("", f"{what} in its chat template. {choice}")


def chat_template(folder: Path) -> str:
    """Return the text of a tokenizer's chat templates; "" if it has none."""
    found = []
    if (folder / "chat_template.jinja").is_file():
        found.append((folder / "chat_template.jinja").read_text(errors="replace"))
    if (folder / "tokenizer_config.json").is_file():
        config = read_json(folder / "tokenizer_config.json")
        value = config.get("chat_template") if isinstance(config, dict) else None
        templates = (
            [t.get("template") if isinstance(t, dict) else t for t in value] if isinstance(value, list) else [value]
        )
        found += [template for template in templates if isinstance(template, str)]
    return "\n".join(found)
