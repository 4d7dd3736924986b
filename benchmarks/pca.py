"""PCA of token embeddings: from counts, against scikit-learn on one row per token, in one run.

    python benchmarks/pca.py                     # 500k and 2M tokens of 512 dimensions, V=32,000
    python benchmarks/pca.py --large             # V=128,256, D=4,096 from counts, a random table
    python benchmarks/pca.py --large --device cuda     # also on the GPU, after a warm-up

Each method runs in a process of its own, so that its peak memory is its own. The table and the
counts are made before the clock starts; methods that need one row per token make it themselves.
Error is the largest relative difference of an eigenvalue from those of scikit-learn's PCA in
float64, or with `--large` from those of the CPU. `--large` writes OUT with `_large` in its name;
`--divisor` divides all sizes, to try the program.
"""

import multiprocessing

import common
import numpy as np
import pandas as pd
import torch

from stage1 import store
from stage1.compress import fit_pca

BATCH = 16_384  # tokens that IncrementalPCA sees at a time
SMALL, LARGE = ([500_000, 2_000_000], 32_000, 512), ([10_000_000], 128_256, 4_096)
"""Tokens, vocabulary and width."""


def problem(tokens: int, vocabulary: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a table with a decaying spectrum, and Zipf counts that sum to `tokens`."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.linspace(1, 0.1, width)
    table = torch.randn(vocabulary, width, generator=generator)
    table.mul_(spectrum).add_(0.2)  # in place, lest making it takes more memory than the fit
    shares = 1 / np.arange(1, vocabulary + 1)
    counts = np.random.default_rng(0).multinomial(tokens, shares / shares.sum())
    return table, torch.from_numpy(counts)


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


def all_tokens(table: torch.Tensor, counts: torch.Tensor) -> np.ndarray:
    from sklearn.decomposition import PCA

    rows = table.double().repeat_interleave(counts, 0).numpy()
    return PCA(copy=False).fit(rows).explained_variance_


METHODS = {
    "from counts": from_counts,
    "IncrementalPCA": incremental,
    "PCA, all tokens": all_tokens,
}


def measure(connection, method: str, tokens: int, vocabulary: int, width: int, name: str) -> None:
    torch.set_num_threads(2)
    device = torch.device(name)
    table, counts = problem(tokens, vocabulary, width)
    table = table.to(device)
    if name == "cuda":
        METHODS[method](table, counts)
        common.reset_peak(device)
    before = common.peak(device)
    begin = common.clock(device)
    variances = METHODS[method](table, counts)
    seconds = common.clock(device) - begin
    connection.send((seconds, (common.peak(device) - before) / 2**20, variances))


def run(*arguments) -> tuple[float, float, np.ndarray]:
    """Return seconds, growth of the peak memory in MiB and the spectrum, from a new process."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender, *arguments))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def error(variances: np.ndarray, reference: np.ndarray) -> str:
    return f"{float(np.abs(variances / reference - 1).max()):.1e}"


def compare(sizes: list[int], vocabulary: int, width: int) -> pd.DataFrame:
    rows = []
    for tokens in sizes:
        results = {name: run(name, tokens, vocabulary, width, "cpu") for name in METHODS}
        reference, slowest = results["PCA, all tokens"][2], results["IncrementalPCA"][0]
        for method, (seconds, memory, variances) in results.items():
            row = {"tokens": tokens, "D": width, "method": method, "seconds": seconds}
            row |= {"times faster than IncrementalPCA": slowest / seconds}
            rows.append(row | {"peak memory MiB": memory, "error": error(variances, reference)})
    return pd.DataFrame(rows)


def large(devices: list[str], sizes: list[int], vocabulary: int, width: int) -> pd.DataFrame:
    """Measure the fit from counts on each device, with errors against the first."""
    (tokens,), rows = sizes, []
    results = {name: run("from counts", tokens, vocabulary, width, name) for name in devices}
    for device, (seconds, memory, variances) in results.items():
        row = {"V": vocabulary, "D": width, "tokens": tokens, "device": device, "seconds": seconds}
        largest = error(variances, results[devices[0]][2])
        rows.append(row | {"peak memory MiB": memory, "error": largest})
    return store.traced(pd.DataFrame(rows))


def main() -> None:
    options = {"large": False, "device": "cpu", "divisor": 1}
    given = common.parser(__doc__, "pca.csv", **options).parse_args()
    sizes, *shape = LARGE if given.large else SMALL
    sizes, shape = [n // given.divisor for n in sizes], [n // given.divisor for n in shape]
    if given.large:
        table = large(sorted({"cpu", given.device}), sizes, *shape)
        out = given.out.with_stem(given.out.stem + "_large")
    else:
        table, out = compare(sizes, *shape), given.out
    table.to_csv(out, index=False, float_format="%.3g")
    print(table.to_string(index=False, float_format="%.3g"))


if __name__ == "__main__":
    main()
