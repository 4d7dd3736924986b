# The DAG of papermill runs: every notebook of a preset, executed and rendered. `make report` calls it.
#
# The executed notebook is a log, not an output: Snakemake deletes outputs when a job starts or fails, and a failed
# notebook is what one wants to look at. Records and HTML pages are outputs, so an interrupted step is redone whole;
# checkpoints and adapters are not declared, so an interrupted training resumes.
# One thread per job: two jobs side by side finish sooner than one after the other with two threads each.

from snakemake.exceptions import WorkflowError

from stage1.config import load_preset
from stage1.objectives import OBJECTIVES

PRESET = config.get("preset", "quick")
try:
    SEEDS = range(load_preset(PRESET).seeds)
except (ValueError, TypeError) as error:
    raise WorkflowError(error)
RUN, REPORT = f"runs/{PRESET}", f"reports/{PRESET}"
ADAPTER = RUN + "/adapters/{objective}-seed{seed}"
ALL = {"objective": list(OBJECTIVES), "seed": list(SEEDS)}
READING = ("almanac", "grammar", "data", "prompts", "language_model", "compress", "generation", "scoring", "plots")
TRAINING = ("adapter", "objectives", "evaluate", "train", "study")


def inputs(*modules):
    """What every step depends on besides its notebook; editing any of it runs the step again."""
    names = ("config", "store", "notebooks", *modules)
    model = "stage1/assets/almanac-lm/model.safetensors"
    return [f"configs/{PRESET}.yaml", "stage1/assets/almanac.yaml", model, *(f"stage1/{name}.py" for name in names)]


rule all:
    input:
        f"{REPORT}/01_data_and_pca.html",
        expand(REPORT + "/02_train_adapter-{objective}-seed{seed}.html", **ALL),
        f"{REPORT}/03_generation_eval.html",


rule data_and_pca:
    input:
        inputs(*READING, "evaluate"),
        notebook="notebooks/01_data_and_pca.ipynb",
    output:
        record=f"{RUN}/01_data_and_pca.json",
        predictions=f"{RUN}/01_data_and_pca.parquet",
        page=f"{REPORT}/01_data_and_pca.html",
    log:
        f"{RUN}/notebooks/01_data_and_pca.ipynb",
    priority: 2  # the longest jobs first
    shell:
        "python -m stage1.notebooks {input.notebook} {PRESET} {output.page}"


rule train_adapter:
    input:
        inputs(*READING, *TRAINING),
        notebook="notebooks/02_train_adapter.ipynb",
        rates="stage1/assets/learning_rates.csv",
    output:
        record=ADAPTER + "/record.json",
        curve=ADAPTER + "/curve.parquet",
        answers=ADAPTER + "/answers.parquet",
        page=REPORT + "/02_train_adapter-{objective}-seed{seed}.html",
    log:
        RUN + "/notebooks/02_train_adapter-{objective}-seed{seed}.ipynb",
    priority: 1
    shell:
        "python -m stage1.notebooks {input.notebook} {PRESET} {output.page}"
        " -p objective {wildcards.objective} -p seed {wildcards.seed}"


rule generation_eval:
    input:
        inputs(*READING, *TRAINING, "results"),
        expand(ADAPTER + "/{file}", file=["record.json", "curve.parquet", "answers.parquet"], **ALL),
        expand("records/full/{file}", file=["runs_10000x3.csv", "runs_10000x3.parquet", "runs_640x2.csv", "untrained.csv"]),
        notebook="notebooks/03_generation_eval.ipynb",
    output:
        record=f"{RUN}/03_generation_eval.json",
        answers=f"{RUN}/03_generation_eval.parquet",
        page=f"{REPORT}/03_generation_eval.html",
    log:
        f"{RUN}/notebooks/03_generation_eval.ipynb",
    threads: 2
    shell:
        "python -m stage1.notebooks {input.notebook} {PRESET} {output.page}"
