"""What a run takes: disk, memory and arithmetic, as pure functions of sizes and parameters.

`python -m pipeline.preflight.estimate [PARAMS.yaml]` prints them. Bytes on disk are exact but for headers and
tables. Memory is an upper estimate from what autograd saves; it knows nothing of an allocator's fragmentation. Time is
arithmetic divided by an assumed rate: an assumption, not a measurement.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from pipeline.retention import USUAL, Keep, read_keep
from rank_e.backbones.info import Sizes, backbone_info
from rank_e.backbones.sizes import published, read_base
from rank_e.config import ArmParams, Params
from rank_e.config.profiles import load_profile
from rank_e.errors import RankEError
from rank_e.io.files import gigabytes
from rank_e.sampling import positions_at_once
from stages.runtime.room import (
    VALUE,
    artifact_bytes,
    decoder_artifact,
    evaluation_artifact,
    patchgan,
    policy_artifact,
    prompts_artifact,
    rollouts_artifact,
)

RATE = 1.0e14
"""Assumed useful floating-point operations a second: 10 % of an H100's bfloat16 peak of 989e12."""
LIBRARIES = {"cpu": 0.5e9, "cuda": 4.0e9}  # bytes of main memory that a process holds beside its tensors
LPIPS_PIXEL = 4000  # bytes that LPIPS keeps a pixel of one pair: VGG16 to conv5_3, float32, and its differences
REWARD_IMAGE = 1.5e9  # bytes that a reward network keeps an image with a gradient in float32: ViT-H/14 at 224 pixels
STEP_IMAGES = 8  # float32 tensors of an image's size that a decoder step holds for each of its images


def disk(sizes: Sizes, params: Params, keep: Keep | None = None) -> dict[str, int]:
    """Bytes by kind of artifact, of all arms, seeds and rounds, and of the state of one running stage.

    keep: what `rank-e run --keep` leaves of the rounds' weights. While it runs that is the round before the running one
    too; the best is reckoned as a round of its own, and rounds that are evaluated have their EMA weights in any case.
    DVC's cache shares them with the workspace by hard links (where a file system has none, validate counts them twice);
    what older parameters left is not counted.
    """
    seeds, rounds = len(params.seeds), len(params.rounds)
    arms = [params.arm(name) for name in params.arms]
    whole, averages = rounds, 0
    if keep is not None:
        kept = set(keep.rounds(params))
        judged = len(set(params.evaluated) - kept)
        whole = min(rounds, len(kept) + 1 + (keep.best is not None and judged > 0))
        averages = min(judged, rounds - whole)
    sft = artifact_bytes("sft", sizes, params, "") * seeds
    return {
        "supervised start": sft,
        "round 0": len(arms) * seeds * 8 * (sizes.policy + sizes.decoder),
        "prompts": seeds * rounds * prompts_artifact(sizes, params),
        "rollouts": seeds * rounds * sum(rollouts_artifact(sizes, params, arm) for arm in arms),
        "policy": seeds * len(arms) * (whole * policy_artifact(sizes) + averages * 4 * sizes.policy),
        "decoder": seeds * sum(whole * decoder_artifact(sizes, arm) + averages * 4 * sizes.decoder for arm in arms),
        "evaluation": (seeds * (len(arms) * len(params.evaluated) + 1) + 1) * evaluation_artifact(sizes, params),
        "state of a running stage": 2 * policy_artifact(sizes),
    }


def policy_memory(sizes: Sizes, params: Params, arm: ArmParams) -> float:
    """Peak bytes on the device of the policy stage: weights, optimiser, one microbatch's activations, some logits."""
    value, settings = VALUE[params.runtime.dtype], arm.policy
    masters, policies = (0 if value == 4 else 8), 2 + settings.reads_base
    fixed = (policies * value + masters + 8) * sizes.policy + value * sizes.frozen
    fixed += prompts_artifact(sizes, params) + rollouts_artifact(sizes, params, arm)
    branches = branches_of(arm)
    image = branches * settings.microbatch_size * sizes.length
    texts = branches * min(settings.microbatch_size, params.prompts.per_round) * sizes.text_rows
    kept = value * sizes.dim * (image + texts) * sizes.layers
    one = sizes.layer_row(value) * max(image, texts)
    activations = kept + one if settings.checkpointing else sizes.layer_row(value) * (image + texts) * sizes.layers
    gradients = (value if value == 4 else value + 4) * sizes.policy
    return fixed + gradients + activations + scoring_memory(sizes, arm, value)


def scoring_memory(sizes: Sizes, arm: ArmParams, value: int) -> float:
    """Peak bytes between a microbatch's last layer and its log-probabilities, backward too: some logits at a time.

    Bytes a logit of one rollout: 4 in each branch, 12 for temperature, softmax and its gradient, 6 for top-k, and 24
    for top-p, which sorts.
    """
    settings, drawn, branches = arm.policy, arm.rollouts, branches_of(arm)
    filters = (6 * (drawn.top_k > 0) + 24 * (drawn.top_p < 1)) * (settings.scoring == "guided")
    rows = branches * settings.microbatch_size
    positions = min(sizes.length, positions_at_once(rows, sizes.vocab))
    logits = settings.microbatch_size * positions * sizes.vocab * (4 * branches + 12 + filters)
    hidden = 2 * value * rows * sizes.length * sizes.dim  # and their gradient
    # The output's gradient: this part's, the one before it, and the float32 sum.
    return logits + hidden + (2 * value + 4) * sizes.vocab * sizes.dim


def branches_of(arm: ArmParams) -> int:
    """Rows that scoring computes for each rollout."""
    return 2 if arm.policy.scoring == "guided" and arm.rollouts.guidance != 1 else 1


def decoder_memory(sizes: Sizes, params: Params, arm: ArmParams) -> float:
    """Peak bytes on the device of the decoder stage: two tokenizers, the optimiser, one step's images and graphs.

    A kind of images that one microbatch holds keeps its graph of the decoder; of any other, one microbatch is at a time
    in the decoder. One microbatch is at a time in one of the losses: LPIPS or a reward network, which are allowances
    for the published ones.
    """
    settings, value, pixels = arm.decoder, VALUE[params.runtime.dtype], sizes.image_size**2
    if not settings.train:
        return 0.0
    drawn, size = sizes.decoder_image(value), settings.microbatch_size
    rewarded, perceived = REWARD_IMAGE * value / 4 if settings.rewarded else 0.0, LPIPS_PIXEL * pixels
    kinds = (
        (settings.rollouts_per_step, max(perceived, rewarded)),
        (settings.reals_per_step, perceived),
    )
    graphs = float(sum(count * drawn for count, _ in kinds if count <= size))
    graphs += max(min(count, size) * max(loss, drawn if count > size else 0.0) for count, loss in kinds)
    # Images, noise and gradients; and what the adaptive rule keeps of the last layer, of some 30 like it.
    graphs += sum(count * (12 * STEP_IMAGES * pixels + drawn / 30) for count, _ in kinds)
    casts = 2 * sizes.decoder if value == 2 else 0
    fixed = 8 * sizes.tokenizer + 12 * sizes.decoder + casts + 16 * patchgan(settings.discriminator)
    return fixed + graphs + (4.0e9 if settings.rewarded else 0.0)


def host_memory(sizes: Sizes, params: Params) -> float:
    """Peak bytes of main memory of one stage beside what lies on the device."""
    reals = 12 * sizes.image_size**2
    policy = 16 * sizes.policy + prompts_artifact(sizes, params)
    decoder = reals * params.prompts.per_round + 24 * sizes.decoder
    factorial = 2 * reals * params.evaluation.real_images
    text = VALUE[params.runtime.dtype] * sizes.text_encoder
    return max(policy, decoder, factorial, text)


@dataclass(frozen=True)
class Memory:
    """Peak bytes of one stage: on the device, and in main memory (both together on a CPU)."""

    device: float
    host: float


def memory(sizes: Sizes, params: Params) -> Memory:
    """The largest stage of any arm."""
    arms = [params.arm(name) for name in params.arms]
    device = max(max(policy_memory(sizes, params, arm), decoder_memory(sizes, params, arm)) for arm in arms)
    host = host_memory(sizes, params)
    if params.runtime.device == "cpu":
        return Memory(0.0, device + host + LIBRARIES["cpu"])
    return Memory(device, host + LIBRARIES["cuda"])


def operations(sizes: Sizes, params: Params) -> dict[str, float]:
    """Floating-point operations of the policy by stage, of all rounds, arms and seeds: 2 a parameter and token.

    Training a rollout: 2 to score it once, 2 for the reference, 6 for the step, 2 more where layers are recomputed.
    The convolutions, the rewards and the evaluators are not counted.
    """
    found = {"rollouts": 0.0, "policy": 0.0, "evaluation": 0.0}
    for arm in (params.arm(name) for name in params.arms):
        cells = len(params.seeds) * len(params.rounds)
        branches = 2 if arm.rollouts.guidance != 1 else 1
        tokens = cells * params.prompts.per_round * arm.rollouts.group_size * sizes.length * branches
        found["rollouts"] += 2.0 * sizes.policy * tokens
        each = 2 + arm.policy.epochs * (8 + 2 * arm.policy.checkpointing)
        found["policy"] += float(each) * sizes.policy * tokens
        evaluated = params.evaluation.prompts * params.evaluation.samples_per_prompt * sizes.length
        times = len(params.seeds) * len(params.evaluated) * (2 if params.evaluation.guidance != 1 else 1)
        found["evaluation"] += 2.0 * sizes.policy * times * evaluated
    return found


def summary(sizes: Sizes, params: Params, keep: Keep | None = None) -> list[str]:
    """Disk, memory and time in lines; keep: of `rank-e run --keep`, without it what the usual one would leave."""
    need, room = memory(sizes, params), disk(sizes, params, keep)
    kinds = ", ".join(f"{kind} {gigabytes(value)}" for kind, value in room.items() if value)
    lines = [f"disk: {gigabytes(sum(room.values()))} ({kinds})"]
    if keep is None and (less := sum(disk(sizes, params, read_keep(USUAL)).values())) < sum(room.values()):
        lines.append(f"disk with --keep {USUAL}: {gigabytes(less)}")
    if need.device:
        arms = [params.arm(name) for name in params.arms]
        policy = max(policy_memory(sizes, params, arm) for arm in arms)
        decoder = max(decoder_memory(sizes, params, arm) for arm in arms)
        lines.append(f"device memory of a stage: policy {gigabytes(policy)}, decoder {gigabytes(decoder)}")
    lines.append(f"main memory of a stage: {gigabytes(need.host)}")
    work = operations(sizes, params)
    hours = ", ".join(f"{name} {value:.2g} FLOP = {value / RATE / 3600:.1f} h" for name, value in work.items())
    if params.runtime.device != "cpu":
        lines.append(f"policy's arithmetic at an assumed {RATE:.0e} FLOP/s: {hours}")
    return lines


def sizes_of(params: Params) -> Sizes:
    """The sizes of the base, or those of the published model that its folder's name stands for."""
    name, folder = params.backbone.name, Path(params.backbone.base)
    if folder.exists():
        return read_base(name, folder)[0]
    known = published(name, folder)
    if known is None:
        raise RankEError(f"backbone.base: {folder} does not exist; {backbone_info(name).format.fix}")
    return known


def main(paths: list[str]) -> None:
    """Print the estimate of each params file."""
    try:
        for path in paths or ["params.yaml"]:
            params = load_profile(path)
            print(path, *summary(sizes_of(params), params), sep="\n  ")
    except RankEError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
