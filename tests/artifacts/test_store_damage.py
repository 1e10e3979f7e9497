"""The artifact store with odd places, damaged or strange files, and many writers; and what references mean."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from commands import ROOT
from omegaconf import OmegaConf

from nano3.artifacts import resolver, store
from nano3.artifacts.names import slugify
from nano3.tools import artifacts as tool
from nano3.tools._arguments import find_data
from nano3.utils.errors import UserError
from nano3.utils.records import DamagedRecordError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.mark.parametrize("name", [b"caf\xe9", "é😀".encode(), b"a b", b"$(id)", b"a\nb", b"x:v3", b"~", b"-"], ids=repr)
def test_a_folder_of_any_name_is_an_artifact(tmp_path: Path, name: bytes) -> None:
    place = tmp_path / os.fsdecode(name)
    place.mkdir()
    one = store.register("Data", place, "plan", alias="mine")
    assert store.register("Data", place, "plan", alias="mine") == one == store.resolve("Data:mine")
    assert Path(one.path) == place and store.find_by_folder(str(place)) == one


def test_long_names_of_any_encoding_become_different_aliases() -> None:
    assert len({slugify("n" * 200 + os.fsdecode(end)) for end in (b"\xe9", b"\xe8", b"")}) == 3


@pytest.mark.parametrize(
    "name",
    ["v07.json", "v0.json", "v\N{ARABIC-INDIC DIGIT THREE}.json", "v1.json.bak", "v-1.json", "vv.json", "v.json"],
)
def test_files_that_no_registration_writes_are_no_versions(folder: Path, home: Path, name: str) -> None:
    store.register("Data", folder, "plan")
    (home / "Data" / name).write_text("{}")
    assert store.versions("Data") == [1] and store.resolve("Data").version == 1
    assert tool.list_artifacts() == 0
    assert store.register("Data", folder, "other").version == 2


def test_strange_things_in_the_store_hide_nothing(folder: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store.register("Data", folder, "plan")
    (home / "README").write_text("mine")
    (home / "empty").mkdir()
    (home / "Data" / "notes").mkdir()
    (home / "gone").symlink_to("nowhere")
    assert store.names() == ["Data"] and tool.list_artifacts() == 0
    assert "Data  v1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "found"),
    [
        pytest.param("1", 1, id="right"),
        pytest.param(" 1\n", 1, id="written by hand"),
        pytest.param("", 1, id="empty"),
        pytest.param("seven", 1, id="no number"),
        pytest.param("7", 1, id="a version that is not there"),
        pytest.param("-1", 1, id="negative"),
        pytest.param("\0" * 8, 1, id="zeros after a power cut"),
        pytest.param("9" * 5000, 1, id="more digits than a number may have"),
    ],
)
def test_a_damaged_place_is_found_all_the_same(folder: Path, home: Path, content: str, found: int) -> None:
    one = store.register("Data", folder, "plan")
    (place,) = (home / "Data" / "places").iterdir()
    place.write_text(content)
    assert store.register("Data", folder, "plan") == one and one.version == found


@pytest.mark.parametrize("content", ["", "[]", "null", "7", '{"name": "Data"}', "\0\0", '{"version": 1'], ids=repr)
def test_a_damaged_version_is_named_with_what_to_do(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    store.register("Data", folder, "plan")
    store.register("Model", folder, "run", inputs=["Data:v1"])
    file = home / "Data" / "v1.json"
    file.write_text(content)
    for look in (lambda: store.find_artifact("Data"), lambda: tool.print_lineage(store.find_artifact("Model"), 0)):
        with pytest.raises(DamagedRecordError) as caught:
            look()
        assert caught.value.problems[0].startswith(f"{file}: damaged (") and "Remove it" in caught.value.problems[0]
    capsys.readouterr()
    assert tool.list_artifacts() == UserError.exit_code
    out, err = capsys.readouterr()
    assert "Model  v1" in out and str(file) in err


def test_lineage_goes_back_to_the_beginning(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also over what is elsewhere by now, and over one that two were made from."""
    store.register("Data", folder, "plan")
    for name, inputs in (("One", ["Data:v1"]), ("Two", ["One:v1", "Data:v1", "team/project/Data:v3", "Gone:v9"])):
        store.register(name, folder / name, "run", inputs=inputs)
    tool.print_lineage(store.find_artifact("Two"), 0)
    lines = [line.split("  (")[0].rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"Two:v1  {folder}/Two", f"  One:v1  {folder}/One", f"    Data:v1  {folder}", f"  Data:v1  {folder}",
        "  team/project/Data:v3", "  Gone:v9",
    ]  # fmt: skip


def test_all_that_is_known_of_one_is_json(folder: Path) -> None:
    metadata = {"loss": 1.5, "odd": "a[/b] :key: é\t\n"}
    one = store.register("Data", folder, "plan", metadata=metadata)
    done = subprocess.run(
        [sys.executable, "-m", "nano3", "artifacts", "show", "Data:v1"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"reference": "Data:v1", **vars(one)} and one.metadata == metadata


REGISTER = """
import sys
from pathlib import Path
from nano3.artifacts import store
sys.stdin.readline()
for _ in range(5):
    one = store.register("Data", Path(sys.argv[1]), "same", alias=sys.argv[2])
    store.find_artifact("Data:" + sys.argv[2])
print(one.version)
"""


def test_many_that_register_the_same_at_once(folder: Path) -> None:
    """Each gets a version of this content, and may name it; the next one makes no new version."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", REGISTER, str(folder)]
    writers = [
        subprocess.Popen([*words, alias], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for alias in ("a", "b", "a", "b")
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    got = [int(writer.communicate()[0]) for writer in writers]
    have = store.versions("Data")
    assert [writer.returncode for writer in writers] == [0] * 4 and set(got) <= set(have)
    assert have == list(range(1, len(have) + 1))
    assert Counter(store.load("Data", version).fingerprint for version in have) == {"same": len(have)}
    assert {"a", "b", "latest"} == set(store.aliases("Data")) and store.damaged_aliases("Data") == []
    assert store.register("Data", folder, "same").version in have and store.versions("Data") == have
    assert not list(store.home().rglob("*.tmp"))


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        pytest.param("./gone", "no such folder ({here}/gone)", id="a folder"),
        pytest.param("~no-such-user/data", "no such folder ({here}/~no-such-user/data)", id="of nobody"),
        pytest.param("~no-such-user", "no such folder ({here}/~no-such-user)", id="nobody's home"),
        pytest.param("a/b:v3", "no such folder ({here}/a/b:v3)", id="of W&B, which is off"),
        pytest.param(
            "Daat",
            "run.data=Daat: no such folder ({here}/Daat), and no artifact 'Daat' in {here}/home. Did you mean 'Data'?",
            id="a mistyped name or folder",
        ),
        pytest.param("Data:v01", "has no version or alias 'v01'. Did you mean 'v1'?", id="a mistyped version"),
        pytest.param("Data:../../data", "no such folder", id="a way out of the store"),
        pytest.param("..", None, id="a folder above"),
        pytest.param("Data:", None, id="the newest"),
    ],
)
def test_what_a_reference_means(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, reference: str, told: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    store.register("Data", folder, "plan")
    if told is None:
        assert resolver.resolve_reference(reference).folder.is_dir()
        return
    with pytest.raises(UserError) as caught:
        resolver.resolve_reference(reference)
    (problem,) = caught.value.problems
    assert told.format(here=tmp_path) in problem
    if "folder" in told:
        assert problem.startswith(f"run.data={reference}: ")


def test_a_folder_wins_over_an_artifact_of_its_name(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a shell: what is here is meant."""
    store.register("Data", folder, "plan")
    assert find_data("Data") == folder
    (tmp_path / "Data").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_data("Data") == Path("Data")
    assert resolver.resolve_reference("Data").folder == tmp_path / "Data"
    assert find_data("Data:latest") == folder
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file\. Give the folder that"):
        find_data(str(tmp_path / "file"))
    assert find_data("~no-such-user/x") == Path("~no-such-user/x")


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        pytest.param("${art:dta,path}", "no key run.dta", id="key"),
        pytest.param("${art:data,folder}", "attributes of an artifact are path, version and", id="attribute"),
        pytest.param("${art:plain,version}", "run.plain={folder} is a folder, not an artifact", id="folder"),
        pytest.param("${art:data,path}", None, id="right"),
        pytest.param("${art:plain,path}", None, id="path of a folder"),
    ],
)
def test_mistakes_in_an_interpolation_are_told(folder: Path, expression: str, told: str | None) -> None:
    store.register("Data", folder, "plan")
    resolver.register_resolver()
    cfg = OmegaConf.create({"run": {"data": "Data", "plain": str(folder)}, "x": expression})
    if told is None:
        assert cfg.x == str(folder)
        return
    with pytest.raises(Exception, match="art:") as caught:
        _ = cfg.x
    assert told.format(folder=folder) in str(caught.value)
