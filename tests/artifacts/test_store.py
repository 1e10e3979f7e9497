"""The artifact store: versions, aliases, lineage, many writers, and what it says when something is not there."""

import json
import multiprocessing
import re
import shutil
from pathlib import Path

import pytest
from faults import needs_strace, with_fault
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from nano3.artifacts import store
from nano3.artifacts.names import MAX_LENGTH, alias_for, alias_problem, name_problem, slugify
from nano3.artifacts.resolver import register_resolver, resolve_reference
from nano3.tools import artifacts as artifacts_tool
from nano3.utils.errors import Failure, Nano3Error, UserError

DATA = "DataBlendsArtifact-pretrain"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NANO3_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_the_same_content_at_the_same_place_is_one_version(folder: Path) -> None:
    first = store.register(DATA, folder, "plan1", alias="math")
    assert store.register(DATA, folder, "plan1", alias="math") == first
    second = store.register(DATA, folder, "plan2", alias="math")
    assert (first.version, second.version) == (1, 2)
    assert store.aliases(DATA) == {"math": 2, "latest": 2}


def test_going_back_to_an_older_folder_is_no_new_version(folder: Path) -> None:
    first = store.register(DATA, folder, "plan1", alias="math")
    store.register(DATA, folder.parent, "plan2", alias="math")
    for _ in range(2):
        assert store.register(DATA, folder, "plan1", alias="math") == first
    assert store.aliases(DATA) == {"math": 1, "latest": 2}


def test_content_that_comes_back_to_its_folder_is_the_latest_again(folder: Path) -> None:
    assert [store.register(DATA, folder, content).version for content in ("a", "b", "b", "a", "a")] == [1, 2, 2, 3, 3]
    assert store.resolve(f"{DATA}:v1").version == 1  # the content is there again
    with pytest.raises(UserError, match=r"v2 was at .*, which now holds other content: .*:v3"):
        store.resolve(f"{DATA}:v2")


def test_a_store_without_place_files_is_read(folder: Path, home: Path) -> None:
    first = store.register(DATA, folder, "plan1")
    shutil.rmtree(home / DATA / "places")
    assert store.register(DATA, folder, "plan1") == first


def test_a_user_without_a_name_can_register(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", nobody)
    assert store.register(DATA, folder, "plan1").creator.startswith("uid ")


def test_a_store_that_cannot_be_written_is_told_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.registration_problems(DATA, write=True) == []
    assert not store.home().exists()
    monkeypatch.setenv("NANO3_HOME", "/proc/nope")
    assert "NANO3_HOME" in store.registration_problems(DATA, write=True)[0]
    with pytest.raises(Failure, match="cannot be registered"):
        store.register(DATA, Path("/tmp"), "plan1")


@pytest.mark.parametrize(
    ("text", "alias", "why"),
    [
        ("math", "math", None),
        ("my blend", "my-blend", None),
        (".b/c+d-", "b-c-d", None),
        ("latest", None, "newest version"),
        ("v7", None, "version 7"),
        ("日本", None, "none of the letters and digits"),
    ],
)
def test_aliases_made_of_other_names(text: str, alias: str | None, why: str | None) -> None:
    found, told = alias_for(text)
    assert found == alias
    assert (told is None) if why is None else (told is not None and why in told)
    assert alias is None or alias_problem(alias) is None


def test_long_aliases_stay_apart() -> None:
    one, two = (alias_for("x" * 200 + end)[0] for end in "ab")
    assert one != two
    assert one is not None
    assert alias_problem(one) is None


@pytest.mark.parametrize("alias", ["latest", "v7", "a b", "", "x" * 129], ids=lambda a: a[:9])
def test_alias_problems(folder: Path, alias: str) -> None:
    assert alias_problem(alias)
    if alias:
        with pytest.raises(UserError):
            store.register(DATA, folder, "plan", alias=alias)


def test_a_completed_registration_writes_nothing(folder: Path, home: Path) -> None:
    store.register(DATA, folder, "plan1", alias="math")
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    store.register(DATA, folder, "plan1", alias="math")
    assert {p: p.stat().st_mtime_ns for p in home.rglob("*")} == before


@pytest.mark.parametrize(
    ("reference", "version"), [("", 2), (":latest", 2), (":v1", 1), (":v2", 2), (":math", 1)], ids=str
)
def test_references(folder: Path, reference: str, version: int) -> None:
    store.register(DATA, folder, "plan1", alias="math")
    store.register(DATA, folder.parent, "plan2", alias="sample")
    assert store.resolve(DATA + reference).version == version


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("DataBlendArtifact-pretrain", "Did you mean 'DataBlendsArtifact-pretrain'?"),
        (f"{DATA}:mth", "Did you mean 'math'?"),
        (f"{DATA}:nemotron", "no version or alias 'nemotron'"),
        (f"{DATA}:v9", "no version or alias 'v9'"),
    ],
    ids=["name", "alias", "blend", "version"],
)
def test_unknown_references(folder: Path, reference: str, told: str) -> None:
    store.register(DATA, folder, "plan1", alias="math")
    with pytest.raises(UserError) as error:
        store.resolve(reference)
    assert told in str(error.value)


def test_an_empty_store_says_how_to_fill_it() -> None:
    with pytest.raises(UserError, match=r"python -m nano3\.data_prep"):
        store.resolve(DATA)


def test_a_folder_that_is_gone(folder: Path) -> None:
    store.register(DATA, folder, "plan1")
    folder.rmdir()
    with pytest.raises(UserError, match="which no longer exists"):
        store.resolve(DATA)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "latest", "a b", "v3"], ids=repr)
def test_names_are_plain_file_names(folder: Path, name: str) -> None:
    with pytest.raises(UserError):
        store.register(name or "/", folder, "plan")


def append(folder: str, number: int) -> int:
    return store.register(DATA, Path(folder), f"plan{number}").version


def test_many_writers_get_a_version_each(folder: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        versions = pool.starmap(append, [(str(folder), n) for n in range(24)])
    assert sorted(versions) == list(range(1, 25))
    assert not list(store.home().rglob("*.tmp"))


def test_a_writer_killed_in_the_middle_leaves_nothing_that_is_read(folder: Path, home: Path) -> None:
    store.register(DATA, folder, "plan1")
    (home / DATA / ".v2.json.0123456789ab.tmp").write_text('{"name": "Da')
    assert store.versions(DATA) == [1]
    assert store.register(DATA, folder, "plan2").version == 2


def test_resolver_gives_path_version_and_reference(folder: Path) -> None:
    register_resolver()
    store.register(DATA, folder, "plan1", alias="math")
    cfg = OmegaConf.create(
        {"run": {"data": f"{DATA}:math"}, "p": "${art:data,path}/blend.json", "r": "${art:data,reference}"}
    )
    assert cfg.p == f"{folder}/blend.json"
    assert cfg.r == f"{DATA}:v1"


def test_a_folder_is_a_reference_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    assert resolve_reference("data").folder == resolve_reference(str(folder)).folder == folder
    with pytest.raises(UserError, match="no such folder"):
        resolve_reference("./elsewhere")


def test_lineage_is_recorded(folder: Path, home: Path) -> None:
    data = store.register(DATA, folder, "plan1")
    model = store.register(
        "ModelArtifact-pretrain", folder, "run/20", inputs=[data.reference], metadata={"iteration": 20}
    )
    on_disk = json.loads((home / "ModelArtifact-pretrain" / "v1.json").read_text())
    assert on_disk["inputs"] == model.inputs == [f"{DATA}:v1"]
    assert on_disk["metadata"] == {"iteration": 20}


REGISTER = """
import sys
from pathlib import Path
from nano3.artifacts import store
from nano3.utils.errors import Failure
try:
    print(store.register("model", Path(sys.argv[1]), sys.argv[2], alias="best").reference)
except Failure as failure:
    print(failure)
"""


@needs_strace
@pytest.mark.parametrize("call", ["write", "fsync", "link", "rename"])
@pytest.mark.parametrize("what", ["error=ENOSPC", "error=EIO", "signal=KILL"])
def test_no_fault_leaves_half_an_entry(folder: Path, home: Path, tmp_path: Path, call: str, what: str) -> None:
    """At each system call of a registration in turn: what can be read is whole, and registering again mends it."""
    store.register("model", folder, "first", alias="best")
    most = {"write": 3, "fsync": 7, "link": 1, "rename": 3}[call]
    for when in range(1, most + 1):
        hit, told, _ = with_fault(tmp_path / "trace", call, what, when, REGISTER, folder, f"{call}{when}")
        if not hit:
            break
        if what.startswith("error") and "model:v" not in told:
            assert "cannot be registered in the artifact store" in told
            assert str(home) in told
        have = store.versions("model")
        assert have == list(range(1, len(have) + 1))
        assert all(store.load("model", version).path == str(folder) for version in have)
        assert store.find_artifact("model:best").version in have
        assert store.resolve("model").version == have[-1]
        again = store.register("model", folder, f"{call}{when}", alias="best")
        assert store.find_artifact("model:best") == store.find_artifact("model") == again
        assert again.fingerprint == f"{call}{when}"
    assert when > 1 or call == "link", "the fault must have come to pass"


ANY = (
    st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9._ -]{0,160}", fullmatch=True) | st.sampled_from(["latest", "v7"])
)


@given(ANY)
def test_an_alias_that_is_made_may_be_used(text: str) -> None:
    alias, why = alias_for(text)
    assert (alias is None) != (why is None)
    if alias is not None:
        assert alias_problem(alias) is None
        assert alias_for(alias) == (alias, None), "made once, it stays"
    if alias_problem(text) is None and alias_problem(text.strip("-._")) is None:  # "v7." is an alias, v7 a version
        assert alias == text.strip("-._")


@given(ANY)
def test_what_may_be_a_name_is_a_plain_file_name(text: str) -> None:
    plain = slugify(text)
    assert len(plain) <= MAX_LENGTH
    assert plain == Path(plain).name
    if name_problem(text) is None:
        assert text == Path(text).name
        assert len(text.encode()) <= MAX_LENGTH
        assert text[0] not in ".-_"


DAMAGE = {
    "empty alias": ("math.alias", "", "names no existing version"),
    "alias without its version": ("math.alias", "7", "existing: 1, 2"),
    "cut version": ("v1.json", '{"name": "Da', "damaged"),
    "other keys": ("v1.json", '{"nome": 1}', "damaged"),
}


@pytest.mark.parametrize(("file", "content", "told"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_named_and_hides_nothing_else(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str], file: str, content: str, told: str
) -> None:
    store.register(DATA, folder, "plan1", alias="math")
    store.register(DATA, folder.parent, "plan2", alias="code")
    (home / DATA / file).write_text(content)
    assert artifacts_tool.list_artifacts() == UserError.exit_code
    out, err = capsys.readouterr()
    assert f"{DATA}  v2" in out and "code, latest" in out
    assert str(home / DATA / file) in err and told in err
    assert store.resolve(f"{DATA}:code").version == 2
    with pytest.raises(Nano3Error, match=re.escape(str(home / DATA / file))):
        store.find_artifact(f"{DATA}:math")


def test_registering_again_mends_what_was_damaged(folder: Path, home: Path) -> None:
    store.register(DATA, folder, "plan1", alias="math")
    (home / DATA / "math.alias").write_text("")
    next((home / DATA / "places").iterdir()).write_text("")
    assert store.register(DATA, folder, "plan1", alias="math").version == 1
    assert store.aliases(DATA) == {"math": 1, "latest": 1}
    (home / DATA / "v1.json").write_text("{")
    with pytest.raises(Nano3Error, match="Remove it"):
        store.register(DATA, folder, "plan1", alias="math")
    (home / DATA / "v1.json").unlink()
    assert store.register(DATA, folder, "plan1", alias="math").version == 1


def test_a_version_whose_folder_is_gone_is_listed_as_such(
    folder: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As most checkpoints of a long run are (checkpoint.keep_last)."""
    store.register(DATA, folder, "plan1")
    store.register(DATA, folder.parent / "gone", "plan2")
    assert artifacts_tool.list_artifacts() == 0
    first, second = (line for line in capsys.readouterr().out.splitlines() if line.startswith(DATA))
    assert first.rstrip().endswith(str(folder))
    assert second.rstrip().endswith(f"{folder.parent / 'gone'}  (no longer exists)")
