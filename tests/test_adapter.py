"""The adapter: its size, where it starts, that it works token by token, and that it is saved and loaded whole."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stage1 import adapter as adapters
from stage1.adapter import Adapter
from stage1.compress import Compression, fit_pca
from stage1.config import StudyConfig
from stage1.model import language_model
from stage1.store import RecordError

K = 8
COUNTS = (20_000 / torch.arange(1, 4_097)).long()  # Zipf-like, the rarest token four times
STARTS = [
    (start, scaling)
    for start in ("random", "pca_inverse")
    for scaling in ("unit_rms", "calibrated")
]


def config(folder="shipped", **changes) -> StudyConfig:
    return StudyConfig(
        device="cpu", language_model=str(folder), **{"compressed_width": K, **changes}
    )


def made(lm, **changes) -> tuple[Adapter, Compression]:
    asked = config(**changes)
    compression = fit_pca(lm.embedding_table, COUNTS, asked.compressed_width)
    return adapters.make(compression, lm.embedding_table, COUNTS, asked), compression


def moments(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation per dimension of one row per counted token, in float64."""
    share = (COUNTS / COUNTS.sum(dtype=torch.float64))[:, None]
    mean = (share * table.double()).sum(0)
    return mean, (share * (table.double() - mean).square()).sum(0).sqrt()


def weights(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


@pytest.fixture
def saved(tiny_lm, tiny_folder, tmp_path):
    """A folder with a saved adapter, and the config it was saved with."""
    asked = config(tiny_folder)
    adapters.save(made(tiny_lm)[0], tmp_path / "adapter", asked, tiny_lm)
    return tmp_path / "adapter", asked


# ---------------------------------------------------------------- architecture


def test_the_adapter_under_study_has_19952641_parameters():
    with torch.device("meta"):
        nothing = Compression(
            torch.zeros(4_096), torch.zeros(512, 4_096), torch.zeros(4_096).double(), 1.0, "PCA"
        )
        adapter = Adapter(nothing)
    assert adapters.parameter_count(adapter) == 19_952_641
    # by hand: the norms, the MLP of width 4K = 2,048, the three maps from K to D, and the gain
    norms, mlp = (
        2 * 512 + 2 * 4_096,
        512 * 2_048 + 2_048 + 2_048 * 2_048 + 2_048 + 2_048 * 4_096 + 4_096,
    )
    assert adapters.parameter_count(adapter) == norms + mlp + 3 * (512 * 4_096 + 4_096) + 1


@pytest.mark.parametrize("start, scaling", STARTS)
def test_parameters_are_float32_whatever_the_precision_of_the_language_model(
    tiny_folder, start, scaling
):
    lm = language_model.load(config(tiny_folder, dtype="bfloat16"))
    adapter, compression = made(lm, initialisation=start, output_scaling=scaling)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    assert adapters.decode(adapter, compression.compress(lm.embedding_table)).dtype == torch.float32


def test_the_compression_is_kept_with_the_weights_and_never_trained(tiny_lm):
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

    hidden = linear(
        "mlp.4", gelu(linear("mlp.2", gelu(linear("mlp.0", norm("compressed_norm", z)))))
    )
    gate = 1 / (1 + (-linear("scale", z)).exp())
    output = w["gain"] * norm(
        "output_norm", gate * (hidden + linear("skip", z)) + linear("shift", z)
    )
    torch.testing.assert_close(adapter(z.float()).double(), output, rtol=1e-4, atol=1e-4)
    adapter.initialisation = "pca_inverse"
    linear_inverse = z @ compression.components.double() + compression.mean.double()
    torch.testing.assert_close(
        adapter(z.float()).double(), linear_inverse + output, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("start, scaling", STARTS)
def test_a_token_is_decoded_alike_in_a_batch_of_any_shape(tiny_lm, start, scaling):
    adapter, compression = made(tiny_lm, initialisation=start, output_scaling=scaling)
    torch.nn.init.ones_(adapter.gain)  # or the pca_inverse adapter would only show its linear part
    z = compression.compress(tiny_lm.embedding_table[:24])
    alone = torch.stack([adapter(row) for row in z])
    assert alone.shape == (24, 32)
    for shape in ((24,), (1, 24), (4, 6), (2, 3, 4)):
        batch = adapter(z.view(*shape, K))
        assert batch.shape == (*shape, 32)
        torch.testing.assert_close(batch.view(24, 32), alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(adapter(z.flip(0)).flip(0), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [1_000, 4_096])
def test_decoding_in_chunks_is_decoding_at_once(tiny_lm, monkeypatch, chunk):
    adapter, compression = made(tiny_lm, initialisation="random")
    codebook = compression.compress(tiny_lm.embedding_table)
    monkeypatch.setattr(adapters, "CHUNK", chunk)
    decoded = adapters.decode(adapter, codebook)
    assert decoded.shape == tiny_lm.embedding_table.shape and not decoded.requires_grad
    torch.testing.assert_close(decoded, adapter(codebook).detach(), rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------- where it starts


@pytest.mark.parametrize("scaling", ["unit_rms", "calibrated"])
def test_pca_inverse_starts_exactly_at_the_linear_inverse(lm, scaling):
    adapter, compression = made(
        lm, initialisation="pca_inverse", output_scaling=scaling, compressed_width=24
    )
    codebook = compression.compress(lm.embedding_table)
    assert torch.equal(adapter(codebook), compression.expand(codebook))


@pytest.mark.parametrize("scaling", ["unit_rms", "calibrated"])
def test_pca_inverse_leaves_the_linear_inverse_with_its_first_step(tiny_lm, scaling):
    adapter, compression = made(tiny_lm, initialisation="pca_inverse", output_scaling=scaling)
    codebook = compression.compress(tiny_lm.embedding_table)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.01)
    (adapter(codebook) - tiny_lm.embedding_table).square().sum().backward()
    assert adapter.gain.grad != 0
    optimizer.step()
    assert adapter.gain != 0 and not torch.equal(adapter(codebook), compression.expand(codebook))


def test_as_found_every_token_starts_with_a_root_mean_square_of_one(lm):
    adapter, compression = made(
        lm, initialisation="random", output_scaling="unit_rms", compressed_width=24
    )
    output = adapters.decode(adapter, compression.compress(lm.embedding_table))
    rms = output.square().mean(1).sqrt()
    assert (rms - 1).abs().max() < 0.001  # the norm's epsilon of 1e-5 takes a little away
    assert (
        lm.embedding_table.square().mean(1).sqrt().max() < 0.2
    )  # which is not the scale of what it must produce


@pytest.mark.parametrize("start", ["random", "pca_inverse"])
def test_unit_rms_leaves_the_output_norm_at_one_and_zero(tiny_lm, start):
    adapter, _ = made(tiny_lm, initialisation=start, output_scaling="unit_rms")
    assert torch.equal(adapter.output_norm.weight, torch.ones(32))
    assert torch.equal(adapter.output_norm.bias, torch.zeros(32))


def test_a_calibrated_output_norm_holds_the_embeddings_token_weighted_statistics(lm):
    adapter, _ = made(lm, initialisation="random", output_scaling="calibrated", compressed_width=24)
    mean, deviation = moments(lm.embedding_table)
    torch.testing.assert_close(adapter.output_norm.bias.double(), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(adapter.output_norm.weight.double(), deviation, rtol=1e-5, atol=0)
    assert not torch.allclose(
        mean, lm.embedding_table.mean(0).double(), rtol=0.1
    )  # tokens weigh, not entries


def test_a_calibrated_pca_inverse_holds_the_statistics_of_what_the_linear_inverse_leaves(lm):
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
def test_calibrating_by_chunks_is_calibrating_at_once(tiny_lm, monkeypatch, start):
    whole, _ = made(tiny_lm, initialisation=start, output_scaling="calibrated")
    monkeypatch.setattr(adapters, "CHUNK", 1_000)
    parts, _ = made(tiny_lm, initialisation=start, output_scaling="calibrated")
    torch.testing.assert_close(parts.output_norm.bias, whole.output_norm.bias, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(
        parts.output_norm.weight, whole.output_norm.weight, rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_calibrated_random_adapter_starts_near_the_statistics_of_the_embeddings(lm, seed):
    """The norm divides by each token's own statistics, so that a dimension's mean is met within its spread, and only
    the squared distance from the embeddings' mean, in units of their variance, is exact: 1 on average over dimensions.
    """
    adapter, compression = made(
        lm, initialisation="random", output_scaling="calibrated", compressed_width=24, seed=seed
    )
    mean, deviation = moments(lm.embedding_table)
    start_mean, start_deviation = moments(
        adapters.decode(adapter, compression.compress(lm.embedding_table))
    )
    off, ratio = (start_mean - mean) / deviation, start_deviation / deviation
    assert float((off.square() + ratio.square()).mean()) == pytest.approx(1, abs=0.001)
    assert (
        off.abs().max() < 3 and ratio.min() > 1 / 4 and ratio.max() < 2
    )  # as found: off by up to 25, ratios up to 12


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
    prints = [
        adapters.fingerprint(other)
        for other in (table, changed, table.flip(0), table.reshape(2_048, 64))
    ]
    assert len(set(prints)) == 4


# ---------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("start, scaling", STARTS)
def test_an_adapter_comes_back_bit_for_bit(tiny_lm, tiny_folder, tmp_path, start, scaling):
    adapter, compression = made(tiny_lm, initialisation=start, output_scaling=scaling)
    with torch.no_grad():  # away from where any new adapter starts
        for parameter in adapter.parameters():
            parameter.add_(torch.rand(parameter.shape, generator=torch.Generator().manual_seed(3)))
    asked = config(tiny_folder, initialisation=start, output_scaling=scaling)
    adapters.save(adapter, tmp_path, asked, tiny_lm)
    loaded = adapters.load(tmp_path, asked, tiny_lm)
    before, after = adapter.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    codebook = compression.compress(tiny_lm.embedding_table)
    assert torch.equal(adapters.decode(loaded, codebook), adapters.decode(adapter, codebook))


def test_the_loaded_adapter_starts_as_it_was_saved_whatever_the_config_says_now(tiny_lm, saved):
    folder, asked = saved
    assert asked.initialisation == "pca_inverse"
    assert (
        adapters.load(folder, asked.replace(initialisation="random"), tiny_lm).initialisation
        == "pca_inverse"
    )


def test_the_record_beside_the_adapter_holds_config_shape_and_table(tiny_lm, saved):
    folder, asked = saved
    record = json.loads((folder / "adapter.json").read_text("utf-8"))
    assert record["config"] == asked.to_dict()
    # norms, MLP, three maps and the gain, at K=8 and D=32
    parameters = (
        2 * 8 + 2 * 32 + (8 * 32 + 32 + 32 * 32 + 32 + 32 * 32 + 32) + 3 * (8 * 32 + 32) + 1
    )
    table = adapters.fingerprint(tiny_lm.embedding_table)
    assert record["results"] == {"K": 8, "D": 32, "parameters": parameters, "table": table}
    assert sorted(path.name for path in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_missing_file_is_named(tiny_lm, saved, name):
    folder, asked = saved
    (folder / name).unlink()
    with pytest.raises(RecordError) as raised:
        adapters.load(folder, asked, tiny_lm)
    assert str(folder / name) in str(raised.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_a_truncated_file_is_named(tiny_lm, saved, name, share):
    folder, asked = saved
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(RecordError) as raised:
        adapters.load(folder, asked, tiny_lm)
    assert str(folder / name) in str(raised.value)


def test_an_adapter_of_another_width_is_refused_with_both_widths(tiny_lm, saved):
    folder, asked = saved
    with pytest.raises(ValueError, match=r"compressed_width=6: expected 8,"):
        adapters.load(folder, asked.replace(compressed_width=6), tiny_lm)


def test_an_adapter_of_another_width_of_embeddings_is_refused(lm, saved):
    folder, asked = saved
    with pytest.raises(ValueError, match=r"language_model='shipped'") as raised:
        adapters.load(folder, asked.replace(language_model="shipped"), lm)
    assert asked.language_model in str(raised.value) and "D=32" in str(raised.value)


def test_an_adapter_of_another_table_of_the_same_shape_is_refused(tiny_lm, saved):
    folder, asked = saved
    tiny_lm.embedding_table[0, 0] += 1
    with pytest.raises(ValueError, match="language_model="):
        adapters.load(folder, asked, tiny_lm)


@pytest.mark.parametrize("change", ["missing", "unknown", "another shape"])
def test_weights_of_another_architecture_are_refused(tiny_lm, saved, change):
    folder, asked = saved
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
        adapters.load(folder, asked, tiny_lm)
    assert str(path) in str(raised.value)
