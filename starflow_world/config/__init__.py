"""Configuration as frozen dataclasses: worlds, video models, training."""
