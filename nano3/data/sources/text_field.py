"""What `text_field` and `text_separator` select of a row.

`text_field` is one of:

* The name of a key or column. This is the fast path, which does not use this module.
* A path of names, `doc.text`, into nested objects or structs. A key or column with the whole name has precedence.
* A template, `{title}: {body}`, of literal text and such names in braces. Literal braces are doubled.

`text_separator` joins the strings of a list.
"""

import string
from dataclasses import dataclass
from functools import cache
from typing import Any

from nano3.utils.errors import list_some

BadRow = tuple[int, str, str]  # key; "not_json", "not_utf8", "no_text", or "null"; what is wrong
NO_FIELD = "no field"  # start of the message for a row without the text field
JSON_TYPES: dict[type, str] = {
    **{str: "a string", bool: "true or false", int: "a number", float: "a number"},
    **{list: "a list", dict: "an object", type(None): "null"},
}
LIST_ADVICE = "Set the dataset's text_separator to join the strings of lists"


class BadRowError(Exception):
    """A row without usable text; carries the last two fields of a `BadRow`."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


@dataclass(frozen=True)
class TextField:
    """A parsed `text_field`.

    Attributes:
        name: The `text_field`.
        separator: The `text_separator`.
        parts: (literal text, name of the field that follows it or None) of the template.
    """

    name: str
    separator: str | None
    parts: tuple[tuple[str, str | None], ...]

    @property
    def plain(self) -> bool:
        """Whether it is the name of a key or column with one string."""
        return self.separator is None and self.parts == (("", self.name),) and "." not in self.name

    @property
    def fields(self) -> list[str]:
        """The names in the template, each once."""
        return list(dict.fromkeys(field for _, field in self.parts if field is not None))

    def text_of(self, row: dict[str, Any]) -> str:
        """Return the text of a row; raise BadRowError if it has none."""
        if self.name in row:
            return self._convert(self.name, row[self.name])
        return "".join(
            literal + ("" if field is None else self._convert(field, find_value(row, field)))
            for literal, field in self.parts
        )

    def _convert(self, field: str, value: Any) -> str:
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError as error:
                raise BadRowError("not_utf8", f"{field!r} is not UTF-8 at byte {error.start:,}") from error
        if value is None:
            raise BadRowError("null", f"{field!r} is null")
        if isinstance(value, list) and self.separator is not None:
            if any(isinstance(item, list) for item in value):
                raise BadRowError("no_text", f"{field!r} is a list of lists, not of strings")
            return self.separator.join(self._convert(field, item) for item in value)
        if not isinstance(value, str):
            advice = f". {LIST_ADVICE}" if isinstance(value, list) else ""
            raise BadRowError("no_text", f"{field!r} is {describe_type(value)}, not a string{advice}")
        return value


def describe_type(value: Any) -> str:
    """Return the type of a value of a row in words of JSON, or its Python type if JSON has no such values."""
    return JSON_TYPES.get(type(value), f"a {type(value).__name__}")


def find_value(row: dict[str, Any], field: str) -> Any:
    """Return the value of a key, or of a path of keys; raise BadRowError if there is none."""
    if field in row:
        return row[field]
    value: Any = row
    for name in field.split("."):
        if value is None:
            raise BadRowError("null", f"{field!r} is in an object that is null")
        if not isinstance(value, dict) or name not in value:
            raise BadRowError("no_text", f"{NO_FIELD} {field!r}; its fields: {list_some(row)}")
        value = value[name]
    return value


@cache
def parse_text_field(name: str, separator: str | None = None) -> TextField:
    """Parse a `text_field`; raise ValueError if it has braces and is not a template."""
    if "{" not in name and "}" not in name:
        return TextField(name, separator, (("", name),))
    parts = []
    for literal, field, spec, conversion in string.Formatter().parse(name):
        if field is not None and (not field or spec or conversion):
            raise ValueError("braces must contain the name of a field, without ! and :")
        parts.append((literal, field))
    found = TextField(name, separator, tuple(parts))
    if not found.fields:
        raise ValueError("the template names no field")
    return found
