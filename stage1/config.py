"""One frozen `StudyConfig` per run, from YAML presets and notebook parameters."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from stage1 import gallery
from stage1.fields import GROUPS, check, check_type, nearest, option, require

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "presets").is_dir()
"""Whether this is the package of a wheel: it holds what lies beside it in the repository."""


def shipped(inside: str, beside: str) -> Path:
    """Return a folder: `inside` the package if that was installed, else `beside` it."""
    return PACKAGE / inside if INSTALLED else PACKAGE.parent / beside


PRESETS = shipped("presets", "configs")
of_run, of_data, of_model, of_compression, of_adapter, of_training, of_evaluation, criterion = (
    partial(option, group=group) for group in GROUPS
)
no_effect: dict[str, Any] = {"changes_results": False, "in_run_name": False}
ZERO, ONE, SHARE, POSITIVE = "zero or more", "one or more", "0 to 1", "a positive number"
CRITERIA = ("baseline_f1", "target_f1", "script_f1", "failure_f1")
"""Thresholds of F1 in percent, each at most the one before it."""
WITHOUT_EFFECT = {
    "film": {},
    "affine": {"output_scaling": "calibrated"},  # no output norm
    "soft_codebook": {
        "output_scaling": "calibrated",
        "initialisation": "pca_inverse",  # one start, the lookup's own scale
        "projection": "pca",  # its codebook is compressed once
    },
}
"""Fields that an architecture does not use, and the value that they keep."""


@dataclass(frozen=True)
class StudyConfig:
    """Everything a run depends on. Raises TypeError or ValueError with the name of a bad field."""

    # run
    preset: str = of_run("quick", recorded=True)
    """Name of the preset the values came from; also the folder of its records under `runs/`."""

    seeds: int = of_run(1, allowed=ONE, **no_effect)
    """Adapters that the report trains per objective: seeds 0, 1, ... (count)."""

    threads: int = of_run(0, allowed=ZERO)
    """CPU threads for torch in this process; 0 keeps torch's default."""

    processes: int = of_run(1, allowed=ONE, **no_effect)
    """Data-parallel processes that train one adapter, each on its own GPU or CPU share."""

    faults: str = of_run(gallery.NONE, recorded=True)
    """Faults of the gallery (`stage1/gallery.py`) that the run carries, joined by `+`, or `none`.
    They stand in its folder's name, its records and its pages; no evidence takes such a run."""

    # data
    data_seed: int = of_data(0, allowed=ZERO)
    """Seed of the corpus, the choice of examples and the random projection."""

    data: str = of_data("almanac")
    """`almanac` (built in), a dataset id on the hub such as `rajpurkar/squad`, a SQuAD v1.1 JSON
    file, a .jsonl file of questions, or a folder written by `datasets.save_to_disk`."""

    test_data: str = of_data("")
    """Where test questions come from, if not from `data`: a source of the same kinds."""

    titles: str = of_data("")
    """File with the titles of the articles that training and selection may use, one per line, or
    `squad-44`: those of SQuAD's training set that the English model never saw. Empty: all."""

    train_examples: int = of_data(10_000, allowed=ZERO, recorded=True)
    """Training questions, before those with a truncated answer are dropped (examples)."""

    selection_examples: int = of_data(500, allowed=ZERO)
    """Questions for choosing hyperparameters (examples); they share no article with the others."""

    test_examples: int = of_data(1_000, allowed=ONE)
    """Questions to report on (examples)."""

    test_names: Literal["seen", "unseen"] = of_data("unseen")
    """Almanac only: whether test passages use names of the training passages or held-out ones."""

    selection_names: Literal["seen", "unseen"] = of_data("unseen")
    """Almanac only: the same for passages of the selection split."""

    answers: Literal["short", "long"] = of_data("short", searched=True)
    """Almanac only: `short` asks for names, dates and the like; `long` for two or three sentences.
    The shipped model was trained on short answers alone."""

    prompt_template: Literal["plain", "chat"] = of_data("plain")
    """`plain` is "Context: ... Question: ... Answer:"; `chat` is the tokenizer's chat template."""

    max_prompt_tokens: int = of_data(160, allowed=ONE)
    """Maximum length of a prompt with its begin token (tokens); its context is cut to fit."""

    max_answer_tokens: int = of_data(20, allowed=ONE)
    """Maximum length of a gold answer with its end token (tokens); training drops longer ones."""

    # language model
    language_model: str = of_model("shipped", recorded=True, searched=True)
    """`shipped` (reads the almanac) or `english`, both in the package, a local folder with
    safetensors, or a model id on the hub."""

    shape_only: bool = of_model(False)
    """Builds the language model from its config alone, with random weights: a rehearsal that needs
    no download. Its scores mean nothing and get no verdict."""

    dtype: Literal["float32", "bfloat16"] = of_model("float32")
    """Precision of the frozen language model."""

    device: Literal["auto", "cpu", "cuda", "sharded"] = of_model("auto")
    """`auto` takes the GPU if there is one; `sharded` spreads the language model's layers over all
    GPUs, for a model that does not fit on one."""

    # These five trade time against memory; except for fp8, results agree up to rounding.
    packed: bool = of_model(False)
    """Packs training examples into one row without padding; each attends to itself alone."""

    compiled: bool = of_model(False)
    """`torch.compile` for decoder layers and losses; worth its half minute on a GPU."""

    recomputed: float = of_model(0.0, allowed=SHARE)
    """Share of the decoder layers that are recomputed in the backward pass to save memory."""

    matmul: Literal["native", "fp8"] = of_model("native")
    """Arithmetic of the decoder layers: `native` is `dtype`; `fp8` quantizes weights and
    activations to eight bits: faster on GPUs that support it, but no longer the same model."""

    trim_last_layer: bool = of_model(True)
    """Computes the last decoder layer's MLP at supervised positions only, in Llama-like models."""

    # compression
    compressed_width: int | Literal["D/2", "D/4", "D/8", "D/16", "D/32", "D/64"] = of_compression(
        24, allowed=ONE, recorded=True, searched=True
    )
    """Width K of the compressed embeddings, or the compression ratio: `D/8` is an eighth of the
    language model's width D. 24 is that of the shipped model, whose D is 192. K = D is the
    uncompressed control: PCA drops nothing, and the PCA inverse is the identity."""

    weighting: Literal["token", "vocabulary"] = of_compression("token")
    """Whether PCA weights tokens of the training prompts equally, or vocabulary entries."""

    projection: Literal["pca", "trained"] = of_compression("pca", recorded=True, searched=True)
    """How embeddings become K numbers: by PCA, or by a linear map that starts there and is trained
    with the adapter."""

    # adapter
    seed: int = of_adapter(0, allowed=ZERO, in_run_name=False, recorded=True, own=True)
    """Seed of one adapter: its initial weights, the order of its examples, its sampling."""

    architecture: Literal["film", "affine", "soft_codebook"] = of_adapter(
        "film", recorded=True, searched=True
    )
    """`film` is the adapter under study. `affine` is a matrix and a bias; `soft_codebook` a mean of
    all vocabulary entries, weighted by their distance, with one trained temperature."""

    initialisation: Literal["random", "pca_inverse"] = of_adapter(
        "pca_inverse", recorded=True, searched=True, own=True
    )
    """`random`, as found, or `pca_inverse`: the linear PCA inverse plus a residual from zero."""

    output_scaling: Literal["unit_rms", "calibrated"] = of_adapter(
        "calibrated", recorded=True, searched=True, own=True
    )
    """Where the output norm starts: at unit RMS, as found, or at the statistics of its targets."""

    # training
    objective: str = of_training(
        "option3_teacher_forced", in_run_name=False, recorded=True, searched=True, own=True
    )
    """Training objective; `stage1/names.py` lists them."""

    epochs: int = of_training(3, allowed=ONE, recorded=True)
    """Passes over the training examples, or over as many tokens drawn by their counts."""

    batch_size: int | Literal["auto"] = of_training(64, allowed=ONE, recorded=True)
    """Examples per optimizer step; `auto` measures how many fit in the GPU's memory."""

    micro_batch_size: int | None = of_training(None, allowed=ONE, **no_effect)
    """Examples per pass through the language model (gradient accumulation); None starts with the
    whole batch. Halved whenever memory runs out."""

    learning_rate: float | None = of_training(
        None, allowed=f"{POSITIVE}, or None", recorded=True, own=True
    )
    """Peak of AdamW's schedule; None takes the rate selected for this objective and adapter."""

    warmup: float = of_training(0.05, allowed=SHARE)
    """Share of the steps with a linearly growing learning rate; a cosine to zero follows."""

    warmup_steps: int = of_training(5_000, allowed=ZERO, recorded=True, own=True)
    """Steps of the reconstruction warm-up, on the vocabulary table, before the objective."""

    warmup_rate: float = of_training(3.0e-2, allowed=POSITIVE, own=True)
    """Peak of AdamW's schedule in the warm-up."""

    warmup_uniform: float = of_training(0.9, allowed=SHARE, own=True)
    """Share of the warm-up's loss that weighs all vocabulary entries alike; the rest weighs them by
    their counts in the training prompts."""

    warmup_batch: int = of_training(0, allowed=ZERO, own=True)
    """Vocabulary entries per warm-up step, drawn by their weights; 0 takes the whole table."""

    weight_decay: float = of_training(0.01, allowed=ZERO, own=True)
    """AdamW weight decay, on all parameters."""

    max_grad_norm: float = of_training(1.0, allowed=POSITIVE, own=True)
    """Norm that gradients are clipped to."""

    reconstruction_weight: float = of_training(1.0, allowed=ZERO, recorded=True, own=True)
    """Weight of the reconstruction term, in objectives that do not fix their weights."""

    reconstruction_term: Literal["mse", "fvu"] = of_training("mse", recorded=True, own=True)
    """The reconstruction term, where the objective does not fix it: squared error per dimension, or
    that divided by the variance of the embeddings."""

    ce_weight: float = of_training(1.0, allowed=ZERO, own=True)
    """Weight of the cross-entropy term, likewise."""

    balancing: Literal["fixed", "equal_gradient_norms", "uncertainty"] = of_training(
        "fixed", recorded=True
    )
    """How several terms are weighted: by the weights above, or by one of two published rules that
    replace them (`stage1/training/balancing.py`)."""

    padding_layout: Literal["as_found", "no_labels_on_padding", "no_gap", "no_padding"] = (
        of_training("as_found", searched=True, own=True)
    )
    """Objective `as_found` only: padding stands before the answer and is labelled, as found, or
    loses its labels, the gap before the answer, or both."""

    labels_on: Literal["prompt_and_answer", "answer"] = of_training(
        "prompt_and_answer", searched=True, own=True
    )
    """Objective `as_found` only: whether the prompt's tokens have labels, as found, or none."""

    gold_fraction: float = of_training(0.25, allowed=SHARE, own=True)
    """On-policy training: share of each batch that keeps its gold answers."""

    temperature: float = of_training(0.0, allowed=ZERO)
    """On-policy training: temperature of sampled answers; 0 decodes greedily."""

    selection_every: int = of_training(100, allowed=ZERO)
    """Steps between evaluations on the selection split; 0 evaluates at the end only."""

    gradients_every: int = of_training(0, allowed=ZERO)
    """Steps between readings of each term's gradient, if there are several terms; 0 takes none."""

    checkpoint_every: int = of_training(100, allowed=ZERO, **no_effect, own=True)
    """Steps between checkpoints, from which an interrupted training resumes; 0 writes none."""

    # evaluation
    max_new_tokens: int = of_evaluation(20, allowed=ONE)
    """Maximum length of a greedily generated answer (tokens)."""

    eval_batch_size: int = of_evaluation(64, allowed=ONE)
    """Prompts per batch of generation (examples)."""

    # criteria: the analysis's thresholds, F1 in percent
    baseline_f1: float = criterion(82.0, **no_effect)
    """F1 that the analysis reports for Llama-3.1-8B from its original embeddings; the ceiling of
    the other criteria where they are stated as retention."""

    target_f1: float = criterion(70.0, **no_effect)
    """The analysis's target, which decides. A score between `script_f1` and this is a success to
    the script and a miss to the text."""

    script_f1: float = criterion(65.0, **no_effect)
    """Threshold that the analysed script calls a success."""

    failure_f1: float = criterion(50.0, **no_effect)
    """Threshold below which the analysis calls the adapter a failure."""

    equivalence_margin: float = criterion(2.0, allowed=ZERO, **no_effect)
    """Two objectives whose F1 differs by less than this are called equivalent (points)."""

    def __post_init__(self):
        object.__setattr__(self, "faults", gallery.canonical(self.faults))
        check(self)
        adapter = self.architecture, self.projection
        gallery.check(self.faults, self.objective, self.packed, *adapter)
        top = 100.0
        for name in CRITERIA:
            value = getattr(self, name)
            require(0 < value <= top, name, value, f"above 0, at most {top:g}")
            top = value
        for name, only in WITHOUT_EFFECT[self.architecture].items():
            allowed = f"{only!r} where architecture={self.architecture!r}"
            require(getattr(self, name) == only, name, getattr(self, name), allowed)
        alone = self.device != "sharded" or self.processes == 1
        require(alone, "processes", self.processes, "1 where device='sharded'")
        built_in = self.data == "almanac"
        unused = {"test_data": "", "titles": ""} if built_in else {"answers": "short"}
        for name, only in unused.items():
            value = getattr(self, name)
            require(value == only, name, value, f"{only!r} where data={self.data!r}")

    def replace(self, **changes) -> "StudyConfig":
        """Return a copy with some fields changed. Raises ValueError for an unknown name."""
        check_names(changes)
        if "faults" in changes:  # a preset lists them
            changes["faults"] = gallery.canonical(changes["faults"])
        return dataclasses.replace(self, **changes)

    def width(self, D: int) -> int:
        """Return the compressed width K for a language model of width D."""
        if isinstance(self.compressed_width, int):
            return self.compressed_width
        return max(1, round(D / int(self.compressed_width.removeprefix("D/"))))

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def check_names(given, also=()) -> None:
    """Raise ValueError, with the nearest name, for one that is no field and not in `also`."""
    fields = [field.name for field in dataclasses.fields(StudyConfig)]
    for name in given:
        if name not in fields and name not in also:
            raise ValueError(f"unknown parameter {name!r}{nearest(name, [*fields, *also])}")


def presets() -> list[str]:
    """Return the names of the presets in `configs/`."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Return the file of the preset `configs/<name>.yaml`, or of any YAML file by its path.

    Raises ValueError if it does not exist.
    """
    is_path = name.endswith((".yaml", ".yml"))
    path = Path(name).expanduser() if is_path else PRESETS / f"{name}.yaml"
    allowed = f"one of {', '.join(presets())}, or a YAML file{nearest(name, presets())}"
    require(path.is_file(), "preset", name, allowed)
    return path


def load_preset(name: str) -> StudyConfig:
    """Load the preset `configs/<name>.yaml`, or any YAML file by its path.

    Raises ValueError for an unknown name or a file that is not a mapping of fields.
    """
    path = preset_path(name)
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path}: expected `field: value` lines, found {values!r}")
    return StudyConfig(preset=path.stem).replace(**values)


def from_arguments(preset: str, pairs: Iterable[Sequence[str]]) -> StudyConfig:
    """Return a preset changed by a command's `-p FIELD VALUE`, values read as YAML."""
    return load_preset(preset).replace(**{name: yaml.safe_load(value) for name, value in pairs})


def from_notebook(namespace: dict, also: Sequence[str] = ()) -> StudyConfig:
    """Return a notebook's config: its `preset`, overridden by its parameters that are not None.

    Call it as `from_notebook(globals())` before anything else is assigned. Every plain value in the
    namespace counts as a parameter, so a misspelled `papermill -p` fails here, where papermill only
    warns. `also` names parameters that belong to the notebook and not to the config.
    """
    plain = str | int | float | list | tuple | dict | None
    parameters: dict[str, Any] = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in ("In", "Out") and isinstance(value, plain)
    }
    check_names(parameters, also)
    preset = parameters.pop("preset", "quick")
    check_type("preset", preset, str)
    changes = {n: value for n, value in parameters.items() if value is not None and n not in also}
    return load_preset(preset).replace(**changes)
