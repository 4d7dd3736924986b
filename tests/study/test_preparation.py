"""What a study holds, what it depends on, and what is refused before anything is loaded."""

from dataclasses import replace

import pytest
import torch

from stage1 import adapter as adapters
from stage1 import study
from stage1.config import load_preset
from stage1.corpus import data
from stage1.corpus.prompts import token_counts
from stage1.study import preparation, prepare


def test_an_unknown_objective_is_refused_before_anything_is_loaded(config, monkeypatch):
    monkeypatch.setattr(preparation.loading, "load", lambda config: pytest.fail("loaded"))
    monkeypatch.setattr(preparation.data, "rows", lambda config, split: pytest.fail("made data"))
    message = r"objective='option3_forced'.*did you mean 'option3_teacher_forced'"
    with pytest.raises(ValueError, match=message):
        prepare(config.replace(objective="option3_forced"))


def test_a_study_holds_its_splits_and_the_compression_of_its_training_prompts(config, prepared):
    sizes = {split: len(encoded) for split, encoded in prepared.encoded.items()}
    assert sizes == {"train": 24, "selection": 6, "test": 24}
    assert prepared.encoded["test"].ids == [row["id"] for row in data.rows(config, "test")]
    assert prepared.counts.sum() == sum(map(len, prepared.encoded["train"].prompts))
    assert prepared.compression.width == 4
    expected = prepared.compression.compress(prepared.lm.embedding_table)
    assert torch.equal(prepared.codebook, expected) and prepared.codebook.shape == (4096, 4)
    assert (prepared.test_counts() == token_counts(prepared.encoded["test"].prompts, 4096)).all()


def test_a_trained_projection_sees_centred_embeddings(config, prepared):
    own = replace(prepared, config=config.replace(projection="trained"))
    compression, table = prepared.compression, prepared.lm.embedding_table
    assert torch.equal(own.codebook, table - compression.mean)
    rebuilt = adapters.decode(study.new_adapter(own), own.codebook)
    expected = adapters.decode(study.new_adapter(prepared), prepared.codebook)
    torch.testing.assert_close(rebuilt, expected, rtol=0, atol=1e-6)


def test_only_training_examples_are_dropped_for_a_cut_answer(config):
    encoded = prepare(config.replace(max_answer_tokens=3)).encoded
    assert encoded["train"].dropped == 24 - len(encoded["train"]) > 0
    assert len(encoded["selection"]) == 6 and len(encoded["test"]) == 24


def test_the_data_seed_changes_the_data_and_the_seed_does_not(config, prepared):
    reseeded, other = prepare(config.replace(seed=1)), prepare(config.replace(data_seed=1))
    assert reseeded.encoded == prepared.encoded
    assert torch.equal(reseeded.compression.components, prepared.compression.components)
    for split in data.SPLITS:
        assert other.encoded[split].prompts != prepared.encoded[split].prompts


def test_the_random_projection_depends_on_the_data_seed_alone(config, prepared):
    def projected(**changes):
        return replace(prepared, config=config.replace(**changes)).untrained()["random_projection"]

    assert torch.equal(projected(), projected(seed=1))
    assert not torch.equal(projected(), projected(data_seed=1))


def test_untrained_conditions_are_those_of_the_study(prepared):
    tables = prepared.untrained()
    assert list(tables) == ["text", "embeddings", "pca_inverse", "codebook", "random_projection"]
    assert torch.equal(tables["pca_inverse"], prepared.compression.expand(prepared.codebook))


def test_a_given_language_model_is_used_and_no_other_is_loaded(config, prepared, monkeypatch):
    monkeypatch.setattr(preparation.loading, "load", None)
    assert prepare(config, prepared.lm).lm is prepared.lm


def test_a_share_of_d_gives_the_study_of_that_width(config, prepared):
    D = prepared.lm.embedding_table.shape[1]
    share, number = (
        prepare(config.replace(compressed_width=width), prepared.lm) for width in ("D/4", D // 4)
    )
    assert torch.equal(share.compression.components, number.compression.components)
    assert share.resolved == number.resolved and share.config != number.config
    one, other = (study.new_adapter(made).state_dict() for made in (share, number))
    assert all(torch.equal(one[name], other[name]) for name in one)
    controls = (made.untrained()["random_projection"] for made in (share, number))
    assert torch.equal(*controls)


def test_a_share_of_d_takes_the_rates_searched_for_its_width(lm):
    made = prepare(load_preset("smoke").replace(device="cpu", compressed_width="D/8"), lm)
    assert made.resolved == replace(made, config=made.config.replace(compressed_width=24)).resolved


@pytest.mark.parametrize("changes", [{"train_examples": 0}, {"max_answer_tokens": 1}])
def test_a_study_without_usable_training_examples_is_refused(config, changes):
    given = changes.get("train_examples", 24)
    message = f"train_examples={given}: expected at least one whose answer is not cut"
    with pytest.raises(ValueError, match=message):
        prepare(config.replace(**changes))


def test_objectives_read_the_resolved_config_unless_another_is_given(config, prepared):
    open_rate = replace(prepared, config=config.replace(learning_rate=None))
    assert study.objective_context(open_rate).config == open_rate.resolved
    assert open_rate.resolved.learning_rate > 0 and open_rate.config.learning_rate is None
    assert study.objective_context(open_rate, config).config == config
