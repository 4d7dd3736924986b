"""Stage 1 adapter study: can a small adapter undo an 8x compression of a frozen LM's input embeddings?"""

import warnings

# Progress is plain tqdm, which executed notebooks and HTML keep; libraries that try for a widget need not say so.
warnings.filterwarnings("ignore", message="IProgress not found")
