"""The frozen language model, made fast: loading, passes, losses, generation. Knows no data."""

from stage1.model.generation import generate, generate_ids
from stage1.model.language_model import FrozenError, FrozenLM
from stage1.model.loading import load

__all__ = ["FrozenError", "FrozenLM", "generate", "generate_ids", "load"]
