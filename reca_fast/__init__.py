"""reca_fast: fast and cheap RECA post-training of unified multimodal models (arXiv 2509.07295)."""

__version__ = "0.4.0"
