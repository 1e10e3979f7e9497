"""Hydra takes launchers from the namespace package hydra_plugins only; the code is launch.hydra_launcher."""

from hydra.core.config_store import ConfigStore

from launch.hydra_launcher import JobLauncher, LauncherConfig


class Nano3Launcher(JobLauncher):
    """hydra/launcher=nano3."""


ConfigStore.instance().store(group="hydra/launcher", name="nano3", node=LauncherConfig, provider="nano3")
