"""nano3: from raw text to a pretrained Nemotron-3-Nano-class model."""

import signal
import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # `python -m nano3...` imports its modules now: Ctrl-C ends it as it ends other programs, without a traceback, until
    # the entry point takes it over (nano3.cli.app.enable_keyboard_interrupt).
    signal.signal(signal.SIGINT, signal.SIG_DFL)
