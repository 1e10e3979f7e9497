"""Mistral's Tekken vocabulary (131,072 ids, 1,000 of them special) as a Hugging Face tokenizer folder.

The vocabulary comes with the PyPI package mistral-common (Apache-2.0); nothing is downloaded from a hub.
A merge of a byte-level BPE is any split of a token into two tokens of lower rank, tried in order of the result's rank.
"""

import base64
import json
from pathlib import Path

EOS, EOS_ID = "</s>", 2
NAMES = ["<unk>", "<s>", EOS, "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"]
NAMES += ["[/TOOL_RESULTS]", "[TOOL_CALLS]"]


def build(folder: Path) -> Path:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json into `folder` unless they are there."""
    if (folder / "tokenizer_config.json").exists():
        return folder
    import mistral_common
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE

    tekken = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_text())
    config = tekken["config"]
    special = config["default_num_special_tokens"]
    entries = tekken["vocab"][: config["default_vocab_size"] - special]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in entries}
    specials = [NAMES[i] if i < len(NAMES) else f"<SPECIAL_{i}>" for i in range(special)]
    letters = byte_letters()

    def spell(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {name: i for i, name in enumerate(specials)}
    vocabulary |= {spell(token): rank + special for token, rank in ranks.items()}
    merges = [(spell(left), spell(right)) for left, right in merge_list(ranks)]
    tokenizer = Tokenizer(BPE(vocabulary, merges, fuse_unk=False, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in specials])
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "tokenizer.json", with_old_merges(json.loads(tokenizer.to_str())))
    names = {"bos_token": "<s>", "eos_token": EOS, "unk_token": "<unk>"}
    write_json(folder / "special_tokens_map.json", names)
    extra = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(folder / "tokenizer_config.json", {**extra, **names, "model_max_length": 1 << 30})
    return folder


def byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each of the 256 bytes (the alphabet of every byte-level tokenizer.json)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def merge_list(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every pair of lower-ranked tokens that joins into a token, in the order in which BPE must try them."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        found = [(a, b) for a, b in cuts if ranks.get(a, rank) < rank and ranks.get(b, rank) < rank]
        merges += sorted(found, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges


def with_old_merges(tokenizer: dict[str, dict[str, object]]) -> dict[str, dict[str, object]]:
    """Merges as "left right" strings, which tokenizers before 0.20 can read too (dolma pins 0.19)."""
    pairs = tokenizer["model"]["merges"]
    assert isinstance(pairs, list)
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in pairs]
    return tokenizer


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False) + "\n")
