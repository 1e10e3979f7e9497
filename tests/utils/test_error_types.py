"""Errors keep all their problems, and suggestions name the nearest word."""

import pickle

import pytest

from nano3.utils.errors import Failure, UserError, did_you_mean, exit_code_of, is_failure


@pytest.mark.parametrize(("kind", "code"), [(UserError, 2), (Failure, 1)])
def test_errors_keep_all_problems_across_processes(kind: type, code: int) -> None:
    error = pickle.loads(pickle.dumps(kind(["one", "two"])))
    assert (error.problems, error.exit_code) == (["one", "two"], code)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("a"), 2),
        (Failure("a"), 1),
        (ValueError("a"), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(), 0),
        (SystemExit(0), 0),
        (SystemExit(75), 75),
        (SystemExit("a message"), 1),
    ],
    ids=repr,
)
def test_the_exit_code_of_an_exception_is_pythons(error: BaseException, code: int) -> None:
    assert exit_code_of(error) == code


@pytest.mark.parametrize(("code", "fails"), [(0, False), (1, True), (2, True), (75, False), (76, True), (77, False)])
def test_a_run_to_be_continued_is_no_failure(code: int, fails: bool) -> None:
    assert is_failure(code) is fails


@pytest.mark.parametrize(
    ("word", "expected"), [("slrum", " Did you mean 'slurm'?"), ("zzz", " Allowed: local, slurm.")], ids=["near", "far"]
)
def test_did_you_mean(word: str, expected: str) -> None:
    assert did_you_mean(word, ["slurm", "local"]) == expected
