"""The trainable map from K compressed dimensions back to D: the architecture under study, and its two open choices.

As found, the adapter starts at random and its output has a root mean square of one in every token, whatever the scale
of the embeddings. Both are options here: it may start exactly at the linear PCA inverse, and its output norm may start
at the statistics of what it must produce.
"""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stage1 import store
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.fields import require
from stage1.model.language_model import FrozenLM, bit_sums

CHUNK = 8_192  # table rows in float32 at a time


class Adapter(nn.Module):
    """gain * LayerNorm_D(sigmoid(scale(z)) * (mlp(LayerNorm_K(z)) + skip(z)) + shift(z)), and with the initialisation
    `pca_inverse` the linear PCA inverse of z besides, with the gain starting at zero.

    Gating the residual by a scalar that starts at zero is ReZero (Bachlechner et al., 2021); scale and shift from the
    input are FiLM (Perez et al., 2018). 19,952,641 parameters at K=512, D=4096, all in float32.
    """

    def __init__(self, K: int, D: int, initialisation: str = "random"):
        super().__init__()
        self.initialisation = initialisation
        self.compressed_norm = nn.LayerNorm(K)
        self.mlp = nn.Sequential(
            nn.Linear(K, 4 * K), nn.GELU(), nn.Linear(4 * K, 4 * K), nn.GELU(), nn.Linear(4 * K, D)
        )
        self.skip, self.scale, self.shift = nn.Linear(K, D), nn.Linear(K, D), nn.Linear(K, D)
        self.output_norm = nn.LayerNorm(D)
        self.gain = nn.Parameter(torch.ones(()))
        # The linear inverse of the compression it is made for, set by `make` or `load`, never trained.
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("components", torch.zeros(K, D))

    def forward(self, z: Float[Tensor, "*B K"]) -> Float[Tensor, "*B D"]:
        hidden = self.mlp(self.compressed_norm(z)) + self.skip(z)
        output = self.gain * self.output_norm(torch.sigmoid(self.scale(z)) * hidden + self.shift(z))
        return (
            z @ self.components + self.mean + output
            if self.initialisation == "pca_inverse"
            else output
        )


def make(
    compression: Compression,
    table: Float[Tensor, "V D"],
    counts: Int[Tensor, " V"],
    config: StudyConfig,
) -> Adapter:
    """A new adapter on the table's device with the config's initialisation, output scaling and seed.

    `calibrated` starts the output norm at the token-weighted mean and standard deviation, per dimension, of what it
    must produce: the embeddings, or what the PCA inverse leaves of them.
    """
    torch.manual_seed(config.seed)
    adapter = Adapter(*compression.components.shape, config.initialisation).to(table.device)
    adapter.mean.copy_(compression.mean)
    adapter.components.copy_(compression.components)
    with torch.no_grad():
        if config.initialisation == "pca_inverse":
            adapter.gain.zero_()
        if config.output_scaling == "calibrated":
            calibrate(adapter, compression, table, counts)
    return adapter


def calibrate(
    adapter: Adapter,
    compression: Compression,
    table: Float[Tensor, "V D"],
    counts: Int[Tensor, " V"],
) -> None:
    def target(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        known = (
            compression.expand(compression.compress(rows))
            if adapter.initialisation == "pca_inverse"
            else 0
        )
        return rows.float() - known

    share = (counts.double() / counts.sum()).to(table.device, torch.float32)
    chunks = list(zip(share.split(CHUNK), table.split(CHUNK), strict=True))
    mean = sum(part @ target(rows) for part, rows in chunks)
    adapter.output_norm.bias.copy_(mean)
    adapter.output_norm.weight.copy_(
        sum(part @ (target(rows) - mean).square() for part, rows in chunks).sqrt()
    )


@torch.no_grad()
def decode(adapter: nn.Module, codebook: Float[Tensor, "V K"]) -> Float[Tensor, "V D"]:
    """The adapter's embedding of every compressed vocabulary entry, in chunks."""
    first = adapter(codebook[:1])
    table = first.new_empty(
        len(codebook), first.shape[1]
    )  # filled in place: 2 GB at V=128,256, D=4,096
    for place, rows in zip(table.split(CHUNK), codebook.split(CHUNK), strict=True):
        place.copy_(adapter(rows))
    return table


def parameter_count(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


def fingerprint(table: Float[Tensor, "V D"]) -> str:
    """A digest of an embedding table's shape and float32 bits: adapters belong to one table."""
    return hashlib.sha256(f"{tuple(table.shape)} {bit_sums(table.float())}".encode()).hexdigest()[
        :16
    ]


def save(adapter: Adapter, folder: Path, config: StudyConfig, lm: FrozenLM) -> None:
    """`adapter.safetensors`, and beside it `adapter.json`: config, shape, and the embedding table it belongs to."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in adapter.state_dict().items()
    }
    K, D = adapter.components.shape
    store.write_atomically(folder / "adapter.safetensors", lambda path: save_file(tensors, path))
    about = {
        "K": K,
        "D": D,
        "parameters": parameter_count(adapter),
        "table": fingerprint(lm.embedding_table),
    }
    store.write_record(folder / "adapter.json", config, about)


def load(folder: Path, config: StudyConfig, lm: FrozenLM) -> Adapter:
    """The saved adapter, on the language model's device.

    Raises RecordError for a missing or truncated file, and ValueError for an adapter of another width K, another
    language model or another architecture than the config's.
    """
    record = store.read_json(folder / "adapter.json")
    about, saved = record["results"], record["config"]
    made_for = f"what the adapter in {folder} was trained for"
    width, same_table = config.compressed_width, about["table"] == fingerprint(lm.embedding_table)
    require(width == about["K"], "compressed_width", width, f"{about['K']}, {made_for}")
    allowed = f"{saved['language_model']!r} with D={about['D']}, {made_for}"
    require(same_table, "language_model", config.language_model, allowed)
    path = folder / "adapter.safetensors"
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise store.RecordError(
            f"{path}: missing or truncated ({error}); train the adapter again"
        ) from error
    adapter = Adapter(about["K"], about["D"], saved["initialisation"])
    try:
        adapter.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: no adapter of this architecture: {error}") from error
    return adapter.to(lm.device)
