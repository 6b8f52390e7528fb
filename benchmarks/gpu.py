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
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measuring import Report, Row, Timed, row, timed
from benchmarks.networks import (
    PUBLISHED,
    SMALL,
    Sizes,
    clip_reward,
    janus_policy,
    janus_text,
    lpips,
    parameters_of,
    random_policy,
    random_text,
    tokenizer,
)
from benchmarks.reference import ReferenceTrainer, open_reference, reference_policy, reference_sampling
from rank_e.backbones.protocol import PolicyModel
from rank_e.config import load
from rank_e.precision import Precision
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.sampling.scoring import score
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.patchgan import PatchGAN
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
    """The cases; each adds its rows."""

    def __init__(self, report: Report, device: torch.device, sizes: Sizes, reference: bool) -> None:
        self.report, self.device, self.sizes, self.reference = report, device, sizes, reference
        self.hardware = Hardware(report, device, sizes.probe)

    def sampling_xl(self) -> None:
        """256 tokens at guidance 6: captured and compiled, the plain loop, the reference at its own batch."""
        config, least = self.sizes.policy, self.sizes.prompts[0]
        policy, theirs = random_policy(config, self.device, HALF), None
        weights = parameters_of(policy)
        if self.reference:
            model = reference_policy(config, self.device, HALF)
            theirs = timed(reference_sampling(model, *self._text(least), 8, GUIDED), self.device, 1)
            del model
        for prompts, fast in ((least, False), *((count, True) for count in self.sizes.prompts)):
            text, mask = self._text(prompts)
            count = 8 * prompts
            sampler = Sampler(policy, GUIDED, count, fast=fast)
            found = timed(lambda s=sampler, i=(text, mask, list(range(count)), 8): s(*i), self.device, 2)  # type: ignore[misc]
            read = 2 * count * config.n_layer * 2 * config.dim * 2 * config.block_size / 2
            floor = self.hardware.floor(config.block_size, weights, read, 2 * count)
            how = "" if fast else ", plain loop"
            name = f"sampling XL, {count} images{how}"
            self.report.add(
                row(name, found, theirs if prompts == least else None, floor, f"{count / found.seconds:.1f} images/s")
            )
            del sampler
        self._compare_loops(policy)

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
        for prompts in self.sizes.prompts[:3]:
            count = 8 * prompts
            text, mask = janus_text(prompts, self.device)
            sampler = Sampler(policy, SamplingConfig(5.0), count, fast=True)
            found = timed(lambda s=sampler, i=(text, mask, list(range(count)), 8): s(*i), self.device, 1)  # type: ignore[misc]
            read = 2 * count * layers * 2 * width * 2 * policy.length / 2
            floor = self.hardware.floor(policy.length, weights, read, 2 * count)
            self.report.add(
                row(
                    f"sampling Janus-Pro-1B, {count} images",
                    found,
                    None,
                    floor,
                    f"{count / found.seconds:.1f} images/s",
                )
            )
            del sampler

    def policy_update(self) -> None:
        """32 rollouts of XL; guided scoring runs two branches and the anchor's forward, the reference's neither."""
        theirs = self._trained(lambda trainer: trainer.update_policy)
        settings, config = load(PROFILE).arm("coevolved").policy, self.sizes.policy
        online, average = (random_policy(config, self.device, HALF) for _ in range(2))
        text, mask = self._text(4)
        tokens = torch.randint(config.vocab_size, (32, config.block_size), device=self.device)
        with torch.no_grad():
            log_probs = score(online, text, mask, tokens, GUIDED, owners=torch.arange(32, device=self.device) // 8)
        rollouts = Rollouts(text, mask, tokens, log_probs, torch.randn(32), torch.randn(32))
        weights = parameters_of(online)
        for scoring, anchor, checkpointing in (
            ("guided", 0.05, False),
            ("guided", 0.05, True),
            ("unguided", 0.0, False),
            ("unguided", 0.0, True),
        ):
            sizes = {"minibatch_size": 32, "microbatch_size": 32, "checkpointing": checkpointing}
            params = settings.model_copy(update=sizes | {"scoring": scoring, "kl_coefficient": anchor})
            update = PolicyUpdate(online, average, None, rollouts, params, GUIDED, 0, 1, 0)
            found = timed(lambda u=update: u.step(0), self.device, 3)  # type: ignore[misc]
            branches = 2 if scoring == "guided" else 1
            passes = 6 + 2 * bool(anchor)  # forward 2, backward 4, the anchor's forward 2 operations a weight
            floor = passes * weights * config.block_size * 32 * branches / self.hardware.half
            how = f"{scoring}{', with anchor' if anchor else ''}{', checkpointing' if checkpointing else ''}"
            same_work = theirs if scoring == "unguided" and checkpointing else None
            self.report.add(row(f"policy update XL, 32 rollouts, {how}", found, same_work, floor))
            del update

    def decoder_update(self) -> None:
        """The paper's step at 256 pixels: PatchGAN, LPIPS, CLIP ViT-L/14, the adaptive rule."""
        settings = load(PROFILE).arm("coevolved").decoder
        reward, perceptual = clip_reward(self.sizes, self.device), lpips(self.device)
        side, most = self.sizes.tokenizer.image_size, self.sizes.images
        for count, micro, keep in ((4, 4, 1), (16, 16, 4), (32, 32, None), (32, 16, None)):
            if count > most:
                continue
            images = 2 * torch.rand(count, 3, side, side, device=self.device) - 1
            theirs = (
                self._trained(lambda trainer, i=images, k=keep: lambda: trainer.update_decoder(i, k))  # type: ignore[misc]
                if keep is not None
                else None
            )
            sizes = {
                "rollouts_per_step": count,
                "reals_per_step": count,
                "microbatch_size": micro,
                "discriminator_start": 0,
            }
            patchgan = PatchGAN(64, 3).initialise(torch.Generator().manual_seed(5)).to(self.device)
            nets = Nets(
                tokenizer(self.sizes, self.device), tokenizer(self.sizes, self.device), patchgan, reward, perceptual
            )
            update = DecoderUpdate(nets, self._ranked(), settings.model_copy(update=sizes), 0, 1, 1000, dtype=HALF)
            found = timed(lambda u=update: u.step(0), self.device, 3)  # type: ignore[misc]
            self.report.add(row(f"decoder update, {count} + {count}, microbatches of {micro}", found, theirs))
            del update, nets

    def ranking(self) -> None:
        """Decoding 32 images and their CLIP ViT-L/14 scores."""
        autoencoder, reward, precision = (
            tokenizer(self.sizes, self.device),
            clip_reward(self.sizes, self.device),
            Precision(self.device, HALF),
        )
        images, tokens = self._ranked().reals, self._ranked().tokens.flatten(0, 1)
        images, tokens = images.to(self.device), tokens[: len(images)].to(self.device)

        @torch.no_grad()
        def decode() -> Tensor:
            with precision.autocast():
                return autoencoder.decode_tokens(tokens)

        @torch.no_grad()
        def rank() -> Tensor:
            with precision.autocast():
                return reward(images, ["a prompt"] * len(images))

        self.report.add(row(f"decoding {len(images)} images", timed(decode, self.device, 5)))
        theirs = self._trained(lambda trainer: lambda: trainer.reward(images))
        self.report.add(row(f"CLIP ViT-L/14 reward of {len(images)} images", timed(rank, self.device, 5), theirs))

    def repeats(self) -> None:
        """What `runtime.deterministic: false` moves: one decoder step twice from the same weights."""
        settings = load(PROFILE).arm("coevolved").decoder
        sizes = {"rollouts_per_step": 4, "reals_per_step": 4, "microbatch_size": 4, "discriminator_start": 0}
        reward, perceptual = clip_reward(self.sizes, self.device), lpips(self.device)
        for deterministic in (True, False):
            choose_algorithms(deterministic)
            weights = []
            for _ in range(2):
                patchgan = PatchGAN(64, 3).initialise(torch.Generator().manual_seed(5)).to(self.device)
                nets = Nets(
                    tokenizer(self.sizes, self.device), tokenizer(self.sizes, self.device), patchgan, reward, perceptual
                )
                update = DecoderUpdate(nets, self._ranked(), settings.model_copy(update=sizes), 0, 1, 1000, dtype=HALF)
                update.step(0)
                weights.append(torch.cat([w.detach().flatten() for _, w in nets.online.decoder_parameters()]))
            gap = (weights[0] - weights[1]).abs()
            name = f"one decoder step twice, deterministic: {str(deterministic).lower()}"
            note = f"{(gap > 0).float().mean().item():.1%} of the weights differ, by at most {gap.max().item():.3g}"
            self.report.add(Row(name, note=note))
        choose_algorithms(False)

    def _ranked(self) -> RankedImages:
        draw = torch.Generator().manual_seed(6)
        config, count = self.sizes.tokenizer, self.sizes.images
        tokens = torch.randint(config.codebook_size, (8, 8, config.grid**2), generator=draw)
        reals = torch.rand(count, 3, config.image_size, config.image_size, generator=draw)
        return RankedImages(tokens, torch.ones(8, 8), ["a prompt"] * 8, reals)

    def _text(self, prompts: int) -> tuple[Tensor, Tensor]:
        return random_text(prompts, self.sizes.policy, self.device, HALF)

    def _trained(self, call: Callable[[ReferenceTrainer], Callable[[], object]]) -> Timed | None:
        """Times a call of the reference's trainer; None without a reference."""
        if not self.reference:
            return None
        trainer = ReferenceTrainer(self.sizes.policy, self.device)
        trainer.roll()
        found = timed(call(trainer), self.device, 2)
        # The reference allows TF32; ours says by itself what may be rounded.
        torch.backends.cuda.matmul.allow_tf32 = False
        return found


def choose_algorithms(deterministic: bool) -> None:
    """As a stage has them under `runtime.deterministic`."""
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = not deterministic
    torch.backends.cuda.matmul.allow_tf32 = False


CASES = ("sampling_xl", "decoder_update", "policy_update", "ranking", "sampling_janus", "repeats")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reference", type=Path, help="the reference's checkout; without it ours alone")
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--output", type=Path, help="folder of the result (default: benchmarks/results)")
    parser.add_argument("--small", action="store_true", help="toy sizes on the CPU: whether the script works")
    given = parser.parse_args()
    if not given.small and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py: there is no CUDA device here; benchmarks/cpu.py measures a CPU")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # `repeats` asks for deterministic algorithms
    if given.reference is not None:
        open_reference(given.reference)
    device, sizes = (torch.device("cpu"), SMALL) if given.small else (torch.device("cuda"), PUBLISHED)
    report = Report("gpu", device, **({"folder": given.output} if given.output else {}))
    choose_algorithms(False)
    bench = Bench(report, device, sizes, given.reference is not None)
    for name in given.only:
        with report.case(name, LIMIT) as in_time:
            if in_time:
                getattr(bench, name)()


if __name__ == "__main__":
    main()
