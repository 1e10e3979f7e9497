"""Puts the user's own configuration folder, $NANO3_CONF, in front of nano3's."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from nano3.cli.config_groups import user_conf_dir


class Nano3UserConf(SearchPathPlugin):
    """Hydra finds plugins by scanning this namespace; without $NANO3_CONF this one does nothing."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if folder := user_conf_dir():
            search_path.prepend("nano3-user", f"file://{folder}")
