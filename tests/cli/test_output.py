"""Output never fails a command: streams that cannot encode a name, are closed, or are full; names from strangers."""

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, SMALL, Commands

NAME = "données"
TOKENIZER = f"tokenizer_model={ROOT}/nano3/sample/tokenizer"
PREP = f"nano3.data_prep blend_path=blend.json {TOKENIZER} output_dir=out num_shards=2 valid_fraction=0.1 workers=1"
RUNS = (f"runs/{NAME}", f"runs/{NAME}2")
TRAIN = f"nano3.pretrain {' '.join(SMALL)} run.data=out"
TOOLS = [
    "inspect out", "inspect out --doc 0", "verify out", "artifacts list",
    "artifacts show DataBlendsArtifact-pretrain", "artifacts lineage DataBlendsArtifact-pretrain", "jobs",
    f"tail {RUNS[0]} --no-follow", f"diff {RUNS[0]} {RUNS[1]}", f"report {RUNS[0]} --output page.html",
    f"trace {RUNS[0]} --iteration 2 --text", f"export {RUNS[0]} --output hf{{n}}", f"cancel {RUNS[0]}", "doctor",
    "--help", "jobs --help", f"rerun {RUNS[0]} dry_run=true",
]  # fmt: skip
COMMANDS = [f"{PREP} force=true", f"{PREP} dry_run=true", f"{TRAIN} run.name=three", f"{TRAIN} dry_run=true"]
COMMANDS += [f"nano3 {tool}" for tool in TOOLS]
COMMANDS += [
    "nano3.data_prep --help",
    "nano3.pretrain --cfg job",
    f"nano3.data_prep --cfg job 'data_blend.name=\"{NAME}\"'",
]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Commands:
    """A folder with text under a name that is not ASCII."""
    cli = Commands(tmp_path_factory.mktemp("output"))
    rows = [json.dumps({"text": f"document {n} of « {NAME} » ends here"}, ensure_ascii=False) for n in range(200)]
    (cli.folder / NAME).mkdir()
    (cli.folder / NAME / "à.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    blend = {"datasets": [{"name": NAME, "path": NAME}]}
    (cli.folder / "blend.json").write_text(json.dumps(blend))
    return cli


@pytest.fixture(scope="module")
def trained(cli: Commands) -> Commands:
    """The same with prepared data and two runs of it."""
    cli("-m", *shlex.split(PREP))
    for seed, folder in enumerate(RUNS):
        cli("-m", *shlex.split(f"{TRAIN} run.name=run{seed} 'run.output_dir=\"{folder}\"' train.seed={seed}"))
    return cli


def run(cli: Commands, command: str, output: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a shell, with its output redirected. Its own exit code is the result."""
    line = f"set -o pipefail; {sys.executable} -m {command} {output}"
    return subprocess.run(
        ["bash", "-c", line],
        cwd=cli.folder,
        env={**cli.env, **env},
        capture_output=True,
        text=True,
        errors="replace",
    )


ENCODINGS = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "strict": {"PYTHONIOENCODING": "ascii:strict"},
    "C": {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1:strict"},
}


@pytest.mark.parametrize("env", ENCODINGS.values(), ids=ENCODINGS)
def test_data_is_registered_when_its_name_cannot_be_encoded(cli: Commands, env: dict[str, str]) -> None:
    home = cli.folder / "home" / "_".join(env.values())
    done = run(cli, f"{PREP} force=true output_dir=other_{len(env)}", NANO3_HOME=str(home), **env)
    assert done.returncode == 0, done.stderr
    assert ("donn\\xe9es" in done.stdout or "LC_ALL" in env) and "Traceback" not in done.stderr
    assert [path.name for path in home.glob("*/v*.json")] == ["v1.json"]


@pytest.mark.parametrize("output", ["> /dev/full", "| head -c 1", "2> /dev/full", "2>&1 | head -c 1", ">&- 2>&-"])
def test_the_next_step_starts_when_the_output_is_lost(cli: Commands, output: str) -> None:
    """Registration comes after the last line of the preparation."""
    home = cli.folder / "home" / output.replace("/", "_")
    done = run(cli, f"{PREP} force=true", output, NANO3_HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert [path.name for path in home.glob("*/v*.json")] == ["v1.json"]
    assert output != "> /dev/full" or "warning: part of the output could not be written: No space" in done.stderr


def test_what_hydra_logs_of_itself_may_be_cut(cli: Commands) -> None:
    done = run(cli, "nano3.pretrain --info", "| head -c 1")
    assert done.returncode in (0, 1) and done.stderr == ""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_with_every_output(trained: Commands, command: str) -> None:
    """No traceback anywhere; work is done as with an ordinary output; only what shows something may stop."""
    shows = "--help" in command or "--cfg" in command or "dry_run" in command
    shows = shows or command.split()[1] in ("inspect", "artifacts", "jobs", "tail", "diff", "trace", "doctor")
    outputs = [
        ("", ENCODINGS["strict"]),
        *((each, {}) for each in ("| head -c 1", "> /dev/full", "2> /dev/full", ">&- 2>&-")),
    ]
    for n, (output, env) in enumerate(outputs):
        done = run(trained, command.replace("{n}", str(n)), output, **env)
        assert "Traceback" not in done.stdout + done.stderr, (output, env, done.stderr)
        assert "Exception ignored" not in done.stderr, (output, env, done.stderr)
        assert "Error executing job" not in done.stderr, (output, env, done.stderr)
        may_stop = shows and ("head" in output or "> /dev/full" in output)
        assert done.returncode in ((0, 1) if may_stop else (0,)), (output, env, done.stderr)


HOSTILE = "\x1b]0;owned\x07a\x1b[2J\nerror: fake\r\x9b31m\u202eb"


def test_names_of_strangers_are_escaped(cli: Commands) -> None:
    """A file name and a JSON key with control sequences and line ends, in an error, a table and a log."""
    folder = cli.folder / "hostile"
    folder.mkdir()
    (folder / f"{HOSTILE}.jsonl").write_text(json.dumps({HOSTILE: "no text field"}) + "\n")
    words = ["datasets=[{name: d, path: hostile}]", "name=h"]
    done = run(
        cli, f"nano3.data_prep {' '.join(repr(f'data_blend.{w}') for w in words)} {TOKENIZER} output_dir=hostile_out"
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 2, shown
    assert "\\x1b]0;owned\\x07a\\x1b[2J" in shown and "\\u202eb" in shown
    assert not set(shown) & set("\x1b\x07\r\x9b\u202e")
    assert not [line for line in shown.splitlines() if line.startswith("error: fake")]


@pytest.mark.parametrize("words", [["jobs", "."], ["jobs", HOSTILE], ["artifacts", "show", HOSTILE], [HOSTILE]])
def test_tools_escape_names(tmp_path: Path, words: list[str]) -> None:
    (tmp_path / HOSTILE).mkdir()
    (tmp_path / HOSTILE / "config.yaml").write_text("")
    done = Commands(tmp_path)
    shown = subprocess.run(
        [sys.executable, "-m", "nano3", *words], cwd=tmp_path, env=done.env, capture_output=True, text=True
    )
    text = shown.stdout + shown.stderr
    assert "\\x1b]0;owned" in text, text
    assert not set(text) & set("\x1b\x07\r\x9b\u202e")
    assert not [line for line in text.splitlines() if line.startswith("error: fake")]


def test_a_message_is_bounded(tmp_path: Path) -> None:
    """A row with 100,000 fields and no text, and 1,000 datasets that do not exist."""
    cli = Commands(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({f"field_{n}": 1 for n in range(100_000)}) + "\n")
    blend = {"datasets": [{"name": "a", "path": "a.jsonl"}]}
    (tmp_path / "b.json").write_text(json.dumps(blend))
    done = cli("-m", "nano3.data_prep", "blend_path=b.json", TOKENIZER, "output_dir=out", code=2)
    assert "text_field=text is in none" in done.stderr and "and 99,970 more." in done.stderr and len(done.stderr) < 2000
    blend = {"datasets": [{"name": f"d{n}", "path": f"missing/{n}" * 100} for n in range(1000)]}
    (tmp_path / "b.json").write_text(json.dumps(blend))
    done = cli("-m", "nano3.data_prep", "blend_path=b.json", TOKENIZER, "output_dir=out", code=2)
    assert len(done.stderr) < 500_000


def test_only_the_console_prints() -> None:
    """Every other module calls it, so that no name reaches a terminal or a log as it is."""
    found = []
    for path in sorted([*(ROOT / "nano3").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]):
        if path.name in ("console.py", "make_sample.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write", "traceback.print_exc",
            ):  # fmt: skip
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []
