"""Can a small adapter undo an 8x compression of a frozen language model's input embeddings?"""

import warnings

# Progress bars are plain tqdm, which executed notebooks and HTML keep; no widget is missed.
warnings.filterwarnings("ignore", message="IProgress not found")
