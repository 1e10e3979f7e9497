"""The text of the data benchmark: real files out of registry packages, each document once, at least a gigabyte.

Sources are PyPI source distributions, the standard library of the running Python, and Debian packages (kernel, Go and
Rust sources; manuals in HTML and POD; manual pages in four languages). A document is one file. Files are left out when
they are not UTF-8, hold a NUL byte, are larger than 1 MB, are blank, or are the kernel's generated register tables
(`asic_reg`). Equal files are kept once (SHA-256 of the text). Documents are ordered by that same hash, which mixes the
sources evenly and gives the same order on every machine; a smaller size is a prefix of the larger one.
"""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

SIZES = {"tiny": 4_000_000, "small": 60_000_000, "medium": 240_000_000, "large": 1_050_000_000}  # bytes of UTF-8 text
SDISTS = ["django==6.1.3", "sympy==1.14.0"]
DEBIAN = ["linux-source-6.1", "golang-1.19-src", "rust-src", "python3.11-doc", "postgresql-doc-15", "debian-handbook"]
DEBIAN += ["perl-doc", "git-doc", "manpages-ja", "manpages-zh", "manpages-fr", "manpages-de"]
MAX_BYTES = 1_000_000
PARTS = 4  # peers that work in parallel over files get the text in this many
ROW_GROUP = 1000


@dataclass(frozen=True)
class Corpus:
    """One size of the text, in the three layouts that the peers read. All hold the same documents in the same order."""

    jsonl: Path
    parquet: Path
    parts: Path
    documents: int
    text_bytes: int
    sha256: str


def load(folder: Path, size: str, pip: list[str]) -> Corpus:
    """The corpus of this size; built on first use (a few minutes, about 6 GB under `folder`). `pip` is the command.

    Raises: SystemExit when a package cannot be fetched.
    """
    here = folder / "corpus" / size
    if not (here / "corpus.json").exists():
        build(folder, pip)
    facts = json.loads((here / "corpus.json").read_text())
    paths = Corpus(here / "text.jsonl", here / "text.parquet", here / "parts", **facts)
    if not paths.jsonl.exists():
        raise SystemExit(f"{paths.jsonl} is gone; remove {folder / 'corpus'} and start again")
    return paths


def sources(folder: Path) -> dict[str, object]:
    """What the corpus was made of: package versions, documents and bytes of each."""
    return json.loads((folder / "corpus" / "sources.json").read_text())


def build(folder: Path, pip: list[str]) -> None:
    """Fetch, unpack, deduplicate, and write every size."""
    trees = folder / "trees"
    roots = unpack(trees, pip)
    index: dict[bytes, tuple[str, Path]] = {}
    for name, root in roots.items():
        for path in sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink()):
            text = document(path)
            if text is not None:
                index.setdefault(hashlib.sha256(text).digest(), (name, path))
    order = sorted(index.items())
    for size, limit in SIZES.items():
        write_size(folder / "corpus" / size, order, limit)
    totals: dict[str, dict[str, object]] = {}
    for name, path in index.values():
        row = totals.setdefault(name, {"documents": 0, "bytes": 0})
        row["documents"] = int(str(row["documents"])) + 1
        row["bytes"] = int(str(row["bytes"])) + path.stat().st_size
    (folder / "corpus" / "sources.json").write_text(json.dumps(totals, indent=2) + "\n")
    shutil.rmtree(trees)


def document(path: Path) -> bytes | None:
    """The text of a file as UTF-8 bytes, or None when it is no document (see the module's rules)."""
    if {"asic_reg", "site-packages"} & set(path.parts) or path.stat().st_size > MAX_BYTES:
        return None
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    if b"\0" in data or not data.strip() or len(data) > MAX_BYTES:
        return None
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return data


def write_size(folder: Path, order: list[tuple[bytes, tuple[str, Path]]], limit: int) -> None:
    """Write the first documents of `order`, up to `limit` bytes of text, as jsonl, parquet and several jsonl parts."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "parts").mkdir(parents=True)
    rows = list(rows_up_to(order, limit))
    digest, total = hashlib.sha256(), 0
    per_part = -(-len(rows) // PARTS)
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])
    with (folder / "text.jsonl").open("wb") as whole, pq.ParquetWriter(folder / "text.parquet", schema) as table:
        for start in range(0, len(rows), ROW_GROUP):
            group = []
            for number, (key, (name, path)) in enumerate(rows[start : start + ROW_GROUP], start):
                text = document(path)
                assert text is not None
                row = {"id": key.hex()[:16], "source": name, "text": text.decode()}
                line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
                whole.write(line)
                with (folder / "parts" / f"part_{number // per_part}.jsonl").open("ab") as part:
                    part.write(line)
                digest.update(line)
                total += len(text)
                group.append(row)
            table.write_table(pa.Table.from_pylist(group, schema))
    facts = {"documents": len(rows), "text_bytes": total, "sha256": digest.hexdigest()}
    (folder / "corpus.json").write_text(json.dumps(facts) + "\n")


def rows_up_to(order: list[tuple[bytes, tuple[str, Path]]], limit: int) -> Iterator[tuple[bytes, tuple[str, Path]]]:
    """The prefix of `order` with at most `limit` bytes of text (compressed files count as stored)."""
    total = 0
    for row in order:
        total += row[1][1].stat().st_size
        if total > limit:
            return
        yield row


def unpack(trees: Path, pip: list[str]) -> dict[str, Path]:
    """Fetch every package with its ordinary client; the root folder of each, by "name version"."""
    roots = {f"python {sys.version.split()[0]} standard library": Path(sysconfig.get_path("stdlib"))}
    fetched = trees / "fetched"
    shutil.rmtree(trees, ignore_errors=True)
    fetched.mkdir(parents=True)
    if shutil.which("apt-get") is None:
        raise SystemExit("the benchmark's text comes from Debian packages: apt-get was not found")
    call(
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *DEBIAN], fetched, "run `apt-get update` first"
    )
    options = ["--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(fetched)]
    call([*pip, "download", *options, *SDISTS], fetched, "is the package registry reachable?")
    for archive in sorted(fetched.glob("*.tar.gz")):
        root = trees / archive.name.removesuffix(".tar.gz")
        extract(archive, root)
        roots[root.name] = root
    for deb in sorted(fetched.glob("*.deb")):
        name, version = deb.name.split("_")[:2]
        root = trees / name
        call(["dpkg-deb", "-x", str(deb), str(root)], fetched, "is dpkg installed?")
        for archive in root.glob("usr/src/*.tar.xz"):
            extract(archive, root)
            archive.unlink()
        roots[f"{name} {version.replace('%3a', ':')}"] = root
    return roots


def extract(archive: Path, root: Path) -> None:
    """Unpack a tar archive under `root`."""
    with tarfile.open(archive) as tar:
        tar.extractall(root, filter="data")


def call(command: list[str], cwd: Path, hint: str) -> None:
    """Run a command; SystemExit with its last words and a hint when it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} … failed: {(done.stderr or done.stdout).strip()[-500:]}\n{hint}")
