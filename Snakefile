# The DAG of papermill runs: every notebook of a preset, executed and rendered. `make report` calls it.
#
# The executed notebook is a log, not an output: Snakemake deletes outputs when a job starts or fails, and a failed
# notebook is what one wants to look at. Records and HTML pages are outputs, so an interrupted step is redone whole;
# checkpoints and adapters are not declared, so an interrupted training resumes.
# One thread per job: two jobs side by side finish sooner than one after the other with two threads each.
# Jobs ask for the GPUs they use where there are any. `--resources gpu=N` says how many there are, and Snakemake lowers
# what a job asks for to that: with 0, nothing waits. On Slurm it goes to sbatch as it is.

from snakemake.exceptions import WorkflowError

from pathlib import Path

from stage1.config import load_preset
from stage1.machine import gpus
from stage1.names import OBJECTIVES
from stage1.report.dependencies import package_files

PRESET = config.get("preset", "quick")
GIVEN = {name: config[name] for name in ("seeds", "processes") if name in config}
try:
    STUDY = load_preset(PRESET).replace(**GIVEN)
except (ValueError, TypeError) as error:
    raise WorkflowError(error)
FEWER = f" -p seeds {config['seeds']}" if "seeds" in config else ""  # for notebooks that read all adapters
TOGETHER = f" -p processes {config['processes']}" if "processes" in config else ""  # for the one that trains them
RUN, REPORT = f"runs/{PRESET}", f"reports/{PRESET}"
ADAPTER = RUN + "/adapters/{objective}-seed{seed}"
ALL = {"objective": list(OBJECTIVES), "seed": list(range(STUDY.seeds))}
SEPARATE = ["01_data_and_pca", "03_generation_eval", "04_loss_magnitude", "05_report"]
TRAINED = expand("02_train_adapter-{objective}-seed{seed}", **ALL)
GPU_RECORDS = [
    *expand("records/full/runs_{budget}.csv", budget=["10000x3", "640x2", "2500x3", "40000x3"]),
    *expand("records/full/{file}", file=["runs_10000x3.parquet", "runs_10000x3.gradients.parquet", "untrained.csv", "balancing.csv"]),
    *expand("records/quick/weights.{kind}", kind=["csv", "gradients.parquet"]),
    *expand("benchmarks/results/{name}.csv", name=["as_found_padding", "objective_cost", "train_step_largest"]),
]


def inputs(notebook):
    """What a step depends on besides records: its notebook, what that imports, the preset and the package's assets."""
    path = f"notebooks/{notebook}.ipynb"
    assets = sorted(str(path) for path in Path("stage1/assets").rglob("*") if path.is_file())
    return [path, f"configs/{PRESET}.yaml", *package_files(Path(path)), *assets]


localrules:
    index,


rule all:
    input:
        f"{REPORT}/index.html",


rule data_and_pca:
    input:
        inputs("01_data_and_pca"),
    output:
        record=f"{RUN}/01_data_and_pca.json",
        predictions=f"{RUN}/01_data_and_pca.parquet",
        page=f"{REPORT}/01_data_and_pca.html",
    log:
        f"{RUN}/notebooks/01_data_and_pca.ipynb",
    priority: 2  # the longest jobs first
    resources:
        gpu=gpus.needed("01_data_and_pca", STUDY),
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET} {output.page}"


rule train_adapter:
    input:
        inputs("02_train_adapter"),
    output:
        record=ADAPTER + "/record.json",
        curve=ADAPTER + "/curve.parquet",
        answers=ADAPTER + "/answers.parquet",
        page=REPORT + "/02_train_adapter-{objective}-seed{seed}.html",
    log:
        RUN + "/notebooks/02_train_adapter-{objective}-seed{seed}.ipynb",
    priority: 1
    threads: STUDY.processes
    resources:
        gpu=gpus.needed("02_train_adapter", STUDY),
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET} {output.page}"
        " -p objective {wildcards.objective} -p seed {wildcards.seed}{TOGETHER}"


rule generation_eval:
    input:
        inputs("03_generation_eval"),
        expand(ADAPTER + "/{file}", file=["record.json", "curve.parquet", "answers.parquet"], **ALL),
    output:
        record=f"{RUN}/03_generation_eval.json",
        answers=f"{RUN}/03_generation_eval.parquet",
        page=f"{REPORT}/03_generation_eval.html",
    log:
        f"{RUN}/notebooks/03_generation_eval.ipynb",
    threads: 2
    resources:
        gpu=gpus.needed("03_generation_eval", STUDY),
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET} {output.page}{FEWER}"


rule loss_magnitude:
    input:
        inputs("04_loss_magnitude"),
        GPU_RECORDS,
        expand(ADAPTER + "/record.json", **ALL),
    output:
        record=f"{RUN}/04_loss_magnitude.json",
        page=f"{REPORT}/04_loss_magnitude.html",
    log:
        f"{RUN}/notebooks/04_loss_magnitude.ipynb",
    resources:
        gpu=gpus.needed("04_loss_magnitude", STUDY),
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET} {output.page}{FEWER}"


rule report:
    input:
        inputs("05_report"),
        GPU_RECORDS,
        this_run=f"{RUN}/03_generation_eval.json",
    output:
        record=f"{RUN}/05_report.json",
        page=f"{REPORT}/05_report.html",
    log:
        f"{RUN}/notebooks/05_report.ipynb",
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET} {output.page}"


rule index:
    input:
        expand(REPORT + "/{page}.html", page=[*SEPARATE, *TRAINED]),
    output:
        f"{REPORT}/index.html",
    params:
        executed=expand(RUN + "/notebooks/{page}.ipynb", page=[SEPARATE[0], *TRAINED, *SEPARATE[1:]]),
    shell:
        "python -m stage1.report.pages index {REPORT} {PRESET} {params.executed}"
