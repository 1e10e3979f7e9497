"""Typed configuration: plain dataclasses that any package may import.

The comment above each field documents the key: `--help` and the configuration reference show it.
"""

from nano3.config.blend import BlendConfig, SourceConfig
from nano3.config.cluster import ClusterConfig
from nano3.config.data_prep import DataPrepConfig, PrepOptions
from nano3.config.model import ModelConfig
from nano3.config.pretrain import PretrainConfig

__all__ = [
    "BlendConfig",
    "ClusterConfig",
    "DataPrepConfig",
    "ModelConfig",
    "PrepOptions",
    "PretrainConfig",
    "SourceConfig",
]
