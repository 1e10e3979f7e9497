"""Puts this folder on the path of every test, for `commands`; and a slow machine fails no property test."""

import contextlib

# Importing it configures logging anew, which closes the handlers that there are by then. absl's (Megatron imports it)
# closes its stream too: inside a test with `capfd` that was pytest's own, and every later test in the process failed.
with contextlib.suppress(ImportError):
    import submitit  # noqa: F401

with contextlib.suppress(ImportError):  # a GPU machine may lack it, and its tests do not need it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any speed")
