"""`nano3 plan`: words in, a ranked table and words to paste out; no data, no GPU and no torch."""

import re
import shlex
import subprocess
import sys
from itertools import pairwise
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
    assert "31.6 B parameters, 3.58 B active (vocabulary 131,072); 64 H100" in out
    assert "933,806 of 993,411 iterations of 3,072 x 8,192 tokens = 23.5 T tokens; bf16" in out
    assert "fewer of them" not in out
    for row in rows(out):
        hours, cost = (float(cell.replace(",", "")) for cell in row[-2:])
        assert cost == pytest.approx(2 * hours, abs=2)
        assert float(row[-3].replace(",", "")) * 24 * 64 == pytest.approx(hours, rel=0.01)
    assert "refused" in out and "must divide the model's 52 layers" in out


def test_the_words_to_paste_are_a_run_that_nano3_accepts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "data_blend=sample",
        "model=nemotron_3_nano_1b",
        "train.exit_iteration=1000",
        "train.global_batch_size=3072",
        "gpus=4",
        "gpu=h200",
    ]
    assert "(vocabulary 131,072)" in plan(monkeypatch, capsys, *words)[1], "before the data is prepared"
    prepare = f"{sys.executable} -m nano3.data_prep data_blend=sample output_dir=data workers=1"
    subprocess.run(shlex.split(prepare), capture_output=True, check=True)
    _, out = plan(monkeypatch, capsys, *words)
    assert out == plan(monkeypatch, capsys, "run.data=data", *words[1:])[1].replace("run.data=data", words[0])
    command = next(line for line in out.splitlines() if line.startswith("python -m nano3.pretrain"))
    assert "cluster.gpu=h200 cluster.nproc_per_node=4" in command
    script = f"{command} dry_run=true".replace("python", sys.executable, 1)
    done = subprocess.run(["bash", "-ec", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "do not fit" not in done.stdout
    shown = re.search(r"([\d.]+) s an iteration, ([\d,]+) tokens/s/GPU, (\d+%) MFU; ([\d.]+) GPU-hours", done.stdout)
    memory, step, rate, mfu, _, hours = rows(out)[0][-6:]
    assert shown is not None and shown.groups()[:3] == (step, rate, mfu)
    assert float(shown[4]) == pytest.approx(float(hours), rel=0.05)
    total = re.search(r"memory per GPU +about ([\d.]+) GB", done.stdout)
    assert total is not None and float(total[1]) == pytest.approx(float(memory), abs=0.6)
    assert "1.22 B parameters, 440 M active (vocabulary 4,096)" in out and "1.22 B, 440 M active" in done.stdout


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


def test_sizes_among_the_words_are_kept(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["model.tensor_model_parallel_size=2", "model.expert_model_parallel_size=16", "train.micro_batch_size=2"]
    code, out = plan(monkeypatch, capsys, NANO, *sizes, "gpus=64", "gpu=h200")
    assert code == 0
    assert f"only layouts with {' '.join(sizes)}" in out
    assert {(row[0], row[3], row[5]) for row in rows(out)} == {("2", "16", "2")}
    command = next(line for line in out.splitlines() if line.startswith("python -m nano3.pretrain"))
    keys = [word.partition("=")[0] for word in shlex.split(command)]
    assert len(keys) == len(set(keys)) and set(sizes) <= set(shlex.split(command))


def test_words_that_the_plan_changes_are_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra refuses two words for one group, and a reader cannot see which of two values counts."""
    given = [
        "cluster=local",
        "cluster.gpu=h200",
        "cluster.nproc_per_node=3",
        "++megatron.model.recompute_modules=[moe]",
        "model.sequence_parallel=true",
    ]
    code, out = plan(monkeypatch, capsys, NANO, *given, "gpus=64", "gpu=h100", "--top", "1")
    assert code == 0
    command = next(line for line in out.splitlines() if line.startswith("python -m nano3.pretrain"))
    words = shlex.split(command)[3:]
    keys = [word.partition("=")[0].lstrip("+") for word in words]
    assert len(keys) == len(set(keys))
    cluster = compose_run(CommandLine.parse(words)).cluster
    assert (cluster.kind, cluster.nodes, cluster.gpus_per_node, cluster.gpu) == ("slurm", 8, 8, "h100")
    assert "cluster.nproc_per_node" not in keys, "refused on Slurm"


@pytest.mark.parametrize(
    ("words", "tried"),
    [
        pytest.param([NANO, "gpus=1"], "gpus=16", id="too large"),
        pytest.param([NANO, "gpus=72", "gpu=gb200"], "gpus=64 or gpus=96", id="a batch that cannot be divided"),
        pytest.param(
            [NANO, "gpus=64", "model.tensor_model_parallel_size=3"],
            "the words without model.tensor_model_parallel_size=3",
            id="a size that does not divide the GPUs",
        ),
        pytest.param(
            [NANO, "gpus=64", "train.global_batch_size=48", "train.micro_batch_size=32"],
            "the words without train.micro_batch_size=32",
            id="a micro batch that does not divide the batch",
        ),
    ],
)
def test_nothing_fits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], tried: str
) -> None:
    code, out = plan(monkeypatch, capsys, *words)
    assert code == 1
    assert "no layout fits" in out and out.splitlines()[-1] == f"to try instead: {tried}"
    for word in (word for word in tried.split() if word.startswith("gpus=")):
        assert plan(monkeypatch, capsys, *words, word)[0] == 0


def test_a_batch_that_is_too_small_for_so_many_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model=nemotron_3_nano_1b", "train.global_batch_size=8", "gpu=h100", "--price", "3", "--top", "1"]
    code, out = plan(monkeypatch, capsys, *words, "gpus=32")
    assert code == 0
    compared = out[out.index("of a step; fewer of them take fewer GPU-hours") :].splitlines()[2:]
    found = [[float(cell.replace(",", "").rstrip("%")) for cell in line.split()] for line in compared if "%" in line]
    assert [row[0] for row in found][:2] == [32, 16]
    spent = [row[5] for row in found]
    assert all(less <= 0.95 * more for more, less in pairwise(spent))
    assert all(row[6] == pytest.approx(3 * row[5], rel=0.1) for row in found)
    _, alone = plan(monkeypatch, capsys, *words, f"gpus={found[-1][0]:.0f}")
    assert rows(alone)[0][9] == f"{found[-1][1]:.2f}"


@pytest.mark.parametrize(("gpu", "micro", "memory"), [("h200", "8", "88"), ("h100", "4", "58")])
def test_one_hopper_gpu_with_the_vocabulary_of_nemotron(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], gpu: str, micro: str, memory: str
) -> None:
    """The page and conf/train/one_hopper.yaml name this micro batch."""
    _, out = plan(monkeypatch, capsys, "model=nemotron_3_nano_1b", "train=one_hopper", "gpus=1", f"gpu={gpu}")
    assert rows(out)[0][5:9] == [micro, "nothing", "allgather", memory]


def test_a_phase_that_keeps_its_iteration(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = plan(monkeypatch, capsys, NANO, "train=phase2", "gpus=64", "--top", "1")
    assert out.splitlines()[1].startswith("993,411 iterations of 3,072 x 8,192 tokens")
    assert out.splitlines()[2].startswith("counted from iteration 0; the run begins at that of checkpoint.load")


def test_a_recipe_that_is_not_recorded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = plan(monkeypatch, capsys, NANO, "recipe._target_=mine.recipe", "gpus=64", "--top", "1")
    assert code == 0 and "mine.recipe is not recorded: sizes are estimated without its values" in out
    near = "recipe._target_=megatron.bridge.recipes.qwen.qwen3_8b_pretrain_config"
    code, out = plan(monkeypatch, capsys, "model=recipe", near, "gpus=8")
    assert code == 2
    assert (
        "architecture is not known here" in out and "Did you mean 'megatron.bridge.recipes.qwen.qwen3.qwen3_8b" in out
    )


def test_what_is_not_estimated_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["+megatron.model.moe_latent_size=1024", "+megatron.optimizer.optimizer_cpu_offload=true"]
    _, out = plan(monkeypatch, capsys, NANO, *words, "gpus=64", "--top", "1")
    assert (
        "not estimated: megatron.model.moe_latent_size=1024, megatron.optimizer.optimizer_cpu_offload=true. Parameters"
    ) in out
    lightning = ["+experiment=lightning", "train=[nemotron_3_5_lightning,perf_h100_lightning]"]
    _, out = plan(monkeypatch, capsys, *lightning, "gpus=16", "--top", "1")
    assert "not estimated: megatron.model.fine_grained_activation_offloading=true." in out


WRONG = {
    "no number": ([NANO], "give gpus=N"),
    "no whole number": ([NANO, "gpus=1e3"], "gpus=1e3: give the number of GPUs"),
    "no such GPU": ([NANO, "gpus=8", "gpu=h1000"], "gpu=h1000: no such kind of GPU. Did you mean 'h100'?"),
    "no kind like it": ([NANO, "gpus=8", "gpu=vr200"], "Allowed: a100, h100, h200, b200, gb200, b300, gb300."),
    "no size": ([NANO, "gpus=8", "model.tensor_model_parallel_size=0"], "size=0 must be at least 1."),
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
