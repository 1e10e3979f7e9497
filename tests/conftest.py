"""Puts this folder on the path of every test, for `commands`; and a slow machine fails no property test."""

import contextlib

with contextlib.suppress(ImportError):  # a GPU machine may lack it, and its tests do not need it
    from hypothesis import HealthCheck, settings

    settings.register_profile("any speed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any speed")
