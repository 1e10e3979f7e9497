"""launch.cluster_profile and nano3 cluster init: recorded answers of Slurm's clients, and the real Slurm."""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch import cluster_profile, environment
from launch.cluster_profile import MARK, Partition, choose_partition, parse_gres, parse_mpi, parse_sinfo
from nano3.config.cluster import ClusterConfig
from nano3.tools import cluster
from nano3.utils.errors import Failure, UserError

SINFO = """\
cpu|cpu|up|2-00:00:00|64|128|515000|(null)
gpu|gpu*|up|4:00:00|16|224|2063000|gpu:h100:8(S:0-1)
gpu|gpu*|up|4:00:00|2|96|1031000+|gpu:a100:4(S:0-3),mps:400
long|long|inact|infinite|30|224|2063000|gpu:h100:8(S:0-1)
"""
MPI = "MPI plugin types are...\n\tnone\n\tpmix\n\tpmi2\nspecific pmix plugin versions available: pmix_v4,pmix_v5\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu:8", (8, "")),
        ("gpu:h100:8(S:0-1)", (8, "h100")),
        ("gpu:a100:4(S:0,2),mps:400", (4, "a100")),
        ("gpu:a100:2,gpu:v100:2", (4, "")),
        ("gpu", (1, "")),
        ("(null)", (0, "")),
        ("craynetwork:4", (0, "")),
        ("gpu:nvidia_h100_80gb_hbm3:8(S:0-1)", (8, "nvidia_h100_80gb_hbm3")),
        ("gpu:a100_1g.10gb:7", (7, "a100_1g.10gb")),
    ],
)
def test_gpus_of_a_node(text: str, found: tuple[int, str]) -> None:
    assert parse_gres(text) == found


def test_partitions() -> None:
    found = parse_sinfo(SINFO + "sinfo: a warning\n")
    assert found[1] == Partition("gpu", True, True, "4:00:00", 16, 224, 2063000, 8, "h100")
    assert [(p.name, p.default, p.up, p.gpus) for p in found] == [
        ("cpu", False, True, 0), ("gpu", True, True, 8), ("gpu", True, True, 4), ("long", False, False, 8),
    ]  # fmt: skip
    assert found[1].describe() == "16 nodes of 8 h100 GPUs, 224 CPUs, 2015 GB"


@pytest.mark.parametrize(
    ("text", "name", "chosen"),
    [
        (SINFO, None, ("gpu", 8)),
        (SINFO, "cpu", ("cpu", 0)),
        (SINFO, "long", ("long", 8)),
        ("a|a*|up|1:00|9|8|1|(null)\nb|b|up|1:00|1|8|1|gpu:2\nc|c|up|1:00|2|8|1|gpu:2\n", None, ("c", 2)),
        ("a|a|up|1:00|9|8|1|(null)\nb|b*|up|1:00|1|8|1|(null)\n", None, ("b", 0)),
        ("a|a|down|1:00|9|8|1|gpu:8\n", None, ("a", 8)),
    ],
    ids=["default with GPUs", "named", "named and down", "most GPUs", "no GPUs", "all down"],
)
def test_chosen_partition(text: str, name: str | None, chosen: tuple[str, int]) -> None:
    found = choose_partition(parse_sinfo(text), name)
    assert (found.name, found.gpus) == chosen


def test_no_such_partition() -> None:
    with pytest.raises(UserError, match=r"--partition gpus: Slurm has no such partition\. Did you mean 'gpu'"):
        choose_partition(parse_sinfo(SINFO), "gpus")
    with pytest.raises(UserError, match="lists no partition"):
        choose_partition([], None)


@pytest.mark.parametrize(
    ("text", "plugins"),
    [
        (MPI, ["none", "pmix", "pmi2"]),
        ("srun: MPI types are...\nsrun: none\n", []),
        ("", []),
    ],
)
def test_mpi_plugins(text: str, plugins: list[str]) -> None:
    assert parse_mpi(text) == plugins


@pytest.fixture
def clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH, with clients that print recorded answers."""
    folder = tmp_path / "bin"
    folder.mkdir()
    programs = {
        "sinfo": f"print({SINFO!r}, end='')",
        "scontrol": "print('ClusterName             = hopper')",
        "sacctmgr": "print({'assoc': 'ml||normal,high\\nml|long|long\\nbio||normal', 'user': 'ml'}[sys.argv[3]])",
        "srun": f"sys.stderr.write({MPI!r}) if '--mpi=list' in sys.argv else print('--container-image=')",
    }
    for name, program in programs.items():
        (folder / name).write_text(f"#!{sys.executable}\nimport sys\n{program}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    environment.has_pyxis.cache_clear()
    return folder


@pytest.fixture(autouse=True)
def _forget_pyxis() -> Any:
    yield
    environment.has_pyxis.cache_clear()


def profile(partition: str | None = None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values of a profile as YAML reads them, and the comments of those that were not found."""
    name, settings = cluster_profile.query_profile(partition)
    values = yaml.safe_load(cluster_profile.profile_text(name, settings))
    assert set(values) <= {*ClusterConfig().__dict__}
    return values, {s.key: s.comment.removeprefix(MARK) for s in settings if not s.found}


def test_everything_is_found(clients: Path) -> None:
    values, missing = profile()
    assert values == {
        "kind": "slurm", "account": "ml", "qos": None, "partition": "gpu", "nodes": 1, "gpus_per_node": 8,
        "ntasks_per_node": "${cluster.gpus_per_node}", "cpus_per_task": 28, "mem": "0", "time": "04:00:00",
        "container_runtime": "auto", "mpi": "pmix",
    }  # fmt: skip
    assert missing == {}
    name, settings = cluster_profile.query_profile()
    comments = {setting.key: setting.comment for setting in settings}
    assert name == "hopper" and "you also have bio" in comments["account"] and "normal, high" in comments["qos"]
    assert comments["partition"].endswith("2015 GB; it also has other nodes; others: cpu, long")


def client(folder: Path, name: str, program: str) -> None:
    (folder / name).write_text(f"#!{sys.executable}\nimport sys\n{program}\n")


def test_what_cannot_be_found_is_marked(clients: Path) -> None:
    client(clients, "sacctmgr", "sys.exit('You are not running a supported accounting_storage plugin')")
    client(clients, "srun", "pass")
    values, missing = profile("cpu")
    assert set(missing) == {"account", "qos", "gpus_per_node", "container_runtime"}
    assert "sacctmgr does not answer" in missing["account"] and "--partition" in missing["gpus_per_node"]
    assert values["account"] is None and values["mpi"] is None and values["container_runtime"] == "none"
    assert (values["ntasks_per_node"], values["cpus_per_task"], values["time"]) == (1, 128, "1-00:00:00")


def test_a_user_without_an_account(clients: Path) -> None:
    client(clients, "sacctmgr", "pass")
    assert "knows no account of" in profile()[1]["account"]


def test_pyxis_without_a_known_mpi(clients: Path) -> None:
    client(
        clients,
        "srun",
        "print('MPI plugin types are...\\n\\tnone\\n' if '--mpi=list' in sys.argv else '--container-image')",
    )
    values, missing = profile()
    assert values["mpi"] is None and "srun has none, but none of them is pmix or pmi2" in missing["mpi"]


def test_an_mpi_plugin_that_is_listed_but_cannot_be_loaded(clients: Path) -> None:
    broken = "sys.exit(\"srun: error: Invalid MPI type 'pmix', --mpi=list for acceptable types\")"
    client(
        clients, "srun",
        f"if '--mpi=list' in sys.argv: print({MPI!r})\nelif '--mpi=pmix' in sys.argv: {broken}\n"
        "else: print('--container-image')",
    )  # fmt: skip
    values, missing = profile()
    assert values["mpi"] == "pmi2" and "mpi" not in missing
    comments = {setting.key: setting.comment for setting in cluster_profile.query_profile()[1]}
    assert comments["mpi"] == "srun has none, pmix, pmi2; pmix cannot be loaded here"


def init(folder: Path, **words: Any) -> int:
    """Return the exit code of nano3 cluster init."""
    defaults = {"name": None, "partition": None, "folder": str(folder), "force": False, "print": False}
    return cluster.run(argparse.Namespace(**{**defaults, **words}))


def test_the_file_is_written_once(clients: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert init(tmp_path, print=True) == 0
    shown = capfd.readouterr().out
    assert not (tmp_path / "cluster").exists()
    assert init(tmp_path) == 0
    path = tmp_path / "cluster" / "hopper.yaml"
    assert path.read_text() == shown and f"export NANO3_CONF={tmp_path}" in capfd.readouterr().out
    with pytest.raises(UserError, match=r"hopper\.yaml exists\. .* --force"):
        init(tmp_path)
    path.write_text("mine")
    assert init(tmp_path, force=True) == 0 and path.read_text() == shown
    for name in ("slurm", "a/b", "../x", ""):
        if name:
            with pytest.raises(UserError, match="cannot name a profile"):
                init(tmp_path, name=name)


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Failure, match="This machine has no sinfo"):
        init(tmp_path)


@pytest.mark.slurm
def test_a_preparation_with_the_profile_of_this_slurm(
    slurm_conf: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm_conf)
    monkeypatch.setenv("NANO3_CONF", str(tmp_path / "conf"))
    (tmp_path / "conf").mkdir()

    def nano3(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=dict(os.environ))

    made = nano3("nano3", "cluster", "init", "box")
    assert made.returncode == 0, made.stderr
    values = yaml.safe_load((tmp_path / "conf" / "cluster" / "box.yaml").read_text())
    assert (values["partition"], values["gpus_per_node"], values["cpus_per_task"]) == ("batch", 8, 2)
    words = ["nano3.data_prep", "data_blend=sample", "sample=50", "output_dir=data", "cluster=box"]
    done = nano3(*words, "cluster.mem=1G", "cluster.tasks=2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "manifest.json").exists()
