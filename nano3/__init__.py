"""Pretrain a Nemotron-3-Nano-class model from raw text."""

import signal
import sys

__version__ = "0.2.0.dev0"

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m nano3...` now imports its modules. Until nano3.cli.process.enable_keyboard_interrupt, Ctrl-C ends the
    # process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
