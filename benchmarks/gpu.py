"""What one GPU does at published sizes, beside the reference and beside what the hardware allows; random weights.

    python -m benchmarks.gpu [--reference FOLDER] [--only CASE ...]

Needs torch, transformers, safetensors, numpy, pandas, pyarrow, open_clip, lpips, and accelerate and torchvision for the
reference. Writes benchmarks/results/gpu-<date>.json after every row; what could not be measured is null and says why.
Under 8 minutes on an H100: a case that would begin after LIMIT seconds is left out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Report, Row, Timed, row, timed
from benchmarks.networks import (
    PUBLISHED,
    SMALL,
    Sizes,
    clip_reward,
    decoder_nets,
    janus_policy,
    janus_text,
    lpips,
    parameters_of,
    random_policy,
    random_text,
    ranked_images,
    tokenizer,
)
from benchmarks.reference import ReferenceTrainer, open_reference, reference_policy, reference_sampling
from rank_e.backbones.llamagen.tokenizer import Tokenizer
from rank_e.backbones.protocol import PolicyModel
from rank_e.config import load
from rank_e.precision import Precision
from rank_e.rewards.mixture import Mixture, Term
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.sampling.scoring import score
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.lpips_vgg import LpipsVGG
from rank_e.training.policy_update import PolicyUpdate, Rollouts
from rank_e.training.ranked_images import RankedImages

LIMIT = 420.0
PROFILE = Path(__file__).parents[1] / "profiles" / "llamagen-xl-clip.yaml"
GUIDED = SamplingConfig(6.0, top_k=1000)
HALF = torch.bfloat16


class Hardware:
    """What this card does at best: bytes per second of a copy, operations per second of products."""

    def __init__(self, report: Report, device: torch.device, side: int) -> None:
        count = 32 * side**2
        one = torch.empty(count, dtype=torch.uint8, device=device)
        other = torch.empty_like(one)
        self.bandwidth = 2 * count / timed(lambda: other.copy_(one), device, 5).seconds
        square = torch.randn(side, side, device=device, dtype=HALF)
        self.half = 2 * side**3 / timed(lambda: square @ square, device, 5).seconds
        report.head["hardware"] = {
            "copy_TB_per_s": round(self.bandwidth / 1e12, 3),
            "bfloat16_TFLOP_per_s": round(self.half / 1e12, 1),
        }

    def floor(self, steps: int, weights: int, read: float, rows: int) -> float:
        """Seconds of decode steps that read the weights (bfloat16) and `read` bytes, or are bound by products."""
        return steps * max((2 * weights + read) / self.bandwidth, 2 * rows * weights / self.half)


class Bench:
    """The cases; each adds its rows. `theirs`: what `measure_reference` found."""

    def __init__(self, report: Report, device: torch.device, sizes: Sizes) -> None:
        self.report, self.device, self.sizes = report, device, sizes
        self.hardware = Hardware(report, device, sizes.probe)
        self.theirs: dict[str, Timed] = {}

    def measure_reference(self) -> None:
        """The reference's own sampling, updates and reward, by one trainer that is gone before ours begins."""
        config, side = self.sizes.policy, self.sizes.tokenizer.image_size
        trainer = ReferenceTrainer(config, self.device)
        trainer.roll()
        images = 2 * torch.rand(4 * self.sizes.images, 3, side, side, device=self.device) - 1
        model = reference_policy(config, self.device, HALF)
        calls: dict[str, tuple[Callable[[], object], int]] = {
            "policy": (trainer.update_policy, 3),
            **{f"decoder {n}": (lambda n=n: trainer.update_decoder(images[:n], n // 4), 2) for n in (16, 32)},  # type: ignore[misc]
            **{f"reward {n}": (lambda n=n: trainer.reward(images[:n]), 5) for n in (32, 128)},  # type: ignore[misc]
            "sampling": (reference_sampling(model, *self._text(self.sizes.prompts[0]), 8, GUIDED), 1),
        }
        for name, (call, repeats) in calls.items():
            with self.report.case(f"reference, {name}"):
                self.theirs[name] = timed(call, self.device, repeats, warm_ups=int(name != "sampling"))
        # The reference allows TF32; ours says by itself what may be rounded.
        choose_algorithms(False)

    def sampling_xl(self) -> None:
        """256 tokens at guidance 6: captured and compiled, the plain loop, the reference at its own batch."""
        config, least = self.sizes.policy, self.sizes.prompts[0]
        policy = random_policy(config, self.device, HALF)
        weights = parameters_of(policy)
        for prompts, fast in (*((count, True) for count in self.sizes.prompts), (least, False)):
            text, mask = self._text(prompts)
            count = 8 * prompts
            read = 2 * count * config.n_layer * 2 * config.dim * 2 * config.block_size / 2
            floor = self.hardware.floor(config.block_size, weights, read, 2 * count)
            name = f"sampling XL, {count} images{'' if fast else ', plain loop'}"
            theirs = self.theirs.get("sampling") if prompts == least else None
            with self.report.case(name):
                self._sampling(name, Sampler(policy, GUIDED, count, fast=fast), text, mask, theirs, floor)
        self._compare_loops(policy)

    def _sampling(
        self,
        name: str,
        sampler: Sampler,
        text: Tensor,
        mask: Tensor,
        theirs: Timed | None,
        floor: float,
        repeats: int = 2,
    ) -> None:
        seeds = list(range(8 * len(text)))
        first = timed(lambda: sampler(text, mask, seeds, 8), self.device, 1, 0)
        found = timed(lambda: sampler(text, mask, seeds, 8), self.device, repeats, 0)
        note = f"{len(seeds) / found.seconds:.1f} images/s; first batch {first.seconds:.1f} s"
        self.report.add(row(name, found, theirs, floor, note))

    def _compare_loops(self, policy: PolicyModel) -> None:
        """Where captured bfloat16 tokens leave the plain loop's, and how far log-probabilities differ until then."""
        text, mask = self._text(self.sizes.prompts[0])
        seeds = list(range(8 * len(text)))
        fast, plain = (Sampler(policy, GUIDED, len(seeds), fast=way)(text, mask, seeds, 8) for way in (True, False))
        differs = fast.tokens != plain.tokens
        first = torch.where(differs.any(1), differs.int().argmax(1), differs.shape[1])
        same = ~differs.cumsum(1).bool()
        gap = (fast.log_probs - plain.log_probs).abs()[same]
        note = (
            f"first differing token: median {first.median().item()}, least {first.min().item()} of {differs.shape[1]}; "
        )
        self.report.add(
            Row(
                "captured and plain loop, bfloat16",
                note=note + f"log-probability gap before it: {gap.max().item():.3g}",
            )
        )

    def sampling_janus(self) -> None:
        """Janus-Pro-1B, 576 tokens at guidance 5."""
        policy = janus_policy(self.sizes, self.device, HALF)
        layers, width = len(policy.layers), self.sizes.janus_text["hidden_size"]
        weights = sum(w.numel() for w in policy.language_model.parameters())
        for prompts in self.sizes.prompts[:2]:
            count = 8 * prompts
            text, mask = janus_text(prompts, self.device)
            read = 2 * count * layers * 2 * width * 2 * policy.length / 2
            floor = self.hardware.floor(policy.length, weights, read, 2 * count)
            name = f"sampling Janus-Pro-1B, {count} images"
            with self.report.case(name):
                sampler = Sampler(policy, SamplingConfig(5.0), count, fast=True)
                self._sampling(name, sampler, text, mask, None, floor, repeats=1)

    def policy_update(self) -> None:
        """32 rollouts of XL; guided scoring runs two branches and the anchor's forward, the reference's neither."""
        settings, config = load(PROFILE).arm("coevolved").policy, self.sizes.policy
        text, mask = self._text(4)
        tokens = torch.randint(config.vocab_size, (32, config.block_size), device=self.device)
        for scoring, anchor, checkpointing, fast in (
            ("guided", 0.05, False, True),
            ("guided", 0.05, True, True),
            ("unguided", 0.0, True, True),
            ("guided", 0.05, False, False),
        ):
            how = f"{scoring}{', with anchor' if anchor else ''}{', checkpointing' if checkpointing else ''}"
            name = f"policy update XL, 32 rollouts, {how}{'' if fast else ', plain'}"
            with self.report.case(name):
                online, average = (random_policy(config, self.device, HALF) for _ in range(2))
                with torch.no_grad():
                    owners = torch.arange(32, device=self.device) // 8
                    log_probs = score(online, text, mask, tokens, GUIDED, owners=owners)
                rollouts = Rollouts(text, mask, tokens, log_probs, torch.randn(32), torch.randn(32))
                sizes = {"minibatch_size": 32, "microbatch_size": 32, "checkpointing": checkpointing}
                params = settings.model_copy(update=sizes | {"scoring": scoring, "kl_coefficient": anchor})
                update = PolicyUpdate(online, average, None, rollouts, params, GUIDED, 0, 1, 0, fast)
                first = timed(lambda u=update: u.step(0), self.device, 1, 0)  # type: ignore[misc]
                found = timed(lambda u=update: u.step(0), self.device, 3)  # type: ignore[misc]
                branches = 2 if scoring == "guided" else 1
                passes = 6 + 2 * bool(anchor)  # forward 2, backward 4, the anchor's forward 2 operations a weight
                work = passes * parameters_of(online) * config.block_size * 32 * branches
                same_work = self.theirs.get("policy") if scoring == "unguided" and checkpointing else None
                note = f"first step {first.seconds:.1f} s"
                self.report.add(row(name, found, same_work, work / self.hardware.half, note))
                del update, online, average

    @cached_property
    def reward(self) -> Mixture:
        """CLIP ViT-L/14 as the stages compute it."""
        return Mixture({"clip": Term(clip_reward(self.sizes, self.device))}, HALF)

    @cached_property
    def ranked(self) -> RankedImages:
        return ranked_images(self.sizes.tokenizer, self.sizes.images)

    def _nets(self) -> Nets:
        return decoder_nets(self.tokenizer, self.reward, self.perceptual, self.device)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return tokenizer(self.sizes, self.device)

    @cached_property
    def perceptual(self) -> LpipsVGG:
        return lpips(self.device)

    def decoder_update(self) -> None:
        """The paper's step at 256 pixels: PatchGAN, LPIPS, CLIP ViT-L/14, the adaptive rule."""
        settings = load(PROFILE).arm("coevolved").decoder
        for count, micro in ((16, 16), (32, 16), (32, 32), (4, 4)):
            if count > self.sizes.images:
                continue
            sizes = {
                "rollouts_per_step": count,
                "reals_per_step": count,
                "microbatch_size": micro,
                "discriminator_start": 0,
            }
            name = f"decoder update, {count} + {count}, microbatches of {micro}"
            with self.report.case(name):
                made = settings.model_copy(update=sizes)
                update = DecoderUpdate(self._nets(), self.ranked, made, 0, 1, 1000, dtype=HALF)
                first = timed(lambda u=update: u.step(0), self.device, 1, 0)  # type: ignore[misc]
                found = timed(lambda u=update: u.step(0), self.device, 5, 0)  # type: ignore[misc]
                note = f"first step {first.seconds:.1f} s"
                self.report.add(row(name, found, self.theirs.get(f"decoder {count}"), note=note))
                del update

    def ranking(self) -> None:
        """Decoding images and their CLIP ViT-L/14 scores, as the ranking stage computes them."""
        precision, ranked = Precision(self.device, HALF), self.ranked
        for count in (self.sizes.images, 4 * self.sizes.images):
            images = torch.rand(count, *ranked.reals.shape[1:], device=self.device)
            tokens = ranked.tokens.flatten(0, 1).repeat(count // len(ranked.reals), 1)[:count].to(self.device)

            @torch.no_grad()
            def decode(tokens: Tensor = tokens) -> Tensor:
                with precision.autocast():
                    return self.tokenizer.decode_tokens(tokens)

            @torch.no_grad()
            def rank(images: Tensor = images) -> Tensor:
                return self.reward(images, ["a prompt"] * len(images))

            self.report.add(row(f"decoding {count} images", timed(decode, self.device, 5)))
            theirs = self.theirs.get(f"reward {count}")
            self.report.add(row(f"CLIP ViT-L/14 reward of {count} images", timed(rank, self.device, 5), theirs))

    def repeats(self) -> None:
        """What `runtime.deterministic: false` moves: one decoder step twice from the same weights."""
        settings = load(PROFILE).arm("coevolved").decoder
        sizes = {"rollouts_per_step": 4, "reals_per_step": 4, "microbatch_size": 4, "discriminator_start": 0}
        for deterministic in (True, False):
            choose_algorithms(deterministic)
            weights = []
            for _ in range(2):
                nets = self._nets()
                update = DecoderUpdate(
                    nets,
                    self.ranked,
                    settings.model_copy(update=sizes),
                    0,
                    1,
                    1000,
                    dtype=HALF,
                )
                update.step(0)
                weights.append(torch.cat([w.detach().flatten() for _, w in nets.online.decoder_parameters()]))
            gap = (weights[0] - weights[1]).abs()
            name = f"one decoder step twice, deterministic: {str(deterministic).lower()}"
            note = f"{(gap > 0).float().mean().item():.1%} of the weights differ, by at most {gap.max().item():.3g}"
            self.report.add(Row(name, note=note))
        choose_algorithms(False)

    def _text(self, prompts: int) -> tuple[Tensor, Tensor]:
        return random_text(prompts, self.sizes.policy, self.device, HALF)


def choose_algorithms(deterministic: bool) -> None:
    """As a stage has them under `runtime.deterministic`."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = False


CASES = ("sampling_xl", "policy_update", "decoder_update", "ranking", "sampling_janus", "repeats")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reference", type=Path, help="the reference's checkout; without it ours alone")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--output", type=Path, help="folder of the result (default: benchmarks/results)")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which no case begins")
    parser.add_argument("--commit", help="what is measured, where the folder is no checkout")
    parser.add_argument("--prompts", type=int, nargs="+", help="of a batch of 8 samples each (default: 4 16 64 128)")
    parser.add_argument("--small", action="store_true", help="toy sizes on the CPU: whether the script works")
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: there is no CUDA device here; benchmarks/cpu.py measures a CPU")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # `repeats` asks for deterministic algorithms
    if given.reference is not None:
        open_reference(given.reference)
    device, sizes = (torch.device("cpu"), SMALL) if given.small else (torch.device("cuda"), PUBLISHED)
    if given.prompts:
        sizes = replace(sizes, prompts=tuple(given.prompts))
    report = Report("gpu", device, **({"folder": given.output} if given.output else {}))
    report.head["commit"] = given.commit or report.head["commit"]
    choose_algorithms(False)
    bench = Bench(report, device, sizes)
    if given.reference is not None:
        with report.case("reference"):
            bench.measure_reference()
    for name in given.only:
        with report.case(name, given.limit) as in_time:
            if in_time:
                getattr(bench, name)()


if __name__ == "__main__":
    main()
