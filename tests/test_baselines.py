"""Baselines of the adapter under study: what each starts at, computes, learns and leaves behind."""

import json
from functools import lru_cache

import pytest
import torch
from torch.func import functional_call

from stage1 import adapter as adapters
from stage1 import store
from stage1.baselines import Adapter, Affine, Projected, SoftCodebook, neighbour_distance
from stage1.compress import Compression, fit_pca, nearest_codebook
from stage1.config import StudyConfig

K, D, V = 8, 32, 4_096  # D and V of the tiny language model
COUNTS = (20_000 / torch.arange(1, V + 1)).long()
cached_pca = lru_cache(maxsize=4)(fit_pca)
BASELINES = [
    {"architecture": "affine"},
    {"architecture": "soft_codebook"},
    {"projection": "trained"},
    {"projection": "trained", "architecture": "affine"},
    {"projection": "trained", "initialisation": "random", "output_scaling": "unit_rms"},
    {"architecture": "affine", "initialisation": "random"},
]


def make_config(**changes) -> StudyConfig:
    return StudyConfig(device="cpu", **({"compressed_width": K} | changes))


def made(lm, **changes) -> tuple[Adapter, Compression, torch.Tensor]:
    """Return an adapter, the compression, and what the adapter sees of every token."""
    config = make_config(**changes)
    compression = cached_pca(lm.embedding_table, COUNTS, config.compressed_width)
    adapter = adapters.make(compression, lm.embedding_table, COUNTS, config)
    if config.projection == "trained":
        return adapter, compression, lm.embedding_table - compression.mean
    return adapter, compression, compression.compress(lm.embedding_table)


def loss_of(adapter, codebook, table) -> torch.Tensor:
    return (adapter(codebook[:200]) - table[:200]).square().sum()


# ---------------------------------------------------------------- where they start


@pytest.mark.parametrize("projection", ["pca", "trained"])
@pytest.mark.parametrize("architecture", ["film", "affine"])
def test_the_start_is_the_pca_inverse(tiny_lm, architecture, projection):
    adapter, compression, codebook = made(tiny_lm, architecture=architecture, projection=projection)
    expected = compression.expand(compression.compress(tiny_lm.embedding_table))
    decoded = adapters.decode(adapter, codebook)
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-6)
    if projection == "trained":
        assert torch.equal(adapter.projection.weight, compression.components)


@pytest.mark.parametrize("projection", ["pca", "trained"])
@pytest.mark.parametrize("architecture", ["film", "affine"])
def test_the_uncompressed_control_starts_at_the_identity(tiny_lm, architecture, projection):
    adapter, compression, codebook = made(
        tiny_lm, architecture=architecture, projection=projection, compressed_width=D
    )
    assert compression.width == D and compression.kept == 1
    decoded = adapters.decode(adapter, codebook)
    torch.testing.assert_close(decoded, tiny_lm.embedding_table, rtol=0, atol=1e-5)


def test_the_uncompressed_control_learns_at_the_scale_of_the_embeddings(tiny_lm):
    """Its residual is zero, so a norm calibrated to that could not move."""
    adapter, compression, codebook = made(tiny_lm, compressed_width=D)
    share = (COUNTS / COUNTS.sum()).float()
    squares = share @ (tiny_lm.embedding_table - compression.mean).square()
    torch.testing.assert_close(
        adapter.output_norm.weight.detach(), squares.sqrt(), rtol=1e-4, atol=0
    )
    torch.testing.assert_close(adapter.output_norm.bias.detach(), torch.zeros(D), rtol=0, atol=1e-6)
    rms = float(tiny_lm.embedding_table.square().mean().sqrt())
    adapter.gain.data.fill_(0.1)
    change = (adapter(codebook) - tiny_lm.embedding_table).square().mean().sqrt()
    assert change.item() == pytest.approx(0.1 * rms, rel=0.3)


def test_a_random_affine_map_starts_as_a_linear_layer_with_the_configs_seed(tiny_lm):
    adapter, *_ = made(tiny_lm, architecture="affine", initialisation="random", seed=5)
    torch.manual_seed(5)
    expected = torch.nn.Linear(K, D)
    assert torch.equal(adapter.linear.weight, expected.weight)
    assert torch.equal(adapter.linear.bias, expected.bias)


def test_a_trained_projection_leaves_the_adapters_random_start_unchanged(tiny_lm):
    changes = {"initialisation": "random", "output_scaling": "unit_rms", "seed": 2}
    plain, *_ = made(tiny_lm, **changes)
    behind, *_ = made(tiny_lm, projection="trained", **changes)
    state = behind.adapter.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in plain.state_dict().items())


def test_the_temperature_starts_at_the_distance_to_the_nearest_other_entry(tiny_lm, monkeypatch):
    adapter, _, codebook = made(tiny_lm, architecture="soft_codebook")
    some = codebook[:70].double()
    distances = (some[:, None] - some).square().sum(-1)
    expected = distances.fill_diagonal_(torch.inf).amin(1).mean()
    monkeypatch.setattr("stage1.baselines.ROWS", 16)
    assert float(neighbour_distance(codebook[:70])) == pytest.approx(float(expected), rel=1e-4)
    assert float(adapter.first_temperature) == pytest.approx(
        float(neighbour_distance(codebook)), rel=1e-4
    )


# ---------------------------------------------------------------- what they compute


def test_the_soft_codebook_is_the_formula_it_documents(tiny_lm):
    adapter, _, codebook = made(tiny_lm, architecture="soft_codebook")
    adapter.log_temperature.data.fill_(0.7)
    temperature = float(adapter.first_temperature) * torch.tensor(0.7).double().exp()
    z, table = codebook[:20].double() + 0.01, tiny_lm.embedding_table.double()
    distances = (z[:, None] - codebook.double()).square().sum(-1)
    expected = torch.softmax(-distances / temperature, -1) @ table
    torch.testing.assert_close(adapter(z.float()).double(), expected, rtol=1e-3, atol=1e-5)


def test_without_temperature_the_soft_codebook_is_the_lookup(tiny_lm):
    adapter, _, codebook = made(tiny_lm, architecture="soft_codebook")
    table = tiny_lm.embedding_table
    between = codebook + 0.3 * codebook.std() * torch.randn(
        codebook.shape, generator=torch.Generator().manual_seed(0)
    )
    assert not torch.allclose(adapters.decode(adapter, codebook), table, atol=1e-3)
    adapter.log_temperature.data.fill_(-12.0)
    torch.testing.assert_close(adapters.decode(adapter, codebook), table, rtol=0, atol=1e-6)
    found = adapters.decode(adapter, between)
    lookup = table[nearest_codebook(between, codebook)]
    # A vector halfway between two entries is a mean of them at any temperature.
    assert (found - lookup).abs().amax(1).lt(1e-4).float().mean() > 0.99


def test_the_temperature_alone_is_trained(tiny_lm):
    adapter, *_ = made(tiny_lm, architecture="soft_codebook")
    assert adapters.parameter_count(adapter) == 1
    assert "table" not in adapter.state_dict()


def test_parameters_of_the_others_are_a_matrix_each_and_a_bias(tiny_lm):
    film, affine = made(tiny_lm)[0], made(tiny_lm, architecture="affine")[0]
    assert adapters.parameter_count(affine) == K * D + D
    for adapter in (film, affine):
        behind = Projected(adapter)
        assert adapters.parameter_count(behind) == adapters.parameter_count(adapter) + K * D


# ---------------------------------------------------------------- how they learn


@pytest.mark.parametrize("changes", BASELINES)
def test_every_step_of_gradient_descent_lowers_the_error(tiny_lm, changes):
    adapter, _, codebook = made(tiny_lm, **changes)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=1e-3)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(loss_of(adapter, codebook, tiny_lm.embedding_table))
        losses[-1].backward()
        optimizer.step()
    values = torch.stack(losses).tolist()
    assert values == sorted(values, reverse=True) and values[-1] < values[0]
    if isinstance(adapter, Projected):
        assert adapter.projection.weight.grad.abs().max() > 0


@pytest.mark.parametrize("changes", BASELINES)
def test_a_gradient_is_the_slope_of_the_loss(tiny_lm, changes):
    adapter, _, codebook = made(tiny_lm, **changes)
    adapter, codebook, table = adapter.double(), codebook.double(), tiny_lm.embedding_table.double()
    weights = dict(adapter.named_parameters())
    generator = torch.Generator().manual_seed(1)
    direction = {
        name: torch.randn(tensor.shape, generator=generator).double()
        for name, tensor in weights.items()
    }

    def shifted(step: float) -> torch.Tensor:
        moved = {name: tensor + step * direction[name] for name, tensor in weights.items()}
        return (functional_call(adapter, moved, (codebook[:50],)) - table[:50]).square().sum()

    gradients = torch.autograd.grad(shifted(0.0), list(weights.values()))
    slope = sum((g * direction[name]).sum() for name, g in zip(weights, gradients, strict=True))
    with torch.no_grad():
        difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(difference), rel=1e-4, abs=1e-8)


# ---------------------------------------------------------------- stacks, saving and loading


@pytest.mark.parametrize("changes", [{}, {"initialisation": "random"}, *BASELINES])
def test_the_template_with_weights_and_constants_is_the_adapter(tiny_lm, changes):
    adapter, _, codebook = made(tiny_lm, **changes)
    template = adapter.template()
    assert all(parameter.is_meta for parameter in template.parameters())
    given = (dict(adapter.named_parameters()), adapter.constants())
    found = functional_call(template, given, (codebook[:100],))
    torch.testing.assert_close(found, adapter(codebook[:100]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("changes", BASELINES)
def test_a_saved_baseline_is_loaded_bit_for_bit(tiny_lm, tiny_folder, tmp_path, changes):
    adapter, _, codebook = made(tiny_lm, **changes)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1)
    config = make_config(language_model=str(tiny_folder), **changes)
    adapters.save(adapter, tmp_path, config, tiny_lm)
    record = json.loads((tmp_path / "adapter.json").read_text("utf-8"))
    assert record["config"]["architecture"] == config.architecture
    assert record["config"]["projection"] == config.projection
    assert (record["results"]["K"], record["results"]["D"]) == (K, D)
    loaded = adapters.load(tmp_path, config, tiny_lm)
    assert torch.equal(adapters.decode(loaded, codebook), adapters.decode(adapter, codebook))


@pytest.mark.parametrize(
    "other, words",
    [
        ({"architecture": "film"}, "architecture='film': expected 'affine'"),
        ({"architecture": "soft_codebook"}, "architecture='soft_codebook': expected 'affine'"),
        ({"projection": "trained"}, "projection='trained': expected 'pca'"),
    ],
)
def test_another_architecture_or_projection_is_refused(
    tiny_lm, tiny_folder, tmp_path, other, words
):
    config = make_config(language_model=str(tiny_folder), architecture="affine")
    adapters.save(made(tiny_lm, architecture="affine")[0], tmp_path, config, tiny_lm)
    with pytest.raises(ValueError, match=words):
        adapters.load(tmp_path, config.replace(**other), tiny_lm)


def test_committed_adapters_are_loaded_as_the_adapter_under_study(lm):
    folders = sorted((store.ROOT / "records" / "full" / "adapters").iterdir())
    assert folders
    for folder in folders:
        saved = store.read_json(folder / "adapter.json")["config"]
        adapter = adapters.load(folder, StudyConfig().replace(**saved), lm)
        assert isinstance(adapter, adapters.Film)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"architecture": "affine", "output_scaling": "unit_rms"},
            "output_scaling='unit_rms': expected 'calibrated' where architecture='affine'",
        ),
        (
            {"architecture": "soft_codebook", "initialisation": "random"},
            "initialisation='random': expected 'pca_inverse' where architecture='soft_codebook'",
        ),
        (
            {"architecture": "soft_codebook", "projection": "trained"},
            "projection='trained': expected 'pca' where architecture='soft_codebook'",
        ),
    ],
)
def test_fields_that_an_architecture_does_not_use_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        make_config(**changes)


def test_an_architecture_has_its_own_class(tiny_lm):
    assert type(made(tiny_lm)[0]) is adapters.Film
    assert type(made(tiny_lm, architecture="affine")[0]) is Affine
    assert type(made(tiny_lm, architecture="soft_codebook")[0]) is SoftCodebook
    assert type(made(tiny_lm, projection="trained")[0].adapter) is adapters.Film
