"""What lies beside the package in the repository lies inside it in a wheel; see `stage1/config.py`.

The rest of the build is in pyproject.toml.
"""

from setuptools import find_packages, setup

FOLDERS = {
    "stage1.presets": "configs",
    "stage1.records": "records",
    "stage1.benchmarks": "benchmarks/results",
}
setup(packages=[*find_packages(include=["stage1*"]), *FOLDERS], package_dir=FOLDERS)
