"""The benchmarks at the shape of an 8B model, on a small one: they measure what they say."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from stage1.compress import fit_pca
from stage1.config import StudyConfig
from stage1.corpus.prompts import token_counts
from stage1.store import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import common
import peers
import train_step
import vocabulary


def run(name: str, out, *arguments) -> pd.DataFrame:
    """Run a benchmark as a program; return the table it wrote."""
    program = [sys.executable, str(ROOT / f"benchmarks/{name}.py"), "--out", str(out)]
    environment = os.environ | {"TQDM_DISABLE": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*program, *map(str, arguments)], check=True, env=environment)
    return pd.read_csv(out)


def test_a_power_law_is_found_in_its_own_values():
    law = vocabulary.power_law(3.0 * torch.arange(1, 65, dtype=torch.float64) ** -0.7)
    assert law["exponent"] == pytest.approx(0.7) and law["spread"] < 1e-12


def test_random_tables_have_the_fitted_spectrum_weighted_by_tokens():
    counts = torch.from_numpy(token_counts(vocabulary.random_prompts(4_096, 300).prompts, 4_096))
    table = vocabulary.random_table(counts, width=64, compressed=8)
    assert table.dtype == torch.bfloat16
    assert table.float().square().sum(1).mean().sqrt() == pytest.approx(vocabulary.NORM, rel=0.01)
    law = vocabulary.power_law(fit_pca(table, counts, 8).variances)
    assert law["exponent"] == pytest.approx(vocabulary.fitted_exponent(), abs=0.01)
    assert law["spread"] < 0.01


def test_rows_that_fail_or_come_too_late_say_so(tmp_path):
    rows = common.Rows(tmp_path / "rows.csv", 60.0, lambda table: table)

    def fails():
        raise ValueError("width=0\nand more")

    def runs_out():
        raise torch.OutOfMemoryError

    for name, call in (("a", lambda: {"seconds": 1.5}), ("b", fails), ("c", runs_out)):
        rows.add({"path": name}, call)
    rows.end = 0.0
    rows.add({"path": "d"}, fails)
    table = pd.read_csv(rows.out)
    assert table["seconds"].tolist()[0] == 1.5
    late = "not run: 60 s were over"
    assert table["note"].tolist()[1:] == ["ValueError: width=0", "out of memory", late]
    origin = json.loads((tmp_path / "rows.json").read_text())
    assert {"command", "date", "cores", "provenance"} <= origin.keys()


def test_the_warm_up_is_measured_at_every_setting(tmp_path):
    sizes = ["--vocabulary", 2_048, "--width", 32, "--compressed", 4, "--prompts", 512]
    rest = ["--steps", 40, "--batch", 256, "--rates", 3.0e-2, 1.0e-3]
    rest += ["--modes", "captured", "eager"]  # compiling takes longer than all else
    table = run("warmup_at_shape", tmp_path / "warmup.csv", *sizes, *rest)
    assert "note" not in table, table["note"]
    own = table[table["path"] == "table"].set_index(["batch", "steps", "precision", "optimizer"])
    whole = own.loc[(256, 40, "tf32", "AdamW")].dropna(subset="table_fvu").iloc[0]
    assert whole["fvu"] < whole["first_fvu"] and whole["flat_step"] < 40
    assert whole["table_fvu"] == pytest.approx(whole["fvu"], rel=0.05)
    direct = table[table["path"] == "per prompt"].set_index("precision")
    assert direct["times_per_prompt"]["float32"] == 1.0
    expected = direct["ms_per_step"]["float32"] / whole["ms_per_step"]
    assert whole["times_per_step"] == pytest.approx(expected, abs=0.06)
    ratio = expected * 256 / direct["rows_per_step"]["float32"]
    assert whole["times_per_prompt"] == pytest.approx(ratio, abs=0.06)
    curve = pd.read_csv(tmp_path / "warmup_curve.csv")
    assert len(curve[curve["batch"] == 0]) > 0


def test_peers_compute_the_gradient_of_our_step(monkeypatch):
    """Padded or in one row; only clipping differs."""
    config = StudyConfig(
        device="cpu", learning_rate=1.0e-3, reconstruction_term="fvu", trim_last_layer=False
    )
    bench = train_step.Bench(config)
    batch = train_step.batch_of(bench.pool, 4, 0)
    made, make = [], bench.adapter

    def adapter(changed):
        made.append(make(changed))
        return made[-1]

    monkeypatch.setattr(bench, "adapter", adapter)
    for is_packed in (False, True):
        peers.usual_step(bench, config, is_packed)(batch)
    bench.step(config)(batch)
    padded, row, ours = (gradient(one) for one in made)
    assert torch.allclose(padded, row, rtol=1e-3, atol=1e-5 * padded.abs().max())
    assert torch.cosine_similarity(padded, ours, dim=0) > 0.9999


def gradient(adapter) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in adapter.parameters()])


def test_a_package_that_is_missing_is_a_row(tmp_path, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "peers.py",
            "--preset",
            "quick",
            "--batches",
            "2",
            "--steps",
            "1",
            "--out",
            str(tmp_path / "peers.csv"),
            "--paths",
            peers.PLAIN,
            peers.LIGER,
            peers.FLASH,
        ],
    )
    peers.main()
    table = pd.read_csv(tmp_path / "peers.csv")
    assert table["path"].tolist() == [peers.PLAIN, peers.LIGER, peers.FLASH]
    assert np.isfinite(table["examples_per_s"][0])
    assert "liger-kernel is not installed" in table["note"][1]
    assert "flash-attn is not installed" in table["note"][2]


def test_the_recipe_runs_from_start_to_record(tmp_path):
    shape = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 4_200,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    (tmp_path / "config.json").write_text(json.dumps(shape))
    preset = tmp_path / "toy.yaml"
    preset.write_text(
        f"language_model: {tmp_path}\nshape_only: true\ncompressed_width: D/8\nbatch_size: 8\n"
        "max_prompt_tokens: 256\nwarmup_batch: 128\nreconstruction_term: fvu\npacked: true\n"
        "device: cpu\n"
    )
    sizes = ["--train", 40, "--questions", 6, "--warmup-steps", 10]
    table = run("recipe_at_shape", tmp_path / "recipe.csv", "--preset", preset, *sizes)
    assert "note" not in table, table["note"]
    rows = table.set_index("stage")
    assert rows["count"]["training"] == 40 and rows["count"]["warm-up"] == 10
    assert (rows["seconds_per_unit"] > 0).all() and (rows["first_seconds"] >= 0).all()
    assert table["stage"].iloc[-1] == "record"
