"""Groups of adapters that share passes, and the rows that a sweep makes of them."""

import dataclasses

import pandas as pd
import pytest
import torch

from stage1 import adapter as adapters
from stage1 import store, study
from stage1.config import StudyConfig
from stage1.evaluation import reconstruction
from stage1.study import sweep, together
from stage1.training.microbatches import TrainingError
from stage1.training.warmup import warm_up


@pytest.fixture(scope="module")
def config(tiny_config):
    return tiny_config.replace(
        train_examples=16, selection_examples=6, test_examples=6, epochs=1, warmup_steps=3
    )


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("STAGE1_RUNS", str(tmp_path))
    return tmp_path


def test_groups_hold_what_can_share_passes():
    config = StudyConfig()
    alike = [
        config.replace(seed=seed, objective="distill", learning_rate=0.1) for seed in (0, 1, 2)
    ]
    other = config.replace(train_examples=7)
    alone = [config.replace(gradients_every=10), config.replace(balancing="uncertainty")]
    found = together.groups([*alike, other, *alone, config], 3)
    assert [sorted(group, key=str) for group in found] == [
        sorted(alike, key=str), [config], [other], [alone[0]], [alone[1]]
    ]  # fmt: skip


def test_adapters_of_another_architecture_or_projection_are_apart():
    config = StudyConfig()
    others = [
        config.replace(architecture="affine"),
        config.replace(architecture="soft_codebook"),
        config.replace(projection="trained"),
    ]
    assert together.groups([config, *others, config.replace(seed=1)], 9) == [
        [config, config.replace(seed=1)], *([other] for other in others)
    ]  # fmt: skip


def test_equal_starts_are_warmed_up_once_and_others_apart(config, monkeypatch):
    prepared, calls = study.prepare(config), []

    def counted(adapters, context, *arguments, **options):
        calls.append((len(adapters), context.config.warmup_steps))
        return warm_up(adapters, context, *arguments, **options)

    monkeypatch.setattr(together, "warm_up", counted)
    configs = [
        config,
        config.replace(objective="distill", learning_rate=1.0),
        config.replace(seed=1),
        config.replace(warmup_steps=2),
        config.replace(warmup_steps=0),
    ]
    made, curves = together.warmed_adapters(prepared, configs)
    assert calls == [(2, 3), (1, 2), (1, 0)]
    assert [len(curve) for curve in curves] == [3, 3, 3, 2, 0]
    flat = [torch.cat([p.flatten() for p in adapter.parameters()]) for adapter in made]
    assert torch.equal(flat[0], flat[1]) and made[0] is not made[1]
    untouched = study.new_adapter(dataclasses.replace(prepared, config=configs[-1]))
    assert torch.equal(flat[4], torch.cat([p.flatten() for p in untouched.parameters()]))


def flat(adapter) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in adapter.parameters()])


def test_warm_ups_halve_where_memory_runs_out(config, monkeypatch, capsys):
    prepared = study.prepare(config)
    configs = [config.replace(seed=seed) for seed in range(3)]
    whole, expected = together.warmed_adapters(prepared, configs)
    tried, room = [], 1

    def limited(adapters, *arguments, **options):
        tried.append(len(adapters))
        if len(adapters) > room:
            raise torch.OutOfMemoryError
        return warm_up(adapters, *arguments, **options)

    monkeypatch.setattr(together, "warm_up", limited)
    parts, curves = together.warmed_adapters(prepared, configs)
    assert tried == [3, 2, 1, 1, 1]
    for one, other in zip(whole, parts, strict=True):
        assert torch.allclose(flat(one), flat(other), atol=1e-5)
    for one, other in zip(expected, curves, strict=True):
        assert [row["fvu"] for row in one] == pytest.approx([row["fvu"] for row in other], rel=1e-4)
    assert "warm-up: memory runs out with 3 adapters at a time" in capsys.readouterr().out
    room = 0
    with pytest.raises(TrainingError, match="memory runs out with one adapter at a time"):
        together.warmed_adapters(prepared, configs)


def test_half_of_a_group_shares_passes_where_all_do_not_fit(config, runs, monkeypatch, capsys):
    configs, train_group, tried = (
        [config.replace(seed=i) for i in range(3)],
        together.train_group,
        [],
    )

    def limited(study, configs):
        tried.append(len(configs))
        if len(configs) > 2:
            raise torch.OutOfMemoryError("no room")
        return train_group(study, configs)

    monkeypatch.setattr(together, "train_group", limited)
    rows = sweep.work("runs", configs, ["seed"])
    assert [row["seed"] for row in rows] == [0, 1, 2] and all("f1" in row for row in rows)
    assert tried == [3, 2]  # the third is trained alone
    assert "half of 3 adapters at a time: no room" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "affine"},
        {"architecture": "soft_codebook"},
        {"projection": "trained"},
        {"compressed_width": 32},
    ],
)
def test_a_baseline_leaves_the_records_of_any_run(config, runs, changes):
    """Trained in a group, tested, saved and loaded; K = D is the uncompressed control."""
    configs = [config.replace(seed=seed, **changes) for seed in (0, 1)]
    rows = sweep.work("runs", configs, sweep.recorded_fields(configs))
    for own, row in zip(configs, rows, strict=True):
        assert {name: row[name] for name in changes} == changes
        study_of = sweep.shared(own)
        adapter = adapters.load(store.adapter_folder(own), own, study_of.lm)
        rebuilt = reconstruction(
            study_of.lm.embedding_table,
            adapters.decode(adapter, study_of.codebook),
            study_of.test_counts(),
        )
        assert row["fvu"] == pytest.approx(rebuilt["fvu"])
        assert row["parameters"] == adapters.parameter_count(adapter)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trials", "runs"])
def test_rows_of_a_group_are_those_of_adapters_alone(config, runs, monkeypatch, kind):
    configs = [
        config.replace(objective="answer_ce"),
        config.replace(objective="option3_teacher_forced", seed=1, initialisation="random"),
    ]
    fields = sweep.recorded_fields(configs)
    shared = sweep.work(kind, configs, fields)
    records = {c: (store.adapter_folder(c) / "record.json").exists() for c in configs}
    assert set(records.values()) == {kind == "runs"}
    monkeypatch.setenv("STAGE1_RUNS", str(runs / "alone"))
    alone = [row for one in configs for row in sweep.work(kind, [one], fields)]
    first, second = (pd.DataFrame(rows).drop(columns="seconds") for rows in (shared, alone))
    numbers = first.select_dtypes("number").columns
    pd.testing.assert_frame_equal(first[numbers], second[numbers], rtol=5e-3, atol=1e-3)
    assert set(first) == set(second)


def test_a_finished_run_of_a_group_is_not_repeated(config, runs, monkeypatch):
    configs = [config, config.replace(seed=1)]
    fields = sweep.recorded_fields(configs)
    first = sweep.work("runs", configs, fields)
    monkeypatch.setattr(together, "train_group", lambda *_: pytest.fail("trained again"))
    assert sweep.work("runs", configs, fields) == first
