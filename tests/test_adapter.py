"""The adapter: its size, its initialisation, its token-wise forward pass, saving and loading."""

import json
from functools import lru_cache
from itertools import product

import pytest
import torch
from safetensors.torch import load_file, save_file

from stage1 import adapter as adapters
from stage1.adapter import Film
from stage1.baselines import Adapter
from stage1.compress import Compression, fit_pca
from stage1.config import StudyConfig
from stage1.model import loading
from stage1.store import RecordError

K = 8
COUNTS = (20_000 / torch.arange(1, 4_097)).long()  # Zipf-like, the rarest token four times
cached_pca = lru_cache(maxsize=4)(fit_pca)  # tensors are hashed by identity
STARTS = [*product(("random", "pca_inverse"), ("unit_rms", "calibrated"))]


def make_config(folder="shipped", **changes) -> StudyConfig:
    changes = {"compressed_width": K, **changes}
    return StudyConfig(device="cpu", language_model=str(folder), **changes)


def made(lm, **changes) -> tuple[Adapter, Compression]:
    config = make_config(**changes)
    compression = cached_pca(lm.embedding_table, COUNTS, config.compressed_width)
    return adapters.make(compression, lm.embedding_table, COUNTS, config), compression


def moments(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation per dimension over the counted tokens, in float64."""
    share = (COUNTS / COUNTS.sum(dtype=torch.float64))[:, None]
    mean = (share * table.double()).sum(0)
    return mean, (share * (table.double() - mean).square()).sum(0).sqrt()


def weights(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


@pytest.fixture
def saved(tiny_lm, tiny_folder, tmp_path):
    """A folder with a saved adapter, and the config it was saved with."""
    config = make_config(tiny_folder)
    adapters.save(made(tiny_lm)[0], tmp_path / "adapter", config, tiny_lm)
    return tmp_path / "adapter", config


# ---------------------------------------------------------------- architecture


def test_the_adapter_under_study_has_19952641_parameters():
    with torch.device("meta"):
        adapter = Film(512, 4_096)
    assert adapters.parameter_count(adapter) == 19_952_641
    # by hand: the norms, the MLP of width 4K = 2,048, the three maps from K to D, and the gain
    norms = 2 * 512 + 2 * 4_096
    mlp = 512 * 2_048 + 2_048 + 2_048 * 2_048 + 2_048 + 2_048 * 4_096 + 4_096
    assert adapters.parameter_count(adapter) == norms + mlp + 3 * (512 * 4_096 + 4_096) + 1


@pytest.mark.parametrize("start, scaling", STARTS)
def test_parameters_are_float32_beside_a_bfloat16_language_model(tiny_folder, start, scaling):
    lm = loading.load(make_config(tiny_folder, dtype="bfloat16"))
    adapter, compression = made(lm, initialisation=start, output_scaling=scaling)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    assert adapters.decode(adapter, compression.compress(lm.embedding_table)).dtype == torch.float32


def test_the_compression_is_saved_with_the_weights_and_never_trained(tiny_lm):
    adapter, compression = made(tiny_lm)
    assert torch.equal(adapter.state_dict()["mean"], compression.mean)
    assert torch.equal(adapter.state_dict()["components"], compression.components)
    assert not {"mean", "components"} & {name for name, _ in adapter.named_parameters()}


def test_the_forward_pass_is_the_formula_it_documents(tiny_lm):
    adapter, compression = made(tiny_lm, initialisation="random", output_scaling="unit_rms")
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    z = compression.compress(tiny_lm.embedding_table[:50]).double() * 20
    w = {name: tensor.double() for name, tensor in adapter.state_dict().items()}

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x):
        return x * (1 + torch.erf(x / 2**0.5)) / 2

    hidden = gelu(linear("mlp.0", norm("compressed_norm", z)))
    hidden = linear("mlp.4", gelu(linear("mlp.2", hidden))) + linear("skip", z)
    gate = 1 / (1 + (-linear("scale", z)).exp())
    output = w["gain"] * norm("output_norm", gate * hidden + linear("shift", z))
    torch.testing.assert_close(adapter(z.float()).double(), output, rtol=1e-4, atol=1e-4)
    adapter.initialisation = "pca_inverse"
    output += z @ compression.components.double() + compression.mean.double()
    torch.testing.assert_close(adapter(z.float()).double(), output, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("start, scaling", STARTS)
def test_a_token_is_decoded_the_same_in_a_batch_of_any_shape(tiny_lm, start, scaling):
    adapter, compression = made(tiny_lm, initialisation=start, output_scaling=scaling)
    torch.nn.init.ones_(adapter.gain)  # else the pca_inverse adapter shows its linear part only
    z = compression.compress(tiny_lm.embedding_table[:24])
    alone = torch.stack([adapter(row) for row in z])
    assert alone.shape == (24, 32)
    for shape in ((24,), (1, 24), (4, 6), (2, 3, 4)):
        batch = adapter(z.view(*shape, K))
        assert batch.shape == (*shape, 32)
        torch.testing.assert_close(batch.view(24, 32), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter(z.flip(0)).flip(0), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1_000, 4_096])
def test_decoding_in_chunks_equals_decoding_at_once(tiny_lm, monkeypatch, chunk):
    adapter, compression = made(tiny_lm, initialisation="random")
    codebook = compression.compress(tiny_lm.embedding_table)
    monkeypatch.setattr(adapters, "CHUNK", chunk)
    decoded = adapters.decode(adapter, codebook)
    assert decoded.shape == tiny_lm.embedding_table.shape and not decoded.requires_grad
    torch.testing.assert_close(decoded, adapter(codebook).detach(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- initialisation


@pytest.mark.parametrize("scaling", ["unit_rms", "calibrated"])
def test_pca_inverse_starts_exactly_at_the_linear_inverse(lm, scaling):
    adapter, compression = made(
        lm, initialisation="pca_inverse", output_scaling=scaling, compressed_width=24
    )
    codebook = compression.compress(lm.embedding_table)
    assert torch.equal(adapter(codebook), compression.expand(codebook))


@pytest.mark.parametrize("scaling", ["unit_rms", "calibrated"])
def test_pca_inverse_learns_from_its_first_step(tiny_lm, scaling):
    adapter, compression = made(tiny_lm, initialisation="pca_inverse", output_scaling=scaling)
    codebook = compression.compress(tiny_lm.embedding_table)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.01)
    (adapter(codebook) - tiny_lm.embedding_table).square().sum().backward()
    assert adapter.gain.grad != 0
    optimizer.step()
    assert adapter.gain != 0 and not torch.equal(adapter(codebook), compression.expand(codebook))


def test_as_found_every_token_starts_with_an_rms_of_one(lm):
    adapter, compression = made(
        lm, initialisation="random", output_scaling="unit_rms", compressed_width=24
    )
    output = adapters.decode(adapter, compression.compress(lm.embedding_table))
    rms = output.square().mean(1).sqrt()
    assert (rms - 1).abs().max() < 0.001  # the norm's epsilon of 1e-5 makes it a little less
    assert lm.embedding_table.square().mean(1).sqrt().max() < 0.2  # its targets are far smaller


@pytest.mark.parametrize("start", ["random", "pca_inverse"])
def test_unit_rms_leaves_the_output_norm_at_one_and_zero(tiny_lm, start):
    adapter, _ = made(tiny_lm, initialisation=start, output_scaling="unit_rms")
    assert torch.equal(adapter.output_norm.weight, torch.ones(32))
    assert torch.equal(adapter.output_norm.bias, torch.zeros(32))


def test_a_calibrated_output_norm_starts_at_the_token_weighted_statistics(lm):
    adapter, _ = made(lm, initialisation="random", output_scaling="calibrated", compressed_width=24)
    mean, deviation = moments(lm.embedding_table)
    torch.testing.assert_close(adapter.output_norm.bias.double(), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(adapter.output_norm.weight.double(), deviation, rtol=1e-5, atol=0)
    uniform = lm.embedding_table.mean(0).double()
    assert not torch.allclose(mean, uniform, rtol=0.1)


def test_a_calibrated_pca_inverse_starts_at_the_statistics_of_the_residuals(lm):
    adapter, compression = made(
        lm, initialisation="pca_inverse", output_scaling="calibrated", compressed_width=24
    )
    basis = compression.components.double()
    centred = lm.embedding_table.double() - compression.mean.double()
    mean, deviation = moments(centred - centred @ basis.T @ basis)
    torch.testing.assert_close(adapter.output_norm.bias.double(), mean, rtol=0, atol=1e-7)
    torch.testing.assert_close(adapter.output_norm.weight.double(), deviation, rtol=1e-5, atol=0)
    assert mean.abs().max() < 1e-7  # the PCA is centred on these very tokens
    assert (deviation < moments(lm.embedding_table)[1]).all()


@pytest.mark.parametrize("start", ["random", "pca_inverse"])
def test_calibrating_in_chunks_equals_calibrating_at_once(tiny_lm, monkeypatch, start):
    whole, _ = made(tiny_lm, initialisation=start, output_scaling="calibrated")
    monkeypatch.setattr(adapters, "CHUNK", 1_000)
    parts, _ = made(tiny_lm, initialisation=start, output_scaling="calibrated")
    one, other = parts.output_norm, whole.output_norm
    torch.testing.assert_close(one.bias, other.bias, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(2))
def test_a_calibrated_random_adapter_starts_near_the_statistics_of_the_embeddings(lm, seed):
    """The norm divides by each token's own statistics, so means and deviations agree only roughly.

    Only the squared distance from the embeddings' mean is exact: their variance, averaged over
    dimensions.
    """
    adapter, compression = made(
        lm, initialisation="random", output_scaling="calibrated", compressed_width=24, seed=seed
    )
    mean, deviation = moments(lm.embedding_table)
    decoded = adapters.decode(adapter, compression.compress(lm.embedding_table))
    start_mean, start_deviation = moments(decoded)
    off, ratio = (start_mean - mean) / deviation, start_deviation / deviation
    assert float((off.square() + ratio.square()).mean()) == pytest.approx(1, abs=0.001)
    # As found: off by up to 25, ratios up to 12.
    assert off.abs().max() < 3 and ratio.min() > 1 / 4 and ratio.max() < 2


@pytest.mark.parametrize("start, scaling", STARTS)
def test_the_seed_alone_decides_the_weights(tiny_lm, start, scaling):
    def first(seed):
        return weights(made(tiny_lm, initialisation=start, output_scaling=scaling, seed=seed)[0])

    one = first(1)
    torch.rand(7)  # whatever was drawn before
    assert torch.equal(one, first(1)) and not torch.equal(one, first(2))


def test_another_table_has_another_fingerprint(tiny_lm):
    table = tiny_lm.embedding_table
    changed = table.clone()
    changed[4_000, 5] += 1e-6
    assert adapters.fingerprint(table) == adapters.fingerprint(table.clone())
    tables = (table, changed, table.flip(0), table.reshape(2_048, 64))
    assert len({adapters.fingerprint(other) for other in tables}) == 4


# ---------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("start, scaling", STARTS)
def test_a_saved_adapter_is_loaded_bit_for_bit(tiny_lm, tiny_folder, tmp_path, start, scaling):
    adapter, compression = made(tiny_lm, initialisation=start, output_scaling=scaling)
    with torch.no_grad():  # away from any new adapter
        for parameter in adapter.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)))
    config = make_config(tiny_folder, initialisation=start, output_scaling=scaling)
    adapters.save(adapter, tmp_path, config, tiny_lm)
    loaded = adapters.load(tmp_path, config, tiny_lm)
    before, after = adapter.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    codebook = compression.compress(tiny_lm.embedding_table)
    assert torch.equal(adapters.decode(loaded, codebook), adapters.decode(adapter, codebook))


def test_a_loaded_adapter_keeps_its_saved_initialisation(tiny_lm, saved):
    folder, config = saved
    loaded = adapters.load(folder, config.replace(initialisation="random"), tiny_lm)
    assert config.initialisation == loaded.initialisation == "pca_inverse"


def test_the_record_beside_the_adapter_holds_config_shape_and_table(tiny_lm, saved):
    folder, config = saved
    record = json.loads((folder / "adapter.json").read_text("utf-8"))
    assert record["config"] == config.to_dict()
    # MLP, three maps, norms and gain at K=8 and D=32
    parameters = 8 * 32 + 32 + 32 * 32 + 32 + 32 * 32 + 32 + 3 * (8 * 32 + 32) + 2 * 8 + 2 * 32 + 1
    table = adapters.fingerprint(tiny_lm.embedding_table)
    assert record["results"] == {"K": 8, "D": 32, "parameters": parameters, "table": table}
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named(tiny_lm, saved, name):
    folder, config = saved
    (folder / name).unlink()
    with pytest.raises(RecordError) as raised:
        adapters.load(folder, config, tiny_lm)
    assert str(folder / name) in str(raised.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.99])
@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_truncated_file_is_named(tiny_lm, saved, name, share):
    folder, config = saved
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(RecordError) as raised:
        adapters.load(folder, config, tiny_lm)
    assert str(folder / name) in str(raised.value)


def test_an_adapter_of_another_width_is_refused_with_both_widths(tiny_lm, saved):
    folder, config = saved
    with pytest.raises(ValueError, match=r"compressed_width=6: expected 8,"):
        adapters.load(folder, config.replace(compressed_width=6), tiny_lm)


def test_an_adapter_of_another_embedding_width_is_refused(lm, saved):
    folder, config = saved
    with pytest.raises(ValueError, match=r"language_model='shipped'") as raised:
        adapters.load(folder, config.replace(language_model="shipped"), lm)
    assert config.language_model in str(raised.value) and "D=32" in str(raised.value)


def test_an_adapter_of_another_table_of_the_same_shape_is_refused(tiny_lm, saved):
    folder, config = saved
    tiny_lm.embedding_table[0, 0] += 1
    with pytest.raises(ValueError, match="language_model="):
        adapters.load(folder, config, tiny_lm)


@pytest.mark.parametrize("change", ["missing", "unknown", "another shape"])
def test_weights_of_another_architecture_are_refused(tiny_lm, saved, change):
    folder, config = saved
    path = folder / "adapter.safetensors"
    tensors = load_file(path)
    if change == "missing":
        del tensors["gain"]
    elif change == "unknown":
        tensors["extra.weight"] = torch.zeros(3)
    else:
        tensors["mlp.0.weight"] = torch.zeros(16, 8)
    save_file(tensors, path)
    with pytest.raises(ValueError, match="no adapter of this architecture") as raised:
        adapters.load(folder, config, tiny_lm)
    assert str(path) in str(raised.value)
