"""nano3: from raw text to a pretrained Nemotron-3-Nano-class model."""

__version__ = "0.1.0"
