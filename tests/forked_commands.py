"""Run commands in forks of one process: `python forked_commands.py COMMAND...`; one line of JSON for each.

The process has imported everything that the commands need, so a command takes a fraction of a second. Without a
command, it reads them from stdin: a line of JSON, {"words": [MODULE, WORD, ...], "cwd": FOLDER, "env": {...}}, for
each; the answer is [exit code, stdout, stderr].
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import shlex
import sys
import tempfile
import threading
import traceback
from typing import IO, NoReturn

NEEDED = ("nano3.__main__", "nano3.prep.run", "nano3.pretrain", "nano3.data.build.run", "nano3.training.export")


def become(
    words: list[str], stdout: str | int, stderr: str | int, cwd: str = "", env: dict[str, str] | None = None
) -> NoReturn:
    """Become `python -m MODULE WORDS...` or `python SCRIPT WORDS...`, with its output in these files, and end."""
    for number, file in enumerate((stdout, stderr), 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT) if isinstance(file, str) else file, number)
    if env is not None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(cwd)
        sys.path[:0] = [cwd, *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    module, *sys.argv[1:] = words
    code = 0
    try:
        if module.endswith(".py"):
            sys.argv[0] = module
            runpy.run_path(module, run_name="__main__")
        else:
            name = "nano3.__main__" if module == "nano3" else module
            sys.modules.pop(name, None)  # or runpy warns of it on stderr
            runpy.run_module(name, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 99
    threading._shutdown()  # type: ignore[attr-defined]  # as at the end of every process
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def run(words: list[str], cwd: str = "", env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run `MODULE WORDS...` in a fork; return its exit code, and its output (with `env`, stderr apart)."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            become(words, output.fileno(), (output if env is None else errors).fileno(), cwd, env)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return code, text_of(output), text_of(errors)


def text_of(file: IO[bytes]) -> str:
    """Return the content of a file, with line ends as Python's text files have them."""
    file.seek(0)
    return file.read().decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n")


if __name__ == "__main__":
    for needed in NEEDED:
        importlib.import_module(needed)
    importlib.import_module("nano3.__main__").tool_modules()
    gc.freeze()  # or every collection in a fork copies what it shares
    for each in sys.argv[1:]:
        print(json.dumps([each, *run(shlex.split(each))[:2]]), flush=True)
    for line in [] if sys.argv[1:] else iter(sys.stdin.readline, ""):
        print(json.dumps(run(**json.loads(line))), flush=True)
