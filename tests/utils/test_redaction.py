"""Secrets are recognized by name and removed from configurations and text."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.utils.redaction import is_secret, mask_secrets, secret_problems, without_secrets


@pytest.mark.parametrize("key", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "cluster.env.DB_PASSWORD"])
def test_secret_names(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "tokenizer", "eod_token", "MONKEY", "key"])
def test_other_names(key: str) -> None:
    assert not is_secret(key)


def test_remove_secrets_from_a_configuration() -> None:
    config = {"a": [{"HF_TOKEN": "x", "NCCL_DEBUG": "INFO"}], "setup": ["export HF_TOKEN=x", "module load cuda"]}
    assert without_secrets(config) == {
        "a": [{"NCCL_DEBUG": "INFO"}],
        "setup": ["export HF_TOKEN=***", "module load cuda"],
    }


def test_a_substituted_value_is_not_a_secret() -> None:
    assert (
        secret_problems({}, {"cluster.setup": ["export HF_TOKEN=$(cat ~/token)", 'export HF_TOKEN="$T"', "A=1"]}) == []
    )
    assert len(secret_problems({"HF_TOKEN": "x", "OTHER_KEY": ""}, {"cluster.setup": ["HF_TOKEN=x python"]})) == 2


def test_masking_keeps_the_rest() -> None:
    assert mask_secrets("--export=ALL,HF_TOKEN=abc,B=2") == "--export=ALL,HF_TOKEN=***,B=2"


LINES = {
    "bare": ("export HF_TOKEN=abc && python x", "export HF_TOKEN=*** && python x"),
    "double_quotes": ('HF_TOKEN="a b, c" X=1', 'HF_TOKEN="***" X=1'),
    "single_quotes": ("HF_TOKEN='a \"b\" c' X=1", "HF_TOKEN='***' X=1"),
    "no_end_of_quotes": ("HF_TOKEN='a b", "HF_TOKEN='***"),
    "dollar_in_single_quotes": ("DB_PASSWORD='$ecret'", "DB_PASSWORD='***'"),
    "several_lines": ("HF_TOKEN='a\nb'\nA=1", "HF_TOKEN='***'\nA=1"),
    "two": ("HF_TOKEN=a WANDB_API_KEY=b", "HF_TOKEN=*** WANDB_API_KEY=***"),
    "looked_up": ('HF_TOKEN=$T DB_KEY="$(cat key)"', 'HF_TOKEN=$T DB_KEY="$(cat key)"'),
    "empty": ("HF_TOKEN= HF_TOKEN='' python", "HF_TOKEN= HF_TOKEN='' python"),
    "no_secret": ("HF_HOME='/a b' NCCL_DEBUG=INFO", "HF_HOME='/a b' NCCL_DEBUG=INFO"),
    "a_place": ("HF_TOKEN_PATH=/x", "HF_TOKEN_PATH=/x"),
}


@pytest.mark.parametrize(("line", "redacted"), LINES.values(), ids=LINES.keys())
def test_masked_lines(line: str, redacted: str) -> None:
    assert mask_secrets(line) == redacted
    assert mask_secrets(redacted) == redacted, "masking again changes nothing"
    assert bool(secret_problems({}, {"cluster.setup": [line]})) == (line != redacted)


@given(st.text(st.characters(codec="utf-8", exclude_characters="'\0"), min_size=4, max_size=30), st.text(max_size=8))
def test_a_quoted_secret_is_masked_completely(secret: str, before: str) -> None:
    """Secrets may contain blanks, commas, quotes, dollars and line ends."""
    redacted = mask_secrets(f"{before} HF_TOKEN={shlex.quote('«' + secret + '»')} NCCL_DEBUG=INFO")
    assert "«" not in redacted.removeprefix(before)
    assert "»" not in redacted.removeprefix(before)
    assert redacted.endswith(" NCCL_DEBUG=INFO")
