"""Register launch.hydra_launcher with Hydra, which finds launchers in the namespace package hydra_plugins only."""

from hydra.core.config_store import ConfigStore

from launch.hydra_launcher import JobLauncher, LauncherConfig


class Nano3Launcher(JobLauncher):
    """The launcher of hydra/launcher=nano3."""


ConfigStore.instance().store(group="hydra/launcher", name="nano3", node=LauncherConfig, provider="nano3")
