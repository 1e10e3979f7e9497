"""Run a tool: `python -m nano3 NAME ...`, installed as `nano3`.

nano3 inspect output/nano3/stage0_pretrain --doc 3
nano3 verify  output/nano3/stage0_pretrain
nano3 artifacts list
"""

import argparse
import importlib
import inspect
import pkgutil
import shutil
import sys
import textwrap
from types import ModuleType
from typing import Any

from nano3 import __version__, tools
from nano3.cli.process import check_working_folder, exit_on_broken_pipe, exit_with_code, exit_with_error, initialize
from nano3.utils.console import need_output, write
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Nano3Error, UserError, did_you_mean

# Commands that are not named like their module, by its name.
NAMES = {"evaluate": "eval", "inspect_data": "inspect"}


def tool_modules(command: str = "") -> dict[str, ModuleType]:
    """Return the modules of nano3/tools by command name; only that of `command`, if it is one.

    Each has HELP, add_arguments(parser) and run(args) -> exit code. ONLY_SHOWS is set if the command does nothing but
    print.

    Args:
        command: A word of the command line. The modules of all tools take longer to import than most commands to run.
    """
    found = sorted(m.name for m in pkgutil.iter_modules(tools.__path__) if not m.name.startswith("_"))
    named = {NAMES.get(name, name): name for name in found}
    wanted = [command] if command in named else named
    return {name: importlib.import_module(f"nano3.tools.{named[name]}") for name in wanted}


def description(module: ModuleType) -> str:
    """Return a module's docstring for the terminal: text filled to its width, command lines unchanged."""
    width = min(shutil.get_terminal_size().columns - 2, 100)
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    return "\n\n".join(p if p.startswith("nano3 ") else textwrap.fill(p, width) for p in paragraphs)


class Parser(argparse.ArgumentParser):
    """A parser whose messages are printed like all others: words of the command line may be names of files.

    Attributes:
        nested: Whether commands of its own follow it.
    """

    nested = False

    def add_subparsers(self, **kwargs: Any) -> Any:
        """Add commands that follow this one."""
        self.nested = True
        return super().add_subparsers(**kwargs)

    def _print_message(self, message: str, file: Any = None) -> None:
        write(message, stderr=file is not sys.stdout)


def parse_arguments() -> tuple[ModuleType, argparse.Namespace]:
    """Return the module of the tool on the command line, and its arguments."""
    parser = Parser(prog="nano3", description="Inspect and manage data, runs and artifacts.")
    parser.add_argument("--version", action="version", version=f"nano3 {__version__}")
    commands = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    modules = tool_modules("".join(sys.argv[1:2]))
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.HELP, description=description(module))
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(command)
    word = "".join(sys.argv[1:2])
    if word and not word.startswith("-") and word not in modules:
        raise UserError(f"no tool {word!r}.{did_you_mean(word, list(modules))}")
    command = commands.choices.get(word)
    if command is not None and not command.nested:  # options may stand between words: WORD --top 1 WORD
        return modules[word], command.parse_intermixed_args(sys.argv[2:])
    args = parser.parse_args()
    return modules[args.tool], args


def main() -> None:
    """Parse the arguments, run the tool and exit with its code."""
    initialize()
    try:
        with translate_disk_errors("standard output"):
            need_output()  # for --help
            module, args = parse_arguments()
            check_working_folder()
            need_output(getattr(module, "ONLY_SHOWS", False))
            exit_with_code(module.run(args))
    except Nano3Error as error:
        exit_with_error(error)
    except BrokenPipeError:
        exit_on_broken_pipe()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
