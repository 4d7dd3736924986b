"""Examples (the built-in almanac, SQuAD files, the hub) and their tokens; knows no model."""

from stage1.corpus.data import SPLITS, load_split, rows
from stage1.corpus.prompts import Encoded, encode, token_counts

__all__ = ["SPLITS", "Encoded", "encode", "load_split", "rows", "token_counts"]
