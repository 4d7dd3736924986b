# The DAG of papermill runs: every notebook of a preset, executed and rendered. `make report` calls it.
#
# The executed notebook is a log, not an output: Snakemake deletes outputs when a job starts or fails, and a failed
# notebook is what one wants to look at. Records and the HTML page are outputs, so an interrupted step is redone whole.

from snakemake.exceptions import WorkflowError

from stage1.config import load_preset

PRESET = config.get("preset", "quick")
try:
    load_preset(PRESET)
except (ValueError, TypeError) as error:
    raise WorkflowError(error)
RUN, REPORT = f"runs/{PRESET}", f"reports/{PRESET}"


def modules(*names):
    """The modules a step depends on; editing one of them runs the step again."""
    return [f"stage1/{name}.py" for name in ("config", "store", "notebooks", *names)]


rule all:
    input:
        f"{REPORT}/01_data_and_pca.html",


rule data_and_pca:
    input:
        notebook="notebooks/01_data_and_pca.ipynb",
        preset=f"configs/{PRESET}.yaml",
        modules=modules(
            "almanac", "grammar", "data", "prompts", "compress", "language_model", "evaluate", "scoring", "plots"
        ),
        grammar="stage1/assets/almanac.yaml",
        model="stage1/assets/almanac-lm/model.safetensors",
    output:
        record=f"{RUN}/01_data_and_pca.json",
        predictions=f"{RUN}/01_data_and_pca.parquet",
        page=f"{REPORT}/01_data_and_pca.html",
    log:
        f"{RUN}/notebooks/01_data_and_pca.ipynb",
    threads: 2
    shell:
        "python -m stage1.notebooks {input.notebook} {PRESET} {output.page}"
