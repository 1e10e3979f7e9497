"""`nano3 plan`: words in, a ranked table and words to paste out; no data, no GPU and no torch."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.__main__ import main
from nano3.tools.plan import cluster_words, compose_run, read_request
from nano3.utils.command_line import CommandLine
from nano3.utils.errors import UserError

NANO = "+experiment=nano3"


def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr("sys.argv", ["nano3", "plan", *words])
    with pytest.raises(SystemExit) as raised:
        main()
    shown = capsys.readouterr()
    return int(raised.value.code or 0), shown.out + shown.err


def rows(out: str) -> list[list[str]]:
    """Return the cells of the table of layouts, without its number."""
    lines = out[out.index("the fastest") :].splitlines()[2:]
    return [line.split()[1:] for line in lines if re.match(r"\d", line)][:3]


def test_a_plan_names_what_fits_and_what_it_costs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = plan(monkeypatch, capsys, NANO, "gpus=64", "gpu=h100", "--price", "2", "--top", "3")
    assert code == 0
    assert "31.6 B parameters, 3.58 B active; 64 H100" in out
    assert "993,411 iterations of 3,072 x 8,192 tokens = 25 T tokens; bf16" in out
    for row in rows(out):
        hours, cost = (float(cell.replace(",", "")) for cell in row[-2:])
        assert cost == pytest.approx(2 * hours, abs=2)
        assert float(row[-3].replace(",", "")) * 24 * 64 == pytest.approx(hours, rel=0.01)
    assert "refused" in out and "must divide the model's 52 layers" in out


def test_the_words_to_paste_are_a_run_that_nano3_accepts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out = plan(monkeypatch, capsys, "data_blend=sample", "model=nemotron_3_nano_1b", "gpus=4", "gpu=h200")
    command = next(line for line in out.splitlines() if line.startswith("python -m nano3.pretrain"))
    assert "cluster.gpu=h200 cluster.nproc_per_node=4" in command
    prepare = "python -m nano3.data_prep data_blend=sample workers=1"
    script = "\n".join(line.replace("python", sys.executable, 1) for line in (prepare, f"{command} dry_run=true"))
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    predicted = re.search(r"([\d.]+) s an iteration", done.stdout)
    assert predicted is not None and "do not fit" not in done.stdout


@pytest.mark.parametrize("gpus", [1, 8, 9, 12, 20, 64, 100])
@pytest.mark.parametrize("profile", [[], ["cluster=slurm"], ["cluster=slurm", "cluster.gpus_per_node=4"]])
def test_the_words_start_exactly_the_planned_ranks(gpus: int, profile: list[str]) -> None:
    request = read_request([NANO, *profile, f"gpus={gpus}"])
    words = [*request.words, *cluster_words(request)]
    cluster = compose_run(CommandLine.parse(words)).cluster
    ranks = cluster.nproc_per_node if cluster.kind == "local" else cluster.nodes * cluster.ntasks_per_node
    assert ranks == gpus, words


@pytest.mark.parametrize(
    ("words", "gpu", "of_cluster"),
    [
        pytest.param([], "h100", ["cluster.nodes=8", "cluster.gpus_per_node=8"], id="default"),
        pytest.param(["gpu=gb300"], "gb300", ["cluster.nodes=16", "cluster.gpus_per_node=4"], id="four a node"),
        pytest.param(["cluster.gpu=h200"], "h200", ["cluster.nodes=8", "cluster.gpus_per_node=8"], id="of the run"),
        pytest.param(["cluster.gpu=h200", "gpu=b200"], "b200", ["cluster.nodes=8"], id="another one"),
    ],
)
def test_the_words_are_for_the_kind_of_gpu(words: list[str], gpu: str, of_cluster: list[str]) -> None:
    """Or the preflight of the pasted run would say whether it fits into another kind."""
    request = read_request([NANO, *words, "gpus=64"])
    pasted = [*request.words, *cluster_words(request)]
    assert request.gpu.name == gpu and set(of_cluster) <= set(pasted)
    assert compose_run(CommandLine.parse(pasted)).cluster.gpu == gpu


def test_words_with_spaces_are_quoted_for_the_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    word = "run.output_dir=/data/my runs"
    _, out = plan(monkeypatch, capsys, NANO, "gpus=8", "gpu=h200", word, "--top", "1")
    command = next(line for line in out.splitlines() if line.startswith("python -m nano3.pretrain"))
    assert word in shlex.split(command)


def test_nothing_fits(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(monkeypatch, capsys, NANO, "gpus=1", "gpu=h100")
    assert code == 1
    assert "no layout fits" in out and "too large: at least" in out


WRONG = {
    "no number": ([NANO], "give gpus=N"),
    "no whole number": ([NANO, "gpus=1e3"], "gpus=1e3: give the number of GPUs"),
    "no such GPU": ([NANO, "gpus=8", "gpu=h1000"], "gpu=h1000: no such kind of GPU. Did you mean 'h100'?"),
    "no assignment": (["nano3", "gpus=8"], "nano3: expected KEY=VALUE"),
    "no such key": ([NANO, "gpus=8", "train.micro=2"], "train.micro"),
    "no such experiment": (["+experiment=nano4", "gpus=8"], "Did you mean 'nano3'?"),
    "another backend": (["+experiment=quickstart", "gpus=8"], "only runs with backend=megatron are planned"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_words(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as raised:
        read_request(words)
    assert any(message in problem for problem in raised.value.problems), raised.value.problems


def test_all_wrong_words_are_named_at_once() -> None:
    with pytest.raises(UserError) as raised:
        read_request(["oops", "gpus=x", "gpu=y"])
    assert len(raised.value.problems) == 3


def test_planning_imports_neither_torch_nor_megatron() -> None:
    program = (
        "import sys; sys.argv = ['nano3', 'plan', '+experiment=nano3', 'gpus=8', '--top', '1']\n"
        "from nano3.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print({'torch', 'megatron', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
