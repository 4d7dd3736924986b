"""The package as a whole."""

import subprocess
import sys
from pathlib import Path


def test_scores_need_no_torch():
    code = "import sys, stage1.scoring; assert 'torch' not in sys.modules"
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
