# The DAG of the report: every notebook of a preset, executed by papermill and rendered. `make report` calls it.
#
# Snakemake deletes the outputs of a job when it starts or fails. Records and HTML pages are outputs, so an interrupted
# step is redone from scratch. The executed notebook is a log: that of a failed step stays readable. Checkpoints and
# adapters are not declared, so an interrupted training resumes.
# Most jobs run with one thread: two jobs side by side finish sooner than one after the other with two threads each.
# Jobs request the GPUs they use. `--resources gpu=N` states how many there are, and Snakemake caps a job's request at
# N, so with 0 no job waits for a GPU. Slurm receives the request unchanged.

from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from stage1 import store
from stage1.config import load_preset, preset_path
from stage1.machine import gpus
from stage1.names import OBJECTIVES
from stage1.report import steps
from stage1.report.dependencies import from_root, package_files

PRESET = config.get("preset", "quick")
GIVEN = {name: config[name] for name in ("seeds", "processes") if name in config}
try:
    STUDY = load_preset(PRESET).replace(**GIVEN)
except (ValueError, TypeError) as error:
    raise WorkflowError(error)
# Options passed on to the notebooks that read all adapters, and to the one that trains them.
SEEDS = f" -p seeds {config['seeds']}" if "seeds" in config else ""
PROCESSES = f" -p processes {config['processes']}" if "processes" in config else ""
NAME = store.run_name(STUDY)
RUN, REPORT = f"runs/{NAME}", f"reports/{NAME}"
shown = workflow.output_settings
if workflow.is_main_process and not (shown.dryrun or shown.verbose):
    steps.attach(logger, Path(RUN), Path(REPORT))
ADAPTER = RUN + "/adapters/{objective}-seed{seed}"
ALL = {"objective": list(OBJECTIVES), "seed": list(range(STUDY.seeds))}
SEPARATE = ["00_explore", "01_data_and_pca", "03_generation_eval", "04_loss_magnitude", "05_report", "06_fault_gallery", "07_english"]
TRAINED = expand("02_train_adapter-{objective}-seed{seed}", **ALL)
GPU_RECORDS = [
    *expand("records/full/runs_{budget}.csv", budget=["10000x3", "640x2", "2500x3", "40000x3"]),
    "records/full/runs_warmup.csv",
    "records/full/runs_warmup.parquet",
    "records/full/runs_10000x3.parquet",
    "records/full/runs_10000x3.gradients.parquet",
    "records/full/untrained.csv",
    "records/full/balancing.csv",
    "records/quick/weights.csv",
    "records/quick/weights.gradients.parquet",
    "benchmarks/results/as_found_padding.csv",
    "benchmarks/results/objective_cost.csv",
    "benchmarks/results/train_step_largest.csv",
]
CONTROL_RECORDS = [
    *expand("records/full/runs_{name}.parquet", name=["models", "ratios", "baselines"]),
    *expand("records/full/runs_{name}.csv", name=["warmup_471", "models"]),
    *expand("records/full/untrained{name}.csv", name=["_models", "_ratios"]),
    "records/full/untrained.parquet",
    "records/full/trials.csv",
]

# What sweeps over the gallery left: none of them yet, some or all. No rule makes them.
FAULT_RECORDS = sorted(str(path) for path in Path("records/faults").glob("*.*"))
ENGLISH_RECORDS = sorted(str(path) for path in Path("records/english").rglob("*.*"))


def inputs(notebook):
    """Return a step's inputs besides records: its notebook, the preset, the modules it imports, and assets."""
    path = f"notebooks/{notebook}.ipynb"
    assets = sorted(str(asset) for asset in Path("stage1/assets").rglob("*") if asset.is_file())
    return [path, from_root(preset_path(PRESET)), *package_files(Path(path)), *assets]


localrules:
    index,


rule all:
    input:
        f"{REPORT}/index.html",


rule explore:
    input:
        inputs("00_explore"),
        sorted(str(path) for path in Path("records").glob("*/adapters/*/adapter.*")),
    output:
        page=f"{REPORT}/00_explore.html",
    log:
        f"{RUN}/notebooks/00_explore.ipynb",
    resources:
        gpu=gpus.needed("00_explore", STUDY),
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET} {output.page}"


rule data_and_pca:
    input:
        inputs("01_data_and_pca"),
    output:
        record=f"{RUN}/01_data_and_pca.json",
        predictions=f"{RUN}/01_data_and_pca.parquet",
        page=f"{REPORT}/01_data_and_pca.html",
    log:
        f"{RUN}/notebooks/01_data_and_pca.ipynb",
    priority: 2  # long jobs first
    resources:
        gpu=gpus.needed("01_data_and_pca", STUDY),
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}"


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
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}"
        " -p objective {wildcards.objective} -p seed {wildcards.seed}{PROCESSES}"


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
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}{SEEDS}"


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
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}{SEEDS}"


rule report:
    input:
        inputs("05_report"),
        GPU_RECORDS,
        CONTROL_RECORDS,
        this_run=f"{RUN}/03_generation_eval.json",
    output:
        record=f"{RUN}/05_report.json",
        page=f"{REPORT}/05_report.html",
    log:
        f"{RUN}/notebooks/05_report.ipynb",
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}"


rule fault_gallery:
    input:
        inputs("06_fault_gallery"),
        FAULT_RECORDS,
    output:
        page=f"{REPORT}/06_fault_gallery.html",
    log:
        f"{RUN}/notebooks/06_fault_gallery.ipynb",
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}"


rule english:
    input:
        inputs("07_english"),
        ENGLISH_RECORDS,
    output:
        page=f"{REPORT}/07_english.html",
    log:
        f"{RUN}/notebooks/07_english.ipynb",
    shell:
        "python -m stage1.report.notebooks {input[0]} {PRESET:q} {output.page:q}"


rule index:
    input:
        expand(REPORT + "/{page}.html", page=[*SEPARATE, *TRAINED]),
    output:
        f"{REPORT}/index.html",
    params:
        executed=expand(RUN + "/notebooks/{page}.ipynb", page=[*SEPARATE[:2], *TRAINED, *SEPARATE[2:]]),
    shell:
        "python -m stage1.report.pages index {REPORT:q} {STUDY.preset:q} {params.executed:q}"
