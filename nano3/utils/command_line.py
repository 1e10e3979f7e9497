"""The one model of a command line: Hydra's flags, overrides (KEY=VALUE) and the `--then` words of nano3.data_prep.

Only words are split here; Hydra's own parser reads the values. nano3.data_prep imports this module before it starts to
load the tokenizer, so it imports nothing slow: neither Hydra nor OmegaConf nor dataclasses.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

# All long flags of Hydra and nano3.
FLAGS = (
    "--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run", "--multirun", "--info",
    "--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun",
)  # fmt: skip
# Flags of Hydra that take the next word as their value.
FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--package", "-p")
FLAGS_WITH_CHOICE = ("--cfg", "-c", "--info", "-i")  # likewise, but their value is never an override
CONFIG_DIR_FLAGS = ("--config-dir", "-cd")
THEN = "--then"


class Flag(NamedTuple):
    """A word that begins with a dash, such as `--config-dir=mine` or `-m`."""

    word: str
    name: str
    value: str | None = None  # after "=", or the next word if the flag takes one


class OverrideWord(NamedTuple):
    """One override as typed: `key=value`, `+key=value`, `++key=value`, `~key` or `~key=value`."""

    word: str
    prefix: str
    key: str
    value: str | None  # None without an equals sign

    @classmethod
    def parse(cls, word: str) -> "OverrideWord":
        """Split one word."""
        name, equals, value = word.partition("=")
        key = name.lstrip("+~")
        return cls(word, name[: len(name) - len(key)], key, value if equals else None)

    @property
    def without_plus(self) -> str:
        """Return the word without a leading `+` or `++`."""
        return self.word.lstrip("+")


def _takes(flag: str, following: str) -> bool:
    """Return whether a flag takes the following word as its value."""
    if flag in FLAGS_WITH_CHOICE:
        return "=" not in following and not following.startswith(("-", "~"))
    return flag in FLAGS_WITH_VALUE and not following.startswith("-")


class CommandLine(NamedTuple):
    """The words after the program's name, split into flags, overrides and anything else."""

    words: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    overrides: tuple[OverrideWord, ...] = ()
    other: tuple[str, ...] = ()  # neither a flag nor an override, for example a key without a value

    @classmethod
    def parse(cls, words: Iterable[str]) -> "CommandLine":
        """Split a command line, without the program's name, into its parts."""
        words = tuple(words)
        flags: list[Flag] = []
        overrides: list[OverrideWord] = []
        other: list[str] = []
        rest = iter(range(len(words)))
        for index in rest:
            word = words[index]
            if word.startswith("-"):
                name, equals, value = word.partition("=")
                following = words[index + 1] if index + 1 < len(words) else None
                if following is not None and _takes(word, following):
                    flags.append(Flag(word, name, following))
                    next(rest)
                else:
                    flags.append(Flag(word, name, value if equals else None))
            elif "=" in word or word.startswith("~"):
                overrides.append(OverrideWord.parse(word))
            else:
                other.append(word)
        return cls(words, tuple(flags), tuple(overrides), tuple(other))

    @property
    def values(self) -> dict[str, str]:
        """Return the text of each key's last assignment; prefixes and deleted keys are left out."""
        return {o.key: o.value for o in self.overrides if o.value is not None and "~" not in o.prefix}

    @property
    def keys(self) -> set[str]:
        """Return every key that an override with an equals sign names, including deleted ones."""
        return {o.key for o in self.overrides if o.value is not None}

    @property
    def config_dirs(self) -> list[str]:
        """Return the absolute folders of `--config-dir DIR` and `--config-dir=DIR`."""
        given = [f.value for f in self.flags if f.name in CONFIG_DIR_FLAGS and f.value is not None]
        return [str(Path(folder).absolute()) for folder in given]

    @property
    def sweepable_words(self) -> list[str]:
        """Return the overrides of the application as typed, which Hydra's sweeper combines; without those of Hydra."""
        words = [o.word for o in self.overrides if o.value is not None and "~" not in o.prefix]
        return [word for word in words if not word.lstrip("+").startswith(("hydra.", "hydra/"))]

    def has_flag(self, *words: str) -> bool:
        """Return whether one of these flags was typed, without a value."""
        return any(flag.word in words for flag in self.flags)

    def flags_first(self) -> list[str]:
        """Return the words with all overrides after the flags.

        Hydra accepts overrides in one group only, but users type `a=1 -m b=1,2`.
        """
        left = list(self.words)
        for override in self.overrides:
            left.remove(override.word)
        return left + [override.word for override in self.overrides]


def fold_then(words: list[str]) -> list[str]:
    """Turn `... --then WORD WORD` into Hydra's `then=['WORD','WORD']`, so that users need no nested quotes.

    A `--then` without words is returned unchanged; `flag_problems` reports it.
    """
    if THEN not in words:
        return words
    index = words.index(THEN)
    if index == len(words) - 1:
        return words
    quoted = (word.replace("\\", "\\\\").replace("'", "\\'") for word in words[index + 1 :])
    return [*words[:index], "then=[" + ",".join(f"'{word}'" for word in quoted) + "]"]
