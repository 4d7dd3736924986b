"""PCA of token embeddings: from counts, against scikit-learn on one row per token, in one run.

    python benchmarks/pca.py                     # 500k and 2M tokens of 512 dimensions, V=32,000
    python benchmarks/pca.py --large             # V=128,256, D=4,096 from counts alone, a random table
    python benchmarks/pca.py --large --device cuda     # the GPU besides, warm and synchronised

Each method runs in a process of its own, so that its peak memory is its own. The table and the counts are made before
the clock starts; materialising the tokens belongs to the methods that need them. Error is the largest relative
difference of an eigenvalue from those of scikit-learn's PCA in float64; in `--large`, from those of the CPU.
"""

import argparse
import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from stage1 import store
from stage1.compress import fit_pca

RESULTS = Path(__file__).parent / "results"
BATCH = 16_384  # tokens that IncrementalPCA sees at a time


def problem(tokens: int, vocabulary: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A table with a decaying spectrum, and Zipf counts that sum to `tokens`."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(1, 0.1, width)
    table = (
        torch.randn(vocabulary, width, generator=generator).mul_(spectrum).add_(0.2)
    )  # lest it outgrow the fit
    shares = 1 / np.arange(1, vocabulary + 1)
    return table, torch.from_numpy(
        np.random.default_rng(0).multinomial(tokens, shares / shares.sum())
    )


def from_counts(table: torch.Tensor, counts: torch.Tensor) -> np.ndarray:
    return fit_pca(table, counts, 64).variances.cpu().numpy()


def incremental(table: torch.Tensor, counts: torch.Tensor) -> np.ndarray:
    from sklearn.decomposition import IncrementalPCA

    ids = torch.repeat_interleave(torch.arange(len(table)), counts)
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))]
    model = IncrementalPCA(n_components=table.shape[1])
    for chunk in ids.split(BATCH):
        if len(chunk) >= table.shape[1]:  # scikit-learn refuses a batch smaller than the components
            model.partial_fit(table[chunk].double().numpy())
    return model.explained_variance_


def materialised(table: torch.Tensor, counts: torch.Tensor) -> np.ndarray:
    from sklearn.decomposition import PCA

    return (
        PCA(copy=False).fit(table.double().repeat_interleave(counts, 0).numpy()).explained_variance_
    )


METHODS = {
    "from counts": from_counts,
    "IncrementalPCA": incremental,
    "PCA, all tokens": materialised,
}


def peak(device: str) -> float:
    """MiB: of the GPU's allocations, or of resident memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measure(connection, method: str, tokens: int, vocabulary: int, width: int, device: str) -> None:
    torch.set_num_threads(2)
    table, counts = problem(tokens, vocabulary, width)
    table = table.to(device)
    if device == "cuda":
        METHODS[method](table, counts)
        torch.cuda.reset_peak_memory_stats()
    before = peak(device)
    begin = time.perf_counter()
    variances = METHODS[method](table, counts)  # on the CPU at last, so that a GPU has finished
    seconds = time.perf_counter() - begin
    connection.send((seconds, peak(device) - before, variances))


def run(
    method: str, tokens: int, vocabulary: int, width: int, device: str = "cpu"
) -> tuple[float, float, np.ndarray]:
    """Seconds, growth of the peak memory in MiB, and the spectrum."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=measure, args=(sender, method, tokens, vocabulary, width, device)
    )
    process.start()
    result = receiver.recv()
    process.join()
    return result


def compare(sizes: list[int], vocabulary: int, width: int) -> pd.DataFrame:
    rows = []
    for tokens in sizes:
        results = {method: run(method, tokens, vocabulary, width) for method in METHODS}
        reference, slowest = results["PCA, all tokens"][2], results["IncrementalPCA"][0]
        for method, (seconds, peak, variances) in results.items():
            error = float(np.abs(variances / reference - 1).max())
            rows.append([tokens, width, method, seconds, slowest / seconds, peak, f"{error:.1e}"])
    names = [
        "tokens",
        "D",
        "method",
        "seconds",
        "times faster than IncrementalPCA",
        "peak memory MiB",
        "error",
    ]
    return pd.DataFrame(rows, columns=names)


def large(
    devices: list[str], vocabulary: int = 128_256, width: int = 4_096, tokens: int = 10_000_000
) -> pd.DataFrame:
    """From counts alone, on each device; the first is the one that errors are measured from."""
    results = {device: run("from counts", tokens, vocabulary, width, device) for device in devices}
    reference, rows = results[devices[0]][2], []
    for device, (seconds, memory, variances) in results.items():
        error = float(np.abs(variances / reference - 1).max())
        rows.append([vocabulary, width, tokens, device, seconds, memory, f"{error:.1e}"])
    return pd.DataFrame(
        rows, columns=["V", "D", "tokens", "device", "seconds", "peak memory MiB", "error"]
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true")
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="with --large: cuda beside the CPU"
    )
    given = parser.parse_args()
    if given.large:
        table, results = large(sorted({"cpu", given.device})), RESULTS / "pca_large.csv"
        store.traced(table).to_csv(results, index=False, float_format="%.3g")
    else:
        table, results = compare([500_000, 2_000_000], 32_000, 512), RESULTS / "pca.csv"
        table.to_csv(results, index=False, float_format="%.3g")
    print(table.to_string(index=False, float_format="%.3g"))
