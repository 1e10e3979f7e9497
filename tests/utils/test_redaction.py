"""Secrets are recognized by name and removed from configurations and text."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nano3.cli.config_groups import SCHEMAS, schema_keys
from nano3.utils.redaction import (
    is_secret,
    mask_secrets,
    redact_urls,
    secret_problems,
    split_url_secrets,
    without_secrets,
)

SECRET = """
HF_TOKEN WANDB_API_KEY AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN cluster.env.DB_PASSWORD PGPASSWORD MYSQL_PWD
GITHUB_PAT github_pat hf_token wandb_api_key apiKey accessToken secretKey client_secret private_key auth_token
NGC_API_KEY AZURE_STORAGE_KEY AZURE_STORAGE_SAS_TOKEN AZURE_STORAGE_CONNECTION_STRING GOOGLE_CREDENTIALS
SENTRY_DSN REDIS_AUTH token_secret
"""
PUBLIC = """
TOKENIZERS_PARALLELISM HF_TOKEN_PATH AWS_SHARED_CREDENTIALS_FILE GOOGLE_APPLICATION_CREDENTIALS SSH_AUTH_SOCK
PWD OLDPWD MONKEY tokenizer tokens token key sort_key cache_key text_key eod_token EOD_TOKEN eos_token
pad_token num_tokens sample_tokens split_special_tokens hybrid_layer_pattern moe_token_dispatcher_type
calculate_per_token_loss num_key_value_heads kv_channels
"""
URLS = {
    "https://me:pw@host/x?X-Amz-Signature=ab&X-Amz-Date=1&n=2": "https://***@host/x?X-Amz-Signature=***&X-Amz-Date=***&n=2",
    "GET https://h/x?sig=ab%3D&n=1: no": "GET https://h/x?sig=***&n=1: no",
    "zip://a::https://u:p@@h/x.zip?token=q": "zip://a::https://***@h/x.zip?token=***",
    "https://ghp_x@github.com/a": "https://***@github.com/a",
    "http_proxy=http://u:p@proxy:80": "http_proxy=http://***@proxy:80",
}  # fmt: skip
PUBLIC_URLS = [
    "hf://org/name@main/x",
    "s3://b/k",
    "https://host:80/x@y",
    "ssh://me@h/x",
    "http://u:$PW@h",
    "http://h/?page=2",
]


@pytest.mark.parametrize("key", SECRET.split())
def test_secret_names(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", PUBLIC.split())
def test_other_names(key: str) -> None:
    assert not is_secret(key)


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_key_of_nano3_is_a_secret(name: str) -> None:
    assert [key for key in schema_keys(SCHEMAS[name]) if is_secret(key)] == []


@pytest.mark.parametrize("text", [*URLS, *PUBLIC_URLS])
def test_urls(text: str) -> None:
    masked = URLS.get(text, text)
    assert redact_urls(text) == masked == redact_urls(masked)
    assert bool(secret_problems({"x": text}, {})) == (masked != text)
    public, user, query = split_url_secrets(text)
    assert redact_urls(public) == public
    assert bool(user or query) == (masked != text)


def test_a_url_that_is_signed_again_has_the_same_public_part() -> None:
    one = "https://h/x.gz?n=1&sig=a&se=2026&sp=r&sv=1&sr=b"
    assert split_url_secrets(one)[0] == split_url_secrets(one.replace("sig=a&se=2026", "sig=b&se=2027"))[0]
    assert split_url_secrets(one)[0] == "https://h/x.gz?n=1"


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
