"""Stage 1 adapter study: can a small adapter undo an 8x compression of a frozen LM's input embeddings?"""
