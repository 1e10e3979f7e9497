"""Import submitit early, and let property tests run on slow machines."""

import contextlib

# Importing submitit reconfigures logging, which closes existing handlers. absl's handler (imported by Megatron)
# closes its stream too: inside a test with `capfd` that was pytest's own, and every later test in the process failed.
with contextlib.suppress(ImportError):
    import submitit  # noqa: F401

with contextlib.suppress(ImportError):  # a GPU machine may lack it, and its tests do not need it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any speed")
