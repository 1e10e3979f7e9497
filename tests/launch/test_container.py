"""launch.container: mounts and image names."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import launch
from launch import container
from nano3.config.cluster import ClusterConfig

FOLDER_LISTS = st.lists(
    st.lists(st.sampled_from(["a", "b", "ab", "c d"]), max_size=4).map(lambda p: Path("/", *p)), max_size=8
)


@given(FOLDER_LISTS)
def test_every_folder_is_in_exactly_one_mount(folders: list[Path]) -> None:
    """A folder inside another one is not mounted again, in any order; `ab` is not inside `a`."""
    job = launch.Job("n", Path("/r"), "a:b", (), ClusterConfig(kind="slurm", mounts=["/x:/y:ro"]))
    *own, given_one = container.bind_mounts(job, folders)
    assert given_one == "/x:/y:ro" and all(bind.partition(":")[0] == bind.partition(":")[2] for bind in own)
    roots = [Path(bind.partition(":")[0]) for bind in own]
    assert set(roots) <= set(folders)
    assert all(sum(folder.is_relative_to(root) for root in roots) == 1 for folder in folders)


def test_mounted_folders_are_absolute_and_include_link_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to("disk")
    (tmp_path / "gone").symlink_to("unmounted")
    monkeypatch.chdir(tmp_path)
    job = launch.Job("n", Path("runs/x"), "a:b", (), ClusterConfig(), folders=("gone", "disk"))
    names = ["", "runs/x", "disk/x", "gone", "unmounted", "disk"]
    assert container.mounted_folders(job) == [tmp_path / name for name in names]


@pytest.mark.parametrize(
    ("image", "pyxis", "apptainer"),
    [
        ("nvcr.io/nvidia/nemo:25.11", "nvcr.io#nvidia/nemo:25.11", "docker://nvcr.io/nvidia/nemo:25.11"),
        ("nvcr.io#nvidia/nemo:25.11", "nvcr.io#nvidia/nemo:25.11", "docker://nvcr.io/nvidia/nemo:25.11"),
        ("docker://nvcr.io/nvidia/nemo", "docker://nvcr.io#nvidia/nemo", "docker://nvcr.io/nvidia/nemo"),
        ("docker://nvcr.io#nvidia/nemo", "docker://nvcr.io#nvidia/nemo", "docker://nvcr.io/nvidia/nemo"),
        ("localhost:5000/nemo", "localhost:5000#nemo", "docker://localhost:5000/nemo"),
        ("pytorch/pytorch:2.9", "pytorch/pytorch:2.9", "docker://pytorch/pytorch:2.9"),
        ("ubuntu:24.04", "ubuntu:24.04", "docker://ubuntu:24.04"),
        ("/images/nemo.sqsh", "/images/nemo.sqsh", "/images/nemo.sqsh"),
        ("nemo.sif", "{here}/nemo.sif", "nemo.sif"),
        ("unpacked", "{here}/unpacked", "unpacked"),
        ("oras://ghcr.io/a/b:1", "oras://ghcr.io/a/b:1", "oras://ghcr.io/a/b:1"),
    ],
)
def test_image_argument_of_each_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: str, pyxis: str, apptainer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "unpacked").mkdir()
    assert container.image_argument(image, "pyxis") == pyxis.format(here=tmp_path)
    assert container.image_argument(image, "apptainer") == apptainer
