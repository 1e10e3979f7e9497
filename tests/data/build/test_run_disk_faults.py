"""Test disk errors and kills at chosen system calls.

The error is one sentence, nothing is half published, and the same command then makes the same bytes.
"""

import errno
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from data_helpers import healthy, options, run, source, texts, tree, write
from faults import needs_strace, with_fault

from nano3.utils.disk_errors import DISK_FAULTS, translate_disk_errors
from nano3.utils.errors import Failure

PREPARE = """
import json, sys
from nano3.config import PrepOptions, SourceConfig
from nano3.data.build.run import prepare
from nano3.data.planning import plan
from nano3.utils.errors import Nano3Error
plan.MIN_UNIT = plan.MAX_UNIT = 50_000
sources, options = json.loads(sys.argv[1])
try:
    prepare([SourceConfig(**s) for s in sources], PrepOptions(**options), "test")
except Nano3Error as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, byte_bpe: Path) -> Path:
    """Return a folder with text in in/ and its undisturbed preparation in out/."""
    folder = tmp_path_factory.mktemp("whole")
    write(folder / "in" / "a.jsonl", texts(600, seed=1))
    write(folder / "in" / "b.parquet", texts(600, seed=2), row_group_size=100)
    run(folder / "in", folder / "out", byte_bpe)
    return folder


def disturbed(whole: Path, out: Path, tokenizer: Path, call: str, what: str, when: int) -> tuple[bool, str, int]:
    """Run with a fault, run again, and check both results. Return (hit, stderr, exit code) of the first."""
    request = [[vars(source(whole / "in"))], vars(options(out, tokenizer, engine="tokenizers", check_every=0))]
    log = out.with_name(f"{out.name}.trace")
    hit, stderr, code = with_fault(log, call, what, when, PREPARE, json.dumps(request))
    assert "Traceback" not in stderr, stderr
    if (out / "manifest.json").exists():
        assert tree(out) == tree(whole / "out")
    run(whole / "in", out, tokenizer)
    assert tree(out) == tree(whole / "out")
    assert healthy(out)
    assert not list(out.rglob("*.tmp"))
    return hit, stderr, code


REFUSALS = {
    "plan_not_renamed": (
        "rename",
        "error=ENOSPC",
        1,
        "plan.json: no space left on the device. Free some space and run the same command again",
    ),
    "manifest_not_written": ("rename", "error=EROFS", 5, ": cannot be written: Read-only file system"),
    "in_a_worker": ("rename", "error=EIO", 3, ": cannot be read or written: Input/output error"),
}


@needs_strace
@pytest.mark.parametrize(("call", "what", "when", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_disk_error_is_reported_and_the_rerun_succeeds(
    tmp_path: Path, whole: Path, byte_bpe: Path, call: str, what: str, when: int, message: str
) -> None:
    hit, stderr, code = disturbed(whole, tmp_path / "out", byte_bpe, call, what, when)
    assert hit
    assert code == 1
    assert f"Failure: {tmp_path}/out" in stderr
    assert message in stderr


@needs_strace
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("fsync", "error=EIO"),
        ("fsync", "signal=KILL"),
        ("rename", "error=ENOSPC"),
        ("rename", "signal=KILL"),
        ("unlink", "signal=KILL"),
        ("mkdir", "error=ENOSPC"),
        ("rmdir", "signal=KILL"),
    ],
)
def test_a_fault_at_every_system_call(tmp_path: Path, whole: Path, byte_bpe: Path, call: str, what: str) -> None:
    """Inject the fault at the first call, the second, and so on, until a run has no more calls."""
    for when in range(1, 60):
        hit, stderr, code = disturbed(whole, tmp_path / str(when), byte_bpe, call, what, when)
        if what.startswith("error") and hit and code:
            assert f"{tmp_path}/{when}" in stderr, stderr
        shutil.rmtree(tmp_path / str(when))
        if code == 0:
            break
    assert when > 1


@pytest.mark.parametrize("code", DISK_FAULTS, ids=[errno.errorcode[code] for code in DISK_FAULTS])
def test_a_disk_error_names_its_file(tmp_path: Path, code: int) -> None:
    with pytest.raises(Failure, match=r"/here: "), translate_disk_errors(str(tmp_path)):
        raise OSError(code, "text", "/here")
    with pytest.raises(Failure, match=f"^{tmp_path}: "), translate_disk_errors(str(tmp_path)):
        raise OSError(code, "text")


def test_an_error_of_numpy_on_a_full_disk_is_a_disk_error(tmp_path: Path) -> None:
    """numpy raises an OSError without errno."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        with pytest.raises(Failure, match=r"^here: cannot be written: "), translate_disk_errors("here"):
            np.save(tmp_path / "a.npy", np.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)


@pytest.mark.parametrize("error", [FileNotFoundError(2, "no such file"), BrokenPipeError(32, "pipe"), ValueError("x")])
def test_other_errors_are_not_translated(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), translate_disk_errors(str(tmp_path)):
        raise error


@pytest.mark.parametrize(
    ("raised", "message"),
    [(RuntimeError("cannot save"), r"^/here: no space left"), (Failure("reported"), r"^reported$")],
    ids=["a library's error", "nano3's own"],
)
def test_an_error_caused_by_a_full_disk_is_translated(raised: Exception, message: str) -> None:
    def library() -> None:
        try:
            raise OSError(errno.ENOSPC, "full", "/here")
        except OSError as error:
            raise raised from error

    with pytest.raises(Failure, match=message), translate_disk_errors("elsewhere"):
        library()
