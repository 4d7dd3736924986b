"""What every adapter offers, and the architectures that the one under study is compared with.

Each answers a question: is more than an affine map needed (`Affine`), more than a temperature on
the lookup (`SoftCodebook`), another projection than PCA (`Projected`)?
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from stage1.compress import Compression
from stage1.config import StudyConfig

ROWS = 1_024  # codebook rows whose distances to all entries are in memory: 525 MB at V=128,256


class Adapter(nn.Module):
    """A trainable map from what is left of a token to its embedding, in float32.

    Adapters of one architecture are trained as one: `StackedAdapters` stacks their parameters and
    `constants`, and passes each row to the first one's `template`.
    """

    def __init__(self, K: int, D: int):
        super().__init__()
        self.K, self.D = K, D

    def start(
        self,
        compression: Compression,
        table: Float[Tensor, "V D"],
        counts: Int[Tensor, " V"],
        config: StudyConfig,
    ) -> None:
        """Set the weights to where training starts, for a config of this architecture."""
        raise NotImplementedError

    def template(self) -> "Adapter":
        """Return a weightless adapter of the same shape, which reads `constants` as buffers."""
        raise NotImplementedError

    def constants(self) -> dict[str, Tensor]:
        """Return what is not trained, by the names of the template's buffers."""
        return dict(self.named_buffers())


class Affine(Adapter):
    """W z + b: the linear inverse, free to be trained by any objective.

    Starts at the PCA inverse, or at random as `nn.Linear` does (U(-1/sqrt(K), 1/sqrt(K)), whatever
    the scale of the embeddings). It has no output norm, so no output scaling.
    """

    def __init__(self, K: int, D: int):
        super().__init__(K, D)
        self.linear = nn.Linear(K, D)

    def forward(self, z: Float[Tensor, "*B K"]) -> Float[Tensor, "*B D"]:
        return self.linear(z)

    @torch.no_grad()
    def start(
        self,
        compression: Compression,
        table: Float[Tensor, "V D"],
        counts: Int[Tensor, " V"],
        config: StudyConfig,
    ) -> None:
        if config.initialisation == "pca_inverse":
            self.linear.weight.copy_(compression.components.T)
            self.linear.bias.copy_(compression.mean)

    def template(self) -> "Affine":
        with torch.device("meta"):
            return Affine(self.K, self.D)


class SoftCodebook(Adapter):
    """softmax_v(-|z - codebook_v|^2 / temperature) table_v: lookup with one trained temperature.

    It holds the compressed vocabulary and the original table, so it undoes no compression: as the
    temperature falls to zero it becomes the lookup, which is exact. The temperature starts at the
    mean squared distance of an entry to the nearest other one. Its parameter is the logarithm of
    the ratio to that start, to which weight decay pulls it back. One pass holds N x V weights.
    """

    table: Tensor
    codebook: Tensor
    first_temperature: Tensor

    def __init__(self, table: Float[Tensor, "V D"], K: int):
        V, D = table.shape
        super().__init__(K, D)
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.register_buffer("table", table.float(), persistent=False)  # the language model has it
        self.register_buffer("codebook", torch.zeros(V, K))
        self.register_buffer("first_temperature", torch.ones(()))

    def forward(self, z: Float[Tensor, "*B K"]) -> Float[Tensor, "*B D"]:
        # |z|^2 is the same for every entry, so softmax does without it.
        closeness = 2 * z @ self.codebook.T - self.codebook.square().sum(-1)
        temperature = self.first_temperature * self.log_temperature.exp()
        return torch.softmax(closeness / temperature, -1) @ self.table

    @torch.no_grad()
    def start(
        self,
        compression: Compression,
        table: Float[Tensor, "V D"],
        counts: Int[Tensor, " V"],
        config: StudyConfig,
    ) -> None:
        self.codebook.copy_(compression.compress(table))
        self.first_temperature.copy_(neighbour_distance(self.codebook))

    def template(self) -> "SoftCodebook":
        with torch.device("meta"):
            return SoftCodebook(torch.empty(len(self.table), self.D), self.K)


def neighbour_distance(codebook: Float[Tensor, "V K"]) -> Float[Tensor, ""]:
    """Return the mean squared distance of an entry to the nearest other one."""
    nearest = []
    ids = torch.arange(len(codebook), device=codebook.device)
    for rows, own in zip(codebook.split(ROWS), ids.split(ROWS), strict=True):
        distances = torch.cdist(rows, codebook)
        nearest.append(distances.scatter_(1, own[:, None], torch.inf).amin(1))
    return torch.cat(nearest).square().mean()


class Projected(Adapter):
    """An adapter behind a trained projection: adapter(P x), with x an embedding minus the mean.

    P, without a bias, starts at the PCA components and is trained with the adapter. So K numbers
    per token are left here too; only their choice is the objective's.
    """

    def __init__(self, adapter: Adapter):
        super().__init__(adapter.K, adapter.D)
        self.adapter = adapter
        self.projection = nn.Linear(adapter.D, adapter.K, bias=False)

    def forward(self, x: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
        return self.adapter(self.projection(x))

    @torch.no_grad()
    def start(
        self,
        compression: Compression,
        table: Float[Tensor, "V D"],
        counts: Int[Tensor, " V"],
        config: StudyConfig,
    ) -> None:
        self.projection.weight.copy_(compression.components)
        self.adapter.start(compression, table, counts, config)

    def template(self) -> "Projected":
        with torch.device("meta"):
            return Projected(self.adapter.template())

    def constants(self) -> dict[str, Tensor]:
        return {f"adapter.{name}": tensor for name, tensor in self.adapter.constants().items()}
