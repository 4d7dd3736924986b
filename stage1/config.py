"""One frozen `StudyConfig` per run: YAML presets, notebook parameters, and errors that name the field."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

PRESETS = Path(__file__).resolve().parent.parent / "configs"
NOT_NEGATIVE = (
    "seed", "data_seed", "threads", "train_examples", "selection_examples", "weight_decay", "reconstruction_weight",
    "ce_weight", "temperature", "selection_every", "gradients_every", "checkpoint_every", "equivalence_margin",
)  # fmt: skip
AT_LEAST_ONE = (
    "seeds", "test_examples", "compressed_width", "epochs", "eval_batch_size", "max_prompt_tokens", "max_answer_tokens",
    "max_new_tokens", "processes",
)  # fmt: skip
CRITERIA = ("baseline_f1", "target_f1", "script_f1", "failure_f1")
"""Thresholds of F1 in percent, none above the one before it."""


@dataclass(frozen=True)
class StudyConfig:
    """Everything a run depends on. Fields are checked on construction; TypeError or ValueError names the field."""

    preset: str = "quick"
    """Name of the preset the values came from; also the folder of its records under `runs/`."""

    seed: int = 0
    """Seeds one adapter: its initial weights, the order of its examples, its sampling (dimensionless, >= 0)."""

    seeds: int = 1
    """Adapters that the report trains per objective: seeds 0, 1, ... (count)."""

    data_seed: int = 0
    """Seeds the corpus, the choice of examples and the random projection (dimensionless, >= 0)."""

    threads: int = 0
    """CPU threads for torch in this process; 0 leaves torch's own choice."""

    # data
    data: str = "almanac"
    """`almanac` (built in), a dataset id on the hub such as `rajpurkar/squad`, a SQuAD v1.1 JSON file, or a folder
    written by `datasets.save_to_disk`."""

    train_examples: int = 10_000
    """Questions to train on (examples, before those whose answer is cut are dropped)."""

    selection_examples: int = 500
    """Questions to choose hyperparameters on (examples); they share no article with the others."""

    test_examples: int = 1_000
    """Questions to report on (examples)."""

    test_names: typing.Literal["seen", "unseen"] = "unseen"
    """Almanac only: whether test passages use names that training passages may contain, or names held out of them."""

    prompt_template: typing.Literal["plain", "chat"] = "plain"
    """`plain` is "Context: ... Question: ... Answer:"; `chat` is the tokenizer's own chat template."""

    max_prompt_tokens: int = 160
    """Length budget of a prompt (tokens, begin token included). A longer prompt loses the end of its context."""

    max_answer_tokens: int = 20
    """Length budget of a gold answer (tokens, end token included); longer training answers are dropped."""

    # language model
    language_model: str = "shipped"
    """`shipped` (in the package), a local folder with safetensors, or a model id on the hub."""

    shape_only: bool = False
    """Builds the language model from its config alone, with random weights: a rehearsal that needs no download. What it
    scores says nothing, and gets no verdict."""

    dtype: typing.Literal["float32", "bfloat16"] = "float32"
    """Precision of the frozen language model."""

    device: typing.Literal["auto", "cpu", "cuda", "sharded"] = "auto"
    """`auto` takes the GPU where there is one; `sharded` spreads the language model's layers over all GPUs, for a model
    that does not fit one."""

    processes: int = 1
    """Processes that train one adapter together, each on a GPU (or CPU share) of its own, started by
    torch.distributed.run."""

    # how the language model is passed through: less time or memory, the same results up to rounding
    packed: bool = False
    """Training examples share one row without padding, each attending to itself alone."""

    compiled: bool = False
    """`torch.compile` for decoder layers and losses; worth its half minute on a GPU."""

    recomputed: float = 0.0
    """Share of the decoder layers whose activations are computed again in the backward pass instead of kept."""

    matmul: typing.Literal["native", "fp8"] = "native"
    """Arithmetic of the decoder layers: `native` is `dtype`; `fp8` takes weights and activations to eight bits: faster
    on GPUs that have it, and no longer the same model."""

    # compression
    compressed_width: int = 24
    """Width K of the compressed embeddings (dimensions); 24 is an eighth of the shipped model's D=192."""

    weighting: typing.Literal["token", "vocabulary"] = "token"
    """Whether PCA weighs every token of the training prompts alike, or every entry of the vocabulary."""

    # adapter
    initialisation: typing.Literal["random", "pca_inverse"] = "pca_inverse"
    """Where the adapter starts: at random, as found, or exactly at the linear PCA inverse, learning the residual."""

    output_scaling: typing.Literal["unit_rms", "calibrated"] = "calibrated"
    """Where its output norm starts: at one per dimension, as found, or at the statistics of what it must produce."""

    # training
    objective: str = "option3_teacher_forced"
    """Training objective; `stage1/objectives.py` lists them."""

    epochs: int = 3
    """Passes over the training examples, or as many tokens drawn by their counts."""

    batch_size: int | typing.Literal["auto"] = 64
    """Examples per optimizer step; `auto` takes as many as the GPU's memory holds, by a probe before training."""

    micro_batch_size: int | None = None
    """Examples that pass through the language model at a time, gradients adding up to those of the batch; None starts
    with the whole batch. Halved wherever memory runs out."""

    learning_rate: float | None = None
    """Peak of AdamW's schedule; None takes the one chosen on the selection split for this objective and adapter."""

    warmup: float = 0.05
    """Share of the steps with a linearly growing learning rate; a cosine to zero follows."""

    weight_decay: float = 0.01
    """AdamW weight decay, on all parameters."""

    max_grad_norm: float = 1.0
    """Norm that gradients are clipped to."""

    reconstruction_weight: float = 1.0
    """Weight of the reconstruction term where the objective has several terms and does not fix them."""

    reconstruction_term: typing.Literal["mse", "fvu"] = "mse"
    """The reconstruction term itself, where the objective does not fix it: squared error per dimension, or that divided
    by the variance of the embeddings."""

    ce_weight: float = 1.0
    """Weight of the cross-entropy term, likewise."""

    balancing: typing.Literal["fixed", "equal_gradient_norms", "uncertainty"] = "fixed"
    """How several terms are weighed against each other: by the weights above, or by one of two published rules that
    replace them (`stage1/loss_scale.py`)."""

    gold_fraction: float = 0.25
    """On-policy training: share of each batch that is supervised on gold instead of generated answers."""

    temperature: float = 0.0
    """On-policy training: temperature of sampled answers; 0 decodes greedily."""

    selection_every: int = 100
    """Steps between evaluations on the selection split; 0 evaluates at the end only."""

    gradients_every: int = 0
    """Steps between readings of each term's gradient, where the objective has several terms; 0 takes none."""

    checkpoint_every: int = 100
    """Steps between checkpoints, from which an interrupted training resumes; 0 writes none."""

    # evaluation
    max_new_tokens: int = 20
    """Length at which greedy generation stops if the end token has not come (tokens)."""

    eval_batch_size: int = 64
    """Prompts generated for at a time (examples)."""

    # what the results are held against: the analysis's criteria, F1 in percent
    baseline_f1: float = 82.0
    """What the analysis reports for Llama-3.1-8B from its original embeddings; other criteria are divided by it to be
    stated as a share of the ceiling."""

    target_f1: float = 70.0
    """The analysis's target. It decides; what lies between `script_f1` and this is called a success by the script and
    a miss by the text."""

    script_f1: float = 65.0
    """What the analysed script calls a success."""

    failure_f1: float = 50.0
    """Below this the analysis calls the adapter a failure."""

    equivalence_margin: float = 2.0
    """Two objectives whose F1 differs by less than this are called equivalent (points)."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_type(field.name, getattr(self, field.name), typing.get_type_hints(type(self))[field.name])
        for name in NOT_NEGATIVE:
            require(0 <= getattr(self, name) < math.inf, name, getattr(self, name), "zero or more")
        for name in AT_LEAST_ONE:
            require(getattr(self, name) >= 1, name, getattr(self, name), "one or more")
        for name in ("batch_size", "micro_batch_size"):
            size = getattr(self, name)
            require(size in (None, "auto") or size >= 1, name, size, "one or more")
        for name in ("warmup", "gold_fraction", "recomputed"):
            require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "0 to 1")
        for name, top in zip(CRITERIA, (100.0, *(getattr(self, name) for name in CRITERIA)), strict=False):
            require(0 < getattr(self, name) <= top, name, getattr(self, name), f"above 0, at most {top:g}")
        sharded = self.device == "sharded"
        require(not (sharded and self.processes > 1), "processes", self.processes, "1 where device='sharded'")
        rate = self.learning_rate
        require(rate is None or 0 < rate < math.inf, "learning_rate", rate, "a positive number, or None")

    def replace(self, **changes) -> "StudyConfig":
        """A copy with some fields changed; unknown names are refused."""
        check_names(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)


def require(condition: bool, name: str, value, allowed: str) -> None:
    """Raise ValueError naming the field, its value and what is allowed, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name}={value!r}: expected {allowed}")


def check_type(name: str, value, expected, also: tuple = ()) -> None:
    """Raise TypeError (or ValueError for a Literal) unless the value has the field's type; an int serves as a float.
    `also` are values allowed besides."""
    if typing.get_origin(expected) in (typing.Union, types.UnionType):  # `float | None`, `int | Literal["auto"]`
        expected, other = typing.get_args(expected)
        also = (None,) if other is types.NoneType else typing.get_args(other)
        return None if value in also else check_type(name, value, expected, also)
    if typing.get_origin(expected) is typing.Literal:
        choices = typing.get_args(expected)
        hint = nearest(value, choices) if isinstance(value, str) else ""
        return require(value in choices, name, value, f"one of {', '.join(map(repr, choices))}{hint}")
    fits = isinstance(value, expected) or (expected is float and isinstance(value, int))
    if not fits or (isinstance(value, bool) and expected is not bool):
        hint = "".join(f" or {other!r}" for other in also if other is not None)
        if isinstance(value, str):
            hint += {bool: " (write True or False, capitalised)", float: " (write 1.0e-4, not 1e-4)"}.get(expected, "")
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected {expected.__name__}{hint}")


def nearest(name: str, names) -> str:
    """`; did you mean 'x'?`, for the only name that begins so or the closest one; nothing where none is close."""
    begun = [known for known in names if name and known.startswith(name)]
    close = begun if len(begun) == 1 else difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_names(given, also=()) -> None:
    """Raise ValueError for a name that is no field of StudyConfig (nor in `also`), with the nearest one that is."""
    fields = [field.name for field in dataclasses.fields(StudyConfig)]
    for name in given:
        if name not in fields and name not in also:
            raise ValueError(f"unknown parameter {name!r}{nearest(name, [*fields, *also])}")


def presets() -> list[str]:
    """Names of the presets in `configs/`."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> StudyConfig:
    """The preset `configs/<name>.yaml`, or any YAML file by its path. Raises ValueError for an unknown one."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(presets())
        raise ValueError(f"preset={name!r}: expected one of {known}, or a YAML file{nearest(name, presets())}")
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path}: expected `field: value` lines, found {values!r}")
    return StudyConfig(preset=path.stem).replace(**values)


def from_notebook(namespace: dict, also: Sequence[str] = ()) -> StudyConfig:
    """The config a notebook's parameters ask for: its `preset`, with every other parameter that is not None on top.

    Call it as `from_notebook(globals())` before anything else is assigned. Every plain value in the namespace counts as
    a parameter, so a misspelled `papermill -p` stops here, where papermill itself only warns. `also` names parameters
    that belong to the notebook and not to the config.
    """
    parameters = {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_")
        and name not in ("In", "Out")
        and isinstance(value, str | int | float | list | tuple | dict | None)
    }
    check_names(parameters, also)
    preset = parameters.get("preset", "quick")
    check_type("preset", preset, str)
    changes = {name: value for name, value in parameters.items() if value is not None and name not in ("preset", *also)}
    return load_preset(preset).replace(**changes)
