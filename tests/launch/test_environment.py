"""launch.environment: what the ranks run in is known, shown and checked at submission."""

import sys
from pathlib import Path
from typing import Any

import pytest

from launch.environment import describe, has_pyxis, may_be_added, missing_packages, resolve_runtime
from nano3.config.cluster import ClusterConfig

IMAGE = "nvcr.io/nvidia/nemo:25.11"


def cluster(**keys: Any) -> ClusterConfig:
    return ClusterConfig(**{"kind": "slurm", **keys})


@pytest.fixture(params=[True, False], ids=["pyxis", "plain"])
def pyxis(request: pytest.FixtureRequest, recorder: Path) -> bool:
    """Whether the Slurm of this test has pyxis, as `srun --help` shows."""
    option = "--container-image=[USER@][REGISTRY#]IMAGE[:TAG]|PATH" if request.param else "--exclusive"
    (recorder / "srun").write_text(f"#!/bin/sh\necho '{option}'\n")
    has_pyxis.cache_clear()
    yield request.param
    has_pyxis.cache_clear()


def test_auto_uses_pyxis_only_for_an_image_and_only_if_slurm_has_it(pyxis: bool) -> None:
    auto = cluster(container_runtime="auto")
    assert resolve_runtime(auto, IMAGE).container_runtime == ("pyxis" if pyxis else "none")
    assert resolve_runtime(auto, None).container_runtime == "none"
    assert resolve_runtime(ClusterConfig(container_runtime="auto"), IMAGE).container_runtime == "none"
    assert resolve_runtime(cluster(container_runtime="apptainer"), IMAGE).container_runtime == "apptainer"


@pytest.mark.parametrize(
    ("keys", "image", "expected"),
    [
        ({}, None, f"this Python, {sys.executable}"),
        ({"python": "/p"}, None, "cluster.python=/p"),
        ({"container_runtime": "pyxis"}, IMAGE, f"{IMAGE} through pyxis, with the image's python (not checked here)"),
        (
            {"python": "/p", "mounts": ["/a:/a"]},
            IMAGE,
            f"cluster.python=/p; key={IMAGE} and cluster.mounts not used with cluster.container_runtime=none",
        ),
        ({"kind": "local"}, IMAGE, f"this Python, {sys.executable}; key={IMAGE} not used on this machine"),
    ],
)
def test_what_is_not_used_is_told(keys: dict[str, Any], image: str | None, expected: str) -> None:
    assert describe(cluster(**keys), image, "key") == expected


def test_a_machine_without_apptainer_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = cluster(container_runtime="apptainer")
    assert "apptainer is not on this machine's PATH" in describe(asked, IMAGE, "key")
    (tmp_path / "apptainer").touch(mode=0o755)
    assert describe(asked, IMAGE, "key") == f"{IMAGE} through apptainer, with the image's python (not checked here)"


def script(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_packages_are_looked_for_where_the_ranks_run(tmp_path: Path) -> None:
    names = ["json", "nobody.has_this"]
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody/has_this.py").touch()
    assert missing_packages(cluster(), names) == ["nobody.has_this"]
    assert missing_packages(cluster(python=sys.executable), names) == ["nobody.has_this"]
    extended = cluster(python=sys.executable, env={"PYTHONPATH": str(tmp_path)})
    assert missing_packages(extended, names) == [] and may_be_added(extended)
    assert missing_packages(cluster(python=str(tmp_path / "on compute nodes only")), names) == []
    assert missing_packages(cluster(container_runtime="pyxis"), names) == []
    broken = script(tmp_path, "#!/bin/sh\nexit 3\n")
    assert "a Python that starts" in missing_packages(cluster(python=broken), names)[0]
