"""Which names are taken for secrets, and what is left of a configuration without them."""

import pytest

from nano3.secrecy import is_secret, masked, secret_problems, without_secrets


@pytest.mark.parametrize("key", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "cluster.env.DB_PASSWORD"])
def test_secret_names(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", ["TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "tokenizer", "eod_token", "MONKEY", "key"])
def test_other_names(key: str) -> None:
    assert not is_secret(key)


def test_what_goes_to_others_has_none() -> None:
    config = {"a": [{"HF_TOKEN": "x", "NCCL_DEBUG": "INFO"}], "setup": ["export HF_TOKEN=x", "module load cuda"]}
    assert without_secrets(config) == {
        "a": [{"NCCL_DEBUG": "INFO"}],
        "setup": ["export HF_TOKEN=***", "module load cuda"],
    }


def test_a_secret_that_is_looked_up_is_none() -> None:
    assert (
        secret_problems({}, {"cluster.setup": ["export HF_TOKEN=$(cat ~/token)", 'export HF_TOKEN="$T"', "A=1"]}) == []
    )
    assert len(secret_problems({"HF_TOKEN": "x", "OTHER_KEY": ""}, {"cluster.setup": ["HF_TOKEN=x python"]})) == 2


def test_masking_keeps_the_rest() -> None:
    assert masked("--export=ALL,HF_TOKEN=abc,B=2") == "--export=ALL,HF_TOKEN=***,B=2"
