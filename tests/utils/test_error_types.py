"""Errors keep all their problems, and suggestions name the nearest word."""

import pickle

import pytest

from nano3.utils.errors import Failure, UserError, did_you_mean


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (Failure, 1)])
def test_errors_keep_all_problems_across_processes(kind: type, code: int) -> None:
    error = pickle.loads(pickle.dumps(kind(["one", "two"])))
    assert (error.problems, error.exit_code) == (["one", "two"], code)


@pytest.mark.parametrize(
    ("word", "expected"), [("slrum", " Did you mean 'slurm'?"), ("zzz", " Allowed: local, slurm.")], ids=["near", "far"]
)
def test_did_you_mean(word: str, expected: str) -> None:
    assert did_you_mean(word, ["slurm", "local"]) == expected
