"""Run a tool: `python -m nano3 NAME ...`, installed as `nano3`.

nano3 inspect output/nano3/stage0_pretrain --doc 3
nano3 verify  output/nano3/stage0_pretrain
nano3 artifacts list
"""

import argparse
import importlib
import inspect
import io
import pkgutil
import shutil
import sys
import textwrap
from types import ModuleType

from nano3 import __version__, tools
from nano3.cli.app import exit_on_broken_pipe, exit_with_error, initialize
from nano3.utils.disk_errors import translate_disk_errors
from nano3.utils.errors import INTERRUPTED_EXIT_CODE, Nano3Error


def tool_modules() -> dict[str, ModuleType]:
    """Return the modules of nano3/tools by command name.

    Each has HELP, add_arguments(parser) and run(args) -> exit code. NAME is set if the command is not named like the
    module.
    """
    found = sorted(m.name for m in pkgutil.iter_modules(tools.__path__) if not m.name.startswith("_"))
    modules = {name: importlib.import_module(f"nano3.tools.{name}") for name in found}
    return {getattr(module, "NAME", name): module for name, module in modules.items()}


def description(module: ModuleType) -> str:
    """Return a module's docstring for the terminal: text filled to its width, command lines unchanged."""
    width = min(shutil.get_terminal_size().columns - 2, 100)
    paragraphs = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    return "\n\n".join(p if p.startswith("nano3 ") else textwrap.fill(p, width) for p in paragraphs)


def main() -> None:
    """Parse the arguments, run the tool and exit with its code."""
    initialize()
    parser = argparse.ArgumentParser(prog="nano3", description="Inspect and manage data, runs and artifacts.")
    parser.add_argument("--version", action="version", version=f"nano3 {__version__}")
    commands = parser.add_subparsers(dest="tool", required=True, metavar="TOOL")
    modules = tool_modules()
    for name, module in modules.items():
        command = commands.add_parser(name, help=module.HELP, description=description(module))
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(command)
    args = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # folder names may be in any encoding
    try:
        with translate_disk_errors("standard output"):
            code = modules[args.tool].run(args)
            sys.stdout.flush()
        sys.exit(code)
    except Nano3Error as error:
        exit_with_error(error)
    except BrokenPipeError:
        exit_on_broken_pipe()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED_EXIT_CODE)


if __name__ == "__main__":
    main()
