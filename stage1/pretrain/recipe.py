"""The recipe of an English reader: its config, and shapes for a ladder of widths."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from stage1.fields import require
from stage1.pretrain.transformer import Shape

HEAD = 64
"""Default width of an attention head; flash attention runs at its full rate from there."""

PRESETS: dict[str, dict] = {
    "d256": {"width": 256, "depth": 10},
    "d384": {"width": 384, "depth": 10},
    "d512": {"width": 512, "depth": 10},
    "d768": {"width": 768, "depth": 12},
}
"""Shapes by name. The English reader of the package has `d256` and V=8,192; see docs/readers.md."""


@dataclass(frozen=True)
class ReaderConfig:
    """How a reader is trained on prepared rows; every field is an option of the command."""

    width: int = 512
    """Embedding width D, a multiple of the number of heads."""
    depth: int = 10
    """Transformer layers."""
    hidden: int = 0
    """Width of the gated MLP; 0 stands for 8/3 of the width, rounded up to a multiple of 64."""
    heads: int = 0
    """Attention heads; 0 stands for one per 64 of the width."""
    tied: bool = False
    """Whether the head is the embedding table. A study then still compresses what the model reads,
    but the table's geometry is also the head's, and compressing it alone would save nothing."""
    steps: int = 6_800
    """Optimizer steps."""
    batch: int = 256
    """Rows per step."""
    microbatches: int = 1
    """Parts of a batch that pass through the model one after another, to save memory."""
    muon_rate: float = 4.0e-3
    """Peak learning rate of the layers' matrices, in the scale of AdamW's."""
    adam_rate: float = 3.0e-3
    """Peak learning rate of embeddings, head and norms."""
    weight_decay: float = 0.1
    """Decoupled weight decay of the layers' matrices; everything else has none."""
    dropout: float = 0.0
    """Share of each layer's two outputs that a training step leaves out, against learning answers
    by heart; the curve is measured so."""
    warmup: float = 0.02
    """Share of the steps with a linearly growing rate."""
    decay: float = 0.4
    """Share of the steps, the last ones, with a rate that falls linearly to zero."""
    questions_from: float = 0.4
    """Share of the steps before the first question."""
    questions_share: float = 0.6
    """Share of question rows in the last step; it grows linearly."""
    cloze_from: float = 1.0
    """Share of cloze questions among the first question rows; it changes linearly."""
    cloze_to: float = 0.3
    """Share of cloze questions among the last question rows."""
    answer_weight: float = 8.0
    """Loss weight of answer and end tokens of questions; all others have weight 1."""
    attention: Literal["auto", "dense", "varlen", "flex"] = "auto"
    """Kernel of attention within documents; `auto` is `varlen` on a GPU and `dense` on a CPU."""
    tuned: bool = False
    """Lets torch.compile search for faster kernels, for minutes; without effect on a CPU."""
    seed: int = 0
    device: str = "cuda"
    pause_after: float = 0.0
    """Seconds after which training writes a checkpoint and stops; the same command goes on from
    there. 0 trains to the end."""

    def __post_init__(self):
        for name in ("width", "depth", "steps", "batch", "microbatches"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "one or more")
        for name in ("hidden", "heads", "weight_decay", "pause_after"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "zero or more")
        for name in ("muon_rate", "adam_rate", "answer_weight"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "a positive number")
        for name in ("warmup", "decay", "questions_share", "cloze_from", "cloze_to"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name in ("questions_from", "dropout"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "0 to below 1")
        runs = self.device != "cpu" or self.attention in ("auto", "dense")
        require(runs, "attention", self.attention, "'auto' or 'dense' where device='cpu'")
        parts = self.microbatches
        require(self.batch % parts == 0, "microbatches", parts, f"a divisor of batch={self.batch}")
        heads = self.head_count
        even = self.width % (2 * heads) == 0
        require(even, "width", self.width, f"an even multiple of heads={heads}")

    @property
    def head_count(self) -> int:
        return self.heads or max(1, self.width // HEAD)

    def shape(self, vocabulary: int) -> Shape:
        hidden = self.hidden or 64 * math.ceil(self.width * 8 / 3 / 64)
        return Shape(self.width, self.depth, hidden, self.head_count, vocabulary, self.tied)

    def identity(self) -> dict:
        """Return the fields that the weights depend on."""
        free = ("pause_after", "device", "tuned")
        return {name: value for name, value in asdict(self).items() if name not in free}


def parameters(shape: Shape) -> int:
    """Return the number of parameters, embeddings and head included."""
    D, L, H, _, V, tied = shape
    return V * D * (1 if tied else 2) + L * (4 * D * D + 3 * D * H) + (2 * L + 1) * D
