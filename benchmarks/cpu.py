"""Sampling on a CPU beside the reference, float32, both in turn in one process; and what no sampler there goes below.

The floor of a token is its products at the machine's rate, or its weights read once at its bandwidth, and the mean of
what is written of the cache read once. Measured beside it: the same products alone, by the same library, with the
weights as they lie and as MKL packs them beforehand.

`python -m benchmarks.cpu --reference FOLDER` (see benchmarks/reference.py). Writes benchmarks/results/cpu-<date>.json.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measuring import Report, paired, row, timed
from benchmarks.networks import llamagen_config, parameters_of, random_policy, random_text
from benchmarks.reference import open_reference, reference_policy, reference_sampling
from rank_e.backbones.llamagen.policy import Policy, PolicyConfig
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import seed_for

WORLD = PolicyConfig(
    dim=128, n_layer=6, n_head=4, vocab_size=256, block_size=36, cls_token_num=9, caption_dim=64, multiple_of=32
)
CASES = {
    "the embedded world's policy, 16 prompts x 8, guidance 2": (WORLD, 16, 8, SamplingConfig(2.0), 5),
    "LlamaGen-B, 256 tokens, 1 prompt x 8, guidance 6": (
        llamagen_config("B"),
        1,
        8,
        SamplingConfig(6.0, top_k=1000),
        3,
    ),
}


def products(policy: Policy, rows: int, packed: bool) -> Callable[[], None]:
    """All of a sample's products with weights, `rows` rows of each token, and nothing else."""
    weights = [weight for layer in policy.layers for weight in layer.parameters() if weight.ndim == 2]
    weights.append(policy.output.weight)
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1]) for weight in weights}
    if packed:
        mkl = torch.ops.mkl
        blocks = [(mkl._mkl_reorder_linear_weight(weight, rows), weight) for weight in weights]
        calls = [
            lambda b=block, w=weight: mkl._mkl_linear(inputs[w.shape[1]], b, w, None, rows) for block, weight in blocks
        ]
    else:
        calls = [lambda w=weight: F.linear(inputs[w.shape[1]], w) for weight in weights]

    @torch.no_grad()
    def run() -> None:
        for _ in range(policy.length):
            for call in calls:
                call()

    return run


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reference", type=Path, help="the reference's checkout; without it ours alone")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.reference is not None:
        open_reference(given.reference)
    device = torch.device("cpu")
    report = Report("cpu", device)
    one, side = torch.empty(2**26), 2048
    other, square = torch.empty_like(one), torch.randn(side, side)
    bandwidth = 2 * one.nbytes / timed(lambda: other.copy_(one), device, 5).seconds
    rate = 2 * side**3 / timed(lambda: square @ square, device, 5).seconds
    hardware = {"copy_GB_per_s": round(bandwidth / 1e9, 1), "float32_GFLOP_per_s": round(rate / 1e9, 1)}
    report.head["hardware"] = hardware
    for name, (config, prompts, repeats, sampling, times) in CASES.items():
        with report.case(name):
            policy = random_policy(config, device, torch.float32)
            text, mask = random_text(prompts, config, device, torch.float32)
            seeds = [seed_for(0, "benchmark", index) for index in range(prompts * repeats)]
            sampler = Sampler(policy, sampling, batch_size=len(seeds))

            def ours(sampler: Sampler = sampler, inputs: tuple = (text, mask, seeds, repeats)) -> object:
                return sampler(*inputs)

            weights, rows = parameters_of(policy), sampling.branches * len(seeds)
            cached = 4 * rows * config.n_layer * config.dim * (config.block_size + 1)  # keys and values, on average
            step = max(4 * weights / bandwidth, 2 * rows * weights / rate) + cached / bandwidth
            floor = config.block_size * step
            note = f"{weights / 1e6:.1f} M parameters, {len(seeds)} images"
            for kind, packed in (("alone", False), ("alone, weights packed", True)):
                found = timed(products(policy, rows, packed), device, times)
                report.add(row(f"{name}: its products {kind}", found, note=note))
            if given.reference is None:
                report.add(row(name, timed(ours, device, times), floor=floor, note=note))
                continue
            model = reference_policy(config, device, torch.float32)
            theirs = reference_sampling(model, text, mask, repeats, sampling)
            report.add(row(name, *paired(ours, theirs, device, times), floor, note))


if __name__ == "__main__":
    main()
