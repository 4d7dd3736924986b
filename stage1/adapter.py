"""The adapter under study, the trainable map from K compressed dimensions back to D; its making,
saving and loading, which all architectures share.

As found, it starts at random and its output has unit RMS in every token, whatever the scale of the
embeddings. Here both are options: it may start exactly at the linear PCA inverse, and its output
norm may start at the statistics of its targets.
"""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from stage1 import store
from stage1.baselines import Adapter, Affine, Projected, SoftCodebook
from stage1.compress import Compression
from stage1.config import StudyConfig
from stage1.fields import require
from stage1.model.language_model import FrozenLM, bit_sums

CHUNK = 8_192  # table rows in float32 at a time


class Film(Adapter):
    """gain * LayerNorm_D(sigmoid(scale(z)) * (mlp(LayerNorm_K(z)) + skip(z)) + shift(z)).

    With the initialisation `pca_inverse`, the gain starts at zero and the linear PCA inverse of z
    is added. Gating a residual by a scalar that starts at zero is ReZero (Bachlechner et al.,
    2021); scale and shift from the input are FiLM (Perez et al., 2018). 19,952,641 parameters at
    K=512, D=4096, all in float32.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, K: int, D: int, initialisation: str = "random"):
        super().__init__(K, D)
        self.initialisation = initialisation
        self.compressed_norm = nn.LayerNorm(K)
        self.mlp = nn.Sequential(
            nn.Linear(K, 4 * K), nn.GELU(), nn.Linear(4 * K, 4 * K), nn.GELU(), nn.Linear(4 * K, D)
        )
        self.skip, self.scale, self.shift = nn.Linear(K, D), nn.Linear(K, D), nn.Linear(K, D)
        self.output_norm = nn.LayerNorm(D)
        self.gain = nn.Parameter(torch.ones(()))
        # The linear inverse of the compression, set by `start` or `load` and never trained.
        self.register_buffer("mean", torch.zeros(D))
        self.register_buffer("components", torch.zeros(K, D))

    def forward(self, z: Float[Tensor, "*B K"]) -> Float[Tensor, "*B D"]:
        hidden = self.mlp(self.compressed_norm(z)) + self.skip(z)
        output = self.gain * self.output_norm(torch.sigmoid(self.scale(z)) * hidden + self.shift(z))
        if self.initialisation == "pca_inverse":
            return z @ self.components + self.mean + output
        return output

    @torch.no_grad()
    def start(
        self,
        compression: Compression,
        table: Float[Tensor, "V D"],
        counts: Int[Tensor, " V"],
        config: StudyConfig,
    ) -> None:
        self.mean.copy_(compression.mean)
        self.components.copy_(compression.components)
        if self.initialisation == "pca_inverse":
            self.gain.zero_()
        if config.output_scaling == "calibrated":
            calibrate(self, compression, table, counts)

    def template(self) -> "Film":
        """Return a weightless adapter of the same shape that adds the inverse in its buffers."""
        with torch.device("meta"):
            return Film(self.K, self.D, "pca_inverse")

    def constants(self) -> dict[str, Tensor]:
        """Return the linear inverse, zero where this adapter adds none."""
        used = float(self.initialisation == "pca_inverse")
        return {"mean": used * self.mean, "components": used * self.components}


def blank(config: StudyConfig, K: int, table: Float[Tensor, "V D"]) -> Adapter:
    """Return an adapter of the config's architecture and projection, with random weights."""
    D = table.shape[1]
    adapter: Adapter
    if config.architecture == "affine":
        adapter = Affine(K, D)
    elif config.architecture == "soft_codebook":
        adapter = SoftCodebook(table, K)
    else:
        adapter = Film(K, D, config.initialisation)
    return Projected(adapter) if config.projection == "trained" else adapter


def make(
    compression: Compression,
    table: Float[Tensor, "V D"],
    counts: Int[Tensor, " V"],
    config: StudyConfig,
) -> Adapter:
    """Return a new adapter of the config's architecture, start and seed, on the table's device.

    `calibrated` starts the output norm at the token-weighted mean and
    standard deviation, per dimension, of its targets: the embeddings, or their residuals from the
    PCA inverse.
    """
    torch.manual_seed(config.seed)
    adapter = blank(config, compression.width, table).to(table.device)
    adapter.start(compression, table, counts, config)
    return adapter


def calibrate(
    adapter: Film,
    compression: Compression,
    table: Float[Tensor, "V D"],
    counts: Int[Tensor, " V"],
) -> None:
    """Set the output norm to the token-weighted mean and standard deviation of the targets.

    With K = D the PCA inverse leaves no residual, whose scale of zero would keep the adapter from
    learning; the norm starts at the deviation of the embeddings instead.
    """

    def target(rows: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        if adapter.initialisation == "pca_inverse":
            if compression.width == adapter.D:
                return rows.float() - compression.mean
            return rows.float() - compression.expand(compression.compress(rows))
        return rows.float()

    share = (counts.double() / counts.sum()).to(table.device, torch.float32)
    chunks = list(zip(share.split(CHUNK), table.split(CHUNK), strict=True))
    mean = sum(part @ target(rows) for part, rows in chunks)
    squares = [part @ (target(rows) - mean).square() for part, rows in chunks]
    adapter.output_norm.bias.copy_(mean)
    adapter.output_norm.weight.copy_(sum(squares).sqrt())


@torch.no_grad()
def decode(adapter: nn.Module, codebook: Float[Tensor, "V K"]) -> Float[Tensor, "V D"]:
    """Return the adapter's embedding of every vocabulary entry, in chunks.

    `codebook` holds what it sees of them: D dimensions, not K, behind a trained projection.
    """
    first = adapter(codebook[:1])
    # Filled in place: 2 GB at V=128,256, D=4,096.
    table = first.new_empty(len(codebook), first.shape[1])
    for part, rows in zip(table.split(CHUNK), codebook.split(CHUNK), strict=True):
        part.copy_(adapter(rows))
    return table


def parameter_count(adapter: nn.Module) -> int:
    return sum(parameter.numel() for parameter in adapter.parameters())


def fingerprint(table: Float[Tensor, "V D"]) -> str:
    """Return a digest of an embedding table's shape and float32 bits: it identifies the table."""
    text = f"{tuple(table.shape)} {bit_sums(table.float())}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def save(adapter: Adapter, folder: Path, config: StudyConfig, lm: FrozenLM) -> None:
    """Write `adapter.safetensors`, and its config, shape and embedding table to `adapter.json`."""
    state = adapter.state_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    store.write_atomically(folder / "adapter.safetensors", lambda path: save_file(tensors, path))
    table = fingerprint(lm.embedding_table)
    about = {"K": adapter.K, "D": adapter.D, "parameters": parameter_count(adapter), "table": table}
    store.write_record(folder / "adapter.json", config, about)


def load(folder: Path, config: StudyConfig, lm: FrozenLM) -> Adapter:
    """Return the saved adapter, on the language model's device.

    Raises RecordError for a missing or truncated file, and ValueError for an adapter of another
    width K, another language model, architecture, projection or faults than the config's.
    """
    record = store.read_json(folder / "adapter.json")
    about, saved = record["results"], StudyConfig().replace(**record["config"])
    made_for = f"what the adapter in {folder} was trained for"
    table = lm.embedding_table
    width, same_table = config.width(table.shape[1]), about["table"] == fingerprint(table)
    require(width == about["K"], "compressed_width", width, f"{about['K']}, {made_for}")
    for name in ("architecture", "projection", "faults"):
        own, given = getattr(saved, name), getattr(config, name)
        require(given == own, name, given, f"{own!r}, {made_for}")
    allowed = f"{saved.language_model!r} with D={about['D']}, {made_for}"
    require(same_table, "language_model", config.language_model, allowed)
    path = folder / "adapter.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise store.RecordError(
            f"{path}: missing or truncated ({error}); train the adapter again"
        ) from error
    adapter = blank(saved, about["K"], lm.embedding_table)
    try:
        adapter.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}: no adapter of this architecture: {error}") from error
    return adapter.to(lm.device)
