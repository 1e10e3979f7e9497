"""Run several commands in forks of one process: `python forked_commands.py COMMAND...`; one line of JSON for each.

The process has imported everything that the commands need, so a command takes a fraction of a second.
"""

import importlib
import json
import os
import runpy
import shlex
import sys
import tempfile
import traceback

for module in ("nano3.__main__", "nano3.prep.run", "nano3.pretrain", "nano3.data.build.run", "nano3.training.export"):
    importlib.import_module(module)


def run(command: str) -> tuple[int, str]:
    """Run `MODULE WORDS...` in a fork; return its exit code and its output."""
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            module, *words = shlex.split(command)
            sys.argv[1:] = words
            code = 0
            try:
                if module == "nano3":
                    module = "nano3.__main__"
                runpy.run_module(module, run_name="__main__", alter_sys=True)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException:
                traceback.print_exc()
                code = 99
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="replace")


for each in sys.argv[1:]:
    print(json.dumps([each, *run(each)]), flush=True)
