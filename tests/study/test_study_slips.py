"""Slips of a study that no score gives away: what PCA is fitted on, and what is written when."""

import pytest
import torch

from stage1 import compress, store, study
from stage1.corpus.prompts import token_counts


def test_pca_is_fitted_on_the_training_prompts_and_no_others(config, prepared):
    table = prepared.lm.embedding_table
    counts = torch.from_numpy(token_counts(prepared.encoded["train"].prompts, len(table)))
    expected = compress.fit_pca(table, counts, config.compressed_width)
    assert torch.equal(prepared.compression.components, expected.components)
    assert torch.equal(prepared.compression.mean, expected.mean)
    other = study.prepare(config.replace(test_examples=48, selection_examples=12))
    assert torch.equal(other.compression.components, expected.components)


def test_the_record_is_written_after_all_that_it_vouches_for(prepared, monkeypatch):
    adapter, progress = study.train_adapter(prepared)
    tested, written = study.test_adapter(prepared, adapter), []
    write = store.write_atomically

    def watched(path, function):
        written.append(path.name)
        return write(path, function)

    monkeypatch.setattr(store, "write_atomically", watched)
    study.write_adapter(prepared, adapter, progress, *tested)
    assert written[-1] == "record.json"
    assert {"answers.parquet", "curve.parquet", "adapter.safetensors"} < set(written)


@pytest.mark.parametrize("table", ["answers", "curve", "selection"])
def test_a_run_whose_tables_cannot_be_written_has_no_record(prepared, monkeypatch, table):
    adapter, progress = study.train_adapter(prepared)
    tested, write = study.test_adapter(prepared, adapter), store.write_table

    def full_disk(path, rows):
        if path.stem == table:
            raise OSError("no space left on device")
        return write(path, rows)

    monkeypatch.setattr(store, "write_table", full_disk)
    with pytest.raises(OSError):
        study.write_adapter(prepared, adapter, progress, *tested)
    assert not (store.adapter_folder(prepared.config) / "record.json").exists()
