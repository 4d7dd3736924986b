"""Fixtures that several test modules share."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from stage1.config import StudyConfig
from stage1.model import loading
from stage1.model.language_model import FrozenLM

SQUAD = Path(__file__).resolve().parents[2] / "shared" / "data" / "squad" / "dev-v1.1-half.json"

settings.register_profile("stage1", deadline=None, database=None, derandomize=True, max_examples=50)
settings.load_profile("stage1")


@pytest.fixture(scope="session", autouse=True)
def quiet_machine(tmp_path_factory):
    """Use one torch thread per worker, and write records to a temporary folder."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STAGE1_RUNS", str(tmp_path_factory.mktemp("runs")))
        patch.setenv("OMP_NUM_THREADS", "1")  # in processes that a test starts, too
        yield


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(loading.SHIPPED)


@pytest.fixture(scope="session")
def lm() -> FrozenLM:
    """The shipped language model; tests must not change it."""
    return loading.load(StudyConfig(device="cpu"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer) -> Path:
    """A folder with a tiny random model, saved in bfloat16, and its tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-lm")
    torch.manual_seed(0)
    architecture = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(architecture).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_folder) -> StudyConfig:
    """The config of a whole study in a second: the tiny model, K=4, a handful of questions."""
    return StudyConfig(
        preset="tiny",
        language_model=str(tiny_folder),
        device="cpu",
        compressed_width=4,
        test_examples=24,
        batch_size=8,
        learning_rate=1.0e-2,
        objective="answer_ce",
        warmup_steps=0,
    )


@pytest.fixture(scope="session")
def loaded_once(tiny_folder) -> FrozenLM:
    return loading.load(StudyConfig(language_model=str(tiny_folder), device="cpu"))


@pytest.fixture
def tiny_lm(loaded_once) -> FrozenLM:
    """A copy of the tiny model for each test, which may change it."""
    return replace(loaded_once, model=copy.deepcopy(loaded_once.model))


@pytest.fixture(scope="session")
def sharp_lm(loaded_once) -> FrozenLM:
    """The tiny model with large weights, so that its predictions depend on all that it reads."""
    lm = replace(loaded_once, model=copy.deepcopy(loaded_once.model))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return lm


@pytest.fixture(scope="session")
def squad_sample() -> Path:
    """Half of the SQuAD v1.1 development set, which is not part of the repository."""
    if not SQUAD.is_file():
        pytest.skip("the SQuAD sample ../shared/data/squad/dev-v1.1-half.json is not there")
    return SQUAD


@pytest.fixture
def offline(monkeypatch):
    """Make the hub libraries refuse to use the network, without retries."""
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
