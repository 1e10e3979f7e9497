"""Make v0_1/: what nano3 0.1.0 leaves on disk. See README.md.

python tests/compat/make.py CHECKOUT SLURM_CONF

Runs in /tmp/nano3-old, under a made-up user and host name, with the code of CHECKOUT. Needs root (the host name),
strace (breaking off at a given moment) and the Slurm that SLURM_CONF describes (tests/slurm/devcluster.sh).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import old_text
from old_work import MADE_AT, OLD, TOOL, TRAIN, Work, ended, facts, lines, sha256, table_rows, typed, versions

HOST, USER = "localhost", "someone"
ROOT = Path(MADE_AT)
# The old code itself, what only submitit reads, and pictures but one.
NOT_PACKED = re.compile(r"^\.(venv|code)|/slurm/code-|\.pkl$|__pycache__|^fresh|runs/(?!finished/).*/loss\.png$")
PROFILES = {
    "data_blend/tiny.yaml": """\
name: tiny
datasets:
  - {name: stories, path: text/stories.jsonl, weight: 0.4}
  - {name: notes, path: text/notes.parquet, weight: 0.3}
  - {name: code, path: text/code.jsonl.zst, weight: 0.2}
  - {name: letters, path: text/letters.jsonl.gz, weight: 0.1}
tokenizer_model: tokenizer
num_shards: 18
valid_fraction: 0.2
test_fraction: 0.1
""",
    "model/tiny.yaml": """\
hybrid_layer_pattern: ME*-
hidden_size: 8
ffn_hidden_size: 16
num_attention_heads: 2
num_query_groups: 1
kv_channels: 4
mamba_num_heads: 2
mamba_head_dim: 4
mamba_state_dim: 4
mamba_num_groups: 1
mamba_chunk_size: 16
num_moe_experts: 4
moe_router_topk: 2
moe_ffn_hidden_size: 8
moe_shared_expert_intermediate_size: 8
moe_router_topk_scaling_factor: 2.5
moe_router_bias_update_rate: 1.0e-3
init_method_std: 0.02
layernorm_epsilon: 1.0e-5
share_embeddings_and_output_weights: false
""",
    "experiment/tiny.yaml": """\
# @package _global_
defaults:
  - override /model: tiny
  - override /data_blend: tiny
run: {name: tiny}
backend: transformers
train:
  train_iters: 8
  global_batch_size: 4
  micro_batch_size: 2
  seq_length: 32
  eval_interval: 4
  eval_iters: 1
  threads: 1
optimizer: {lr: 1.0e-2, min_lr: 1.0e-4}
scheduler: {lr_warmup_iters: 2, lr_wsd_decay_iters: 3}
logger: {log_interval: 1}
checkpoint: {save_interval: 4, keep_last: 1}
""",
    "cluster/tiny.yaml": """\
kind: slurm
time: "10"
mem: 4G
poll_s: 0.5
""",
}
RUN = "train +experiment=tiny"
LOAD = "checkpoint.load=output/nano3/runs"
# An application and its words.
COMMANDS = {
    "sample": "prep data_blend=sample output_dir=sample",
    "wide": "prep blend_path=wide.json tokenizer_model=wide/tokenizer output_dir=wide-data num_shards=12 "
    "valid_fraction=0.05 test_fraction=0.02",
    "quickstart": "train +experiment=quickstart run.data=sample train.train_iters=10 train.eval_interval=5 "
    "train.eval_iters=1 train.threads=1 scheduler.lr_warmup_iters=2 scheduler.lr_wsd_decay_iters=3 "
    "logger.log_interval=1 logger.sample_prompts=[] checkpoint.save_interval=5",
    "data": "prep data_blend=tiny output_dir=data",
    "broken": "prep data_blend=tiny output_dir=broken alias=broken workers=1",
    "publishing": "prep data_blend=tiny output_dir=publishing alias=publishing",
    "on-slurm": "prep data_blend=tiny output_dir=on-slurm alias=on-slurm",
    "finished": f"{RUN} run.name=finished logger.sample_prompts=[The]",
    "stopped": f"{RUN} run.name=stopped",
    "killed": f"{RUN} run.name=killed train.train_iters=60",
    "phase": f"{RUN} run.name=phase {LOAD}/finished/checkpoints",
    "rest": f"{RUN} run.name=rest {LOAD}/stopped/checkpoints checkpoint.keep_iteration=true checkpoint.save=saved/rest",
    "two": f"{RUN} run.name=two cluster.nproc_per_node=2",
    "job-again": f"{RUN} run.name=job-again logger.sample_prompts=[] train.train_iters=200 "
    "checkpoint.save_interval=50 logger.log_interval=10",
}


class OldWork(Work):
    """Commands of the old code."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.env |= {"PYTHONPATH": f"{MADE_AT}/.code", "LOGNAME": USER, "USER": USER, "NANO3_CONF": f"{MADE_AT}/conf"}

    def start(self, *words: str, **env: str) -> "subprocess.Popen[str]":
        print("$ python", *words, flush=True)
        return subprocess.Popen(
            [f"{MADE_AT}/.venv/bin/python", *words],
            cwd=self.folder,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *words: str, code: int = 0, **env: str) -> str:
        return ended(self.start(*words, **env), code)


def main(checkout: Path, slurm_conf: Path) -> None:
    """All of it."""
    shutil.rmtree(ROOT, ignore_errors=True)
    ROOT.mkdir()
    (ROOT / ".code").symlink_to(checkout.resolve())
    (ROOT / ".venv").symlink_to(sys.prefix)
    work = OldWork(ROOT)
    for name, text in PROFILES.items():
        (ROOT / "conf" / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / "conf" / name).write_text(text)
    old_text.write_small(ROOT)
    for path in (ROOT / "text").iterdir():
        os.utime(path, (old_text.WRITTEN, old_text.WRITTEN))
    time.sleep(3)  # files that were written just now are not remembered
    found: dict[str, Any] = {"commit": commit(checkout), "versions": versions()}
    found["commands"] = COMMANDS
    prepare(work)
    found["data"] = facts(ROOT / "data", ROOT / "home", "tiny")
    train(work)
    on_slurm(work, slurm_conf)
    found["jobs"] = table_rows(work(*TOOL, "jobs"), ROOT)
    pack()
    found["runs"] = go_on(work)
    found["trace"] = table_rows(work(*TOOL, "trace", "finished", "--iteration", "3"), work.folder)
    found |= afresh(OldWork(ROOT / "fresh"))
    (OLD / "baseline.json").write_text(json.dumps(found, indent=1) + "\n")


def commit(checkout: Path) -> str:
    """Of the old code, which must not be changed."""
    git = ["git", "-C", str(checkout)]
    assert not subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    return subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()


# Data


def prepare(work: Work) -> None:
    """A whole preparation, one broken off at work, and one broken off while it was moved into place."""
    work(*typed(COMMANDS["data"]))
    break_off(work)
    break_off_publishing(work)


def break_off(work: Work) -> None:
    """One that has some units and shards, and not others."""

    def half_done() -> bool:
        units, shards = (list(ROOT.glob(f"broken/.prep/*/{sub}/*.json")) for sub in ("units", "shards"))
        return len(units) == 3 and len(shards) >= 2

    kill_when(half_done, work, COMMANDS["broken"])
    assert not (ROOT / "broken/manifest.json").exists()
    assert list(ROOT.glob("broken/.prep/*/units/*.bin"))


def break_off_publishing(work: Work) -> None:
    """One that has moved half of what it made into place."""

    def half_moved() -> bool:
        folder = ROOT / "publishing"
        return (folder / "valid").exists() and not (folder / "tokenizer").exists()

    kill_when(half_moved, work, COMMANDS["publishing"])
    assert (ROOT / "publishing/.prep/publish").exists()


def kill_when(ready: Callable[[], bool], work: Work, command: str) -> None:
    """Kill a preparation, whose renames are made slow."""
    slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=rename", "-e", "inject=rename:delay_exit=100000"]
    process = subprocess.Popen(
        [*slow, f"{MADE_AT}/.venv/bin/python", *typed(command)], cwd=ROOT, env=work.env, start_new_session=True
    )
    until(ready, 0.001)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert ready()


# Training


def train(work: Work) -> None:
    """A finished run, one that was stopped, one that was killed, and two that began with those."""
    work(*typed(COMMANDS["finished"]))
    for iteration in (2, 4):
        work(*typed(COMMANDS["stopped"]), f"train.exit_iteration={iteration}")
    run = work.run_dir("killed")
    process = work.start(*typed(COMMANDS["killed"]))
    until(lambda: (run / "checkpoints").is_dir() and len(list(run.glob("checkpoints/iter_*/*.json"))) > 0, 0.001)
    until(lambda: lines(run)[-1]["iteration"] % 4 == 3, 0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert 5 < lines(run)[-1]["iteration"] < 55 and not list(run.glob("checkpoints/*.tmp"))
    work(*typed(COMMANDS["phase"]), "train.exit_iteration=3")
    work(*typed(COMMANDS["rest"]), "train.exit_iteration=6")
    work(*typed(COMMANDS["two"]), "train.exit_iteration=4")


def until(ready: Callable[[], bool], every: float, seconds: float = 120) -> None:
    """Wait."""
    deadline = time.monotonic() + seconds
    while not settled(ready):
        assert time.monotonic() < deadline
        time.sleep(every)


def settled(ready: Callable[[], bool]) -> bool:
    """Whether it is so; not when a file is just being written."""
    try:
        return ready()
    except (ValueError, OSError, IndexError):
        return False


# Slurm


def on_slurm(work: Work, slurm_conf: Path) -> None:
    """A preparation as a job array, and runs that ended in every way a job of theirs can end."""
    work.env["SLURM_CONF"] = str(slurm_conf)
    work(*typed(COMMANDS["on-slurm"]), "cluster=tiny", "cluster.tasks=2")
    job = [*typed(RUN), "cluster=tiny", "logger.sample_prompts=[]"]
    work(*job, "run.name=job-finished")
    work(*job, "run.name=job-failed", "optimizer.lr=1e30", "optimizer.clip_grad=0", code=1)
    work(*job, "run.name=job-stopped", "train.train_iters=2000", "train.exit_duration_in_mins=0.02", code=75)
    for name, most, code in (("job-requeued", 3, 0), ("job-again", 0, 75)):
        words = typed(COMMANDS["job-again"].replace("job-again", name))
        process = work.start(*words, "cluster=tiny", f"cluster.max_requeues={most}")
        run = work.run_dir(name)
        until(lambda run=run: lines(run)[-1]["iteration"] >= 20, 0.05)
        subprocess.run(["scancel", "--signal=USR2", last_job(run)["id"]], env=work.env, check=True)
        ended(process, code)
    work(*TRAIN, "-m", *job[len(TRAIN) :], "run.name=sweep", "optimizer.lr=1e-3,3e-3")
    work(*job, "run.name=job-unnoted", "cluster.mode=detached")
    until(lambda: "RUNNING" not in (told := work(*TOOL, "jobs")) and "PENDING" not in told, 2)


def last_job(run: Path) -> dict[str, Any]:
    """The newest entry of jobs.json."""
    found: dict[str, Any] = json.loads((run / "jobs.json").read_text())["jobs"][-1]
    return found


# What is kept


def pack() -> None:
    """The archive: without the code that jobs were started with, and what only submitit reads."""
    OLD.mkdir(exist_ok=True)
    files = sorted(path for path in ROOT.rglob("*") if not NOT_PACKED.search(str(path.relative_to(ROOT))))
    with tarfile.open(OLD / "work.tar.xz", "w:xz", preset=9) as archive:
        for path in files:
            archive.add(path, str(path.relative_to(ROOT)), recursive=False, filter=nobody)
    elsewhere = [str((ROOT / name).resolve()).encode() for name in (".code", ".venv")]
    named = [path for path in files if path.is_file() and any(place in path.read_bytes() for place in elsewhere)]
    assert not named, named


def nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without its owner."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def go_on(work: Work) -> dict[str, Any]:
    """How the old code itself goes on with the runs that were broken off."""
    for name in ("broken", "publishing"):
        work(*typed(COMMANDS[name]))
        same = (
            facts(ROOT / name, ROOT / "home", name)["sha256"] == facts(ROOT / "data", ROOT / "home", "tiny")["sha256"]
        )
        assert same
    found = {}
    for name in ("stopped", "killed", "phase", "rest", "two", "job-again"):
        work(*typed(COMMANDS[name]))
        found[name] = ending(work.run_dir(name))
    found["finished"] = ending(work.run_dir("finished"))
    return found


def ending(run: Path) -> dict[str, Any]:
    """The metrics of a finished run, and the checksum of its model."""
    model = Path(json.loads((run / "finished.json").read_text())["checkpoint"]) / "hf/model.safetensors"
    return {"lines": lines(run), "model": sha256(model)}


def afresh(work: Work) -> dict[str, Any]:
    """What the old code makes of text that tests can make too."""
    work.folder.mkdir()
    work.env["NANO3_HOME"] = str(work.folder / "home")
    old_text.write_wide(work.folder)
    found = {}
    for name, folder in (("sample", "sample"), ("wide", "wide-data")):
        work(*typed(COMMANDS[name]))
        found[name] = facts(work.folder / folder, work.folder / "home", alias=name)
    work(*typed(COMMANDS["quickstart"]))
    found["quickstart"] = ending(work.run_dir("quickstart"))
    return found


if __name__ == "__main__":
    if len(sys.argv) == 3:
        again = [sys.executable, __file__, *sys.argv[1:], "as " + HOST]
        sys.exit(
            subprocess.run(["unshare", "--uts", "sh", "-c", f'hostname {HOST} && exec "$@"', "sh", *again]).returncode
        )
    main(Path(sys.argv[1]), Path(sys.argv[2]))
