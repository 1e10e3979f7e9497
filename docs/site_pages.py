"""MkDocs hook: add the pages that are not written by hand in docs/, and make links work on the site.

index.md, contributing.md and changelog.md are README.md, CONTRIBUTING.md and CHANGELOG.md of the repository;
configuration.md is generated from the dataclasses in nano3/config. A link to a file outside docs/ has no page on the
site and becomes plain text.
"""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from nano3.cli.config_groups import GROUPS, SCHEMAS, members  # noqa: E402
from nano3.cli.help import field_docs  # noqa: E402

COPIED = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the copied and the generated pages."""
    for target, source in COPIED.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    files.append(File.generated(config, "configuration.md", content=configuration_reference()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of copied pages at the site's pages and unlink what the site does not have."""
    folder = ROOT if page.file.src_uri in COPIED else ROOT / "docs"
    pages = {(ROOT / source): target for target, source in COPIED.items()}

    def on_site(match: re.Match[str]) -> str:
        image, text, link, anchor = match.groups()
        path = Path(os.path.normpath(folder / link))
        if path in pages:
            return f"{image}[{text}]({pages[path]}{anchor or ''})"
        if path.is_relative_to(ROOT / "docs"):
            return f"{image}[{text}]({path.relative_to(ROOT / 'docs')}{anchor or ''})"
        shown = str(path.relative_to(ROOT))
        return f"`{shown}`" if text in (shown, link) else f"{text} (`{shown}`)"

    return LINK.sub(on_site, markdown)


def configuration_reference() -> str:
    """Return the page of all keys: name, type, default and sentence, one table for each section."""
    parts = [
        "# Configuration reference\n",
        "Every key of both applications, generated from the dataclasses in `nano3/config`. The members in `conf/` and",
        "the command line override these defaults. `--cfg job` prints what a command composes.\n",
        "## Groups\n",
        "| group | members |",
        "|---|---|",
        *(f"| `{group}` | {', '.join(f'`{name}`' for name in members(group))} |" for group in GROUPS),
    ]
    for name, schema in SCHEMAS.items():
        parts += [f"\n## python -m nano3.{name}\n", *section(schema, "")]
    return "\n".join(parts) + "\n"


def section(schema: type, prefix: str) -> Iterator[str]:
    """Yield the table of a dataclass's own keys, then the sections of the dataclasses in it."""
    said, nested = field_docs(schema), []
    yield from ("| key | type | default | |", "|---|---|---|---|")
    for f in fields(schema):
        if isinstance(f.type, type) and is_dataclass(f.type):
            nested.append((f.name, f.type))
        else:
            yield f"| `{prefix}{f.name}` | `{type_name(f.type)}` | {default_of(f)} | {cell(said[f.name])} |"
    for name, inner in nested:
        yield from (f"\n### {prefix}{name}\n", f"{said[name]}\n")
        yield from section(inner, f"{prefix}{name}.")


def type_name(annotation: Any) -> str:
    """Return a type as it is written in the source, with | escaped for a table."""
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return name.replace("typing.", "").replace("|", "\\|")


def default_of(f: "Field[Any]") -> str:
    """Return a key's default as YAML, empty if the key has none of its own."""
    value = f.default_factory() if f.default_factory is not MISSING else f.default
    if value is MISSING or value == "???":
        return "required"
    text = {None: "null", True: "true", False: "false"}.get(value, str(value)) if value.__hash__ else str(value)
    return f"`{text}`" if text else "empty"


def cell(text: str) -> str:
    """Return text that is safe in a table's cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")
