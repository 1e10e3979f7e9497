"""Run several commands in forks of one process: `python forked_commands.py COMMAND...`; one line of JSON for each.

The process has imported everything that the commands need, so a command takes a fraction of a second. Without a
command, it reads them from stdin: a line of JSON, {"words": [MODULE, WORD, ...], "cwd": FOLDER, "env": {...}}, for
each; the answer is [exit code, stdout, stderr].
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


def run(words: list[str], cwd: str = "", env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run `MODULE WORDS...` in a fork; return its exit code, and its output (with `env`, stderr apart)."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        pid = os.fork()
        if pid == 0:
            os.dup2(output.fileno(), 1)
            os.dup2((output if env is None else errors).fileno(), 2)
            if env is not None:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.environ.clear()
                os.environ.update(env)
                os.chdir(cwd)
            module, *sys.argv[1:] = words
            code = 0
            try:
                if module == "nano3":
                    module = "nano3.__main__"
                sys.modules.pop(module, None)  # or runpy warns of it on stderr
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
        errors.seek(0)
        return code, output.read().decode(errors="replace"), errors.read().decode(errors="replace")


for each in sys.argv[1:]:
    print(json.dumps([each, *run(shlex.split(each))[:2]]), flush=True)
for line in [] if sys.argv[1:] else iter(sys.stdin.readline, ""):
    print(json.dumps(run(**json.loads(line))), flush=True)
