"""Add the user's configuration folder, $NANO3_CONF, to Hydra's search path, before conf/."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from nano3.cli.config_groups import user_conf_dir


class Nano3UserConf(SearchPathPlugin):
    """Search path plugin. Hydra finds it by scanning the namespace hydra_plugins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Prepend $NANO3_CONF, if it is set."""
        if folder := user_conf_dir():
            search_path.prepend("nano3-user", f"file://{folder}")
