"""Can a small adapter undo an 8x compression of a frozen language model's input embeddings?"""

import importlib
import warnings

# Progress bars are plain tqdm, which executed notebooks and HTML keep; no widget is missed.
warnings.filterwarnings("ignore", message="IProgress not found")


def __getattr__(name: str):
    """Import `stage1.load` when it is first used: it needs torch, which takes seconds."""
    if name == "load":
        return importlib.import_module("stage1.ask").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
