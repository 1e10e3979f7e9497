"""Helpers of the end-to-end tests: run nano3 commands in a folder of their own.

Most run in forks of processes that have imported everything: an import takes longer than what is tested.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import forked_commands

ROOT = Path(__file__).parents[1]
# Before any test sets variables.
_ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
# Variables that are read when Python starts or a package is imported: where they differ, a command gets its own start.
_READ_ON_IMPORT = "HF_|HUGGINGFACE|TRANSFORMERS_|XDG_|HOME$|PYTHON(?!PATH)|LD_|LC_|LANG"
# Those that torch reads besides, but for the policy that training_processes sets.
_READ_BY_TORCH = "OMP_(?!WAIT_POLICY)|MKL_|ATEN_|ONEDNN_|TORCH|NCCL_"
Result = tuple[int, str, str]  # exit code, stdout, stderr
# A hybrid of one layer of each kind: seconds, not minutes.
SMALL = [
    "+experiment=quickstart",
    "model.hybrid_layer_pattern=M*E",
    "model.hidden_size=32",
    "model.mamba_num_heads=4",
    "model.mamba_head_dim=16",
    "model.num_moe_experts=4",
    "train.train_iters=6",
    "train.seq_length=64",
    "train.eval_iters=1",
    "train.eval_interval=3",
    "train.threads=1",
    "scheduler.lr_warmup_iters=2",
    "scheduler.lr_wsd_decay_iters=2",
    "logger.log_interval=1",
    "logger.sample_prompts=[The]",
    "checkpoint.save_interval=3",
]


class Forks:
    """A process that runs commands in forks of itself, one at a time (`forked_commands`)."""

    def __init__(self) -> None:
        program = [sys.executable, str(ROOT / "tests/forked_commands.py")]
        env = {**_ENV, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(program, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, words: list[str], cwd: Path, env: Mapping[str, str]) -> Result:
        """Return the exit code, stdout and stderr of `python -m MODULE WORDS...`."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(json.dumps({"words": words, "cwd": str(cwd), "env": dict(env)}), file=self._process.stdin, flush=True)
            code, stdout, stderr = json.loads(self._process.stdout.readline())
        except BaseException:  # as at a timeout: its answer would be taken for that of the next command
            self._process.kill()
            forks.cache_clear()
            raise
        return code, stdout, stderr


@cache
def forks() -> Forks:
    """Return the process of this session. It ends with this process, which closes its stdin."""
    return Forks()


def _train(words: list[str], cwd: Path, env: Mapping[str, str]) -> Result:
    """Do what `Forks.run` does in a fork of the process that has imported torch."""
    from training_processes import SERVER

    with tempfile.TemporaryDirectory() as folder:
        files = [f"{folder}/stdout", f"{folder}/stderr"]
        process = SERVER.Process(target=forked_commands.become, args=(words, *files, str(cwd), dict(env)))
        process.start()
        try:
            process.join()
        finally:
            process.kill()
        assert process.exitcode is not None
        return process.exitcode, *(Path(file).read_text(errors="replace") for file in files)


def run_command(words: Sequence[str], cwd: Path, env: Mapping[str, str], trains: bool = False) -> Result:
    """Run `python WORDS...` to its end; return its exit code, stdout and stderr.

    Args:
        words: The words. `-m nano3`, its applications, and scripts run in a fork.
        cwd: Its working folder.
        env: Its whole environment.
        trains: Whether it imports torch.
    """
    pattern = f"{_READ_ON_IMPORT}|{_READ_BY_TORCH}" if trains else _READ_ON_IMPORT
    changed = {name for name in {*env, *_ENV} if env.get(name) != _ENV.get(name)}
    others = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if not path.startswith(str(ROOT)) and path]
    if not any(re.match(pattern, name) for name in changed) and not others:
        run = _train if trains else forks().run
        if words[0] == "-m" and words[1] in ("nano3", "nano3.pretrain", "nano3.data_prep"):
            return run(list(words[1:]), cwd, env)
        if words[0].endswith(".py"):
            return run(list(words), cwd, env)
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def run_tool(*words: object) -> Result:
    """Run `nano3 WORDS...` with this process's folder and environment; return exit code, stdout and stderr."""
    return run_command(["-m", "nano3", *map(str, words)], Path.cwd(), os.environ)


class Commands:
    """Runs `python WORDS...` in `folder` with a separate artifact store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        own = {"NANO3_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.env = {**os.environ, **own}

    def __call__(self, *words: str, code: int = 0, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run a command and fail unless its exit code is `code`."""
        elsewhere = {"dry_run=true", "cluster=slurm", "-m", "--cfg", "--help"}
        trains = words[:2] == ("-m", "nano3.pretrain") and code == 0 and not elsewhere & set(words[2:])
        done = subprocess.CompletedProcess(words, *run_command(words, self.folder, {**self.env, **env}, trains))
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def run_dir(self, name: str) -> Path:
        """Return the run folder of run.name=NAME."""
        return self.folder / "output/nano3/runs" / name


def losses(run: Path) -> dict[int, float]:
    """Return the training loss by iteration, and fail if an iteration is recorded twice."""
    written = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines = [json.loads(line) for line in written if line.endswith("\n")]  # the last may still be on its way
    found = [(line["iteration"], line["loss"]) for line in lines if "loss" in line]
    assert len(found) == len(dict(found))
    return dict(found)
