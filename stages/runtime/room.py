"""Room on the disk: what each artifact takes, and that a stage which would not find it does not begin.

Bytes are exact but for headers, tables and an evaluation's feature rows.
"""

import shutil
from pathlib import Path

from rank_e.backbones.info import Sizes
from rank_e.backbones.sizes import read_base
from rank_e.config import ArmParams, Params
from rank_e.config.kinds import Kind
from rank_e.errors import RankEError
from rank_e.io.files import gigabytes

VALUE = {"float32": 4, "bfloat16": 2}  # bytes of a number, by runtime.dtype
STATEFUL = {"sft", "policy", "decoder"}
"""The stages whose mid-stage state is as large as their artifact."""


def patchgan(section: Kind) -> int:
    """Parameters of the discriminator; of the projected one the heads' upper bound, its frozen networks aside."""
    if section.kind != "patchgan":
        return 8 * (1 << 20)
    channels, layers = section.options["channels"], section.options["layers"]
    width, total = channels, 3 * channels * 16 + channels
    for depth in range(1, layers + 1):
        inputs, width = width, channels * min(2**depth, 8)
        total += inputs * width * 16 + 2 * width
    return total + width * 16 + 1


def policy_artifact(sizes: Sizes) -> int:
    """online, ema and AdamW's two moments, float32."""
    return 16 * sizes.policy


def decoder_artifact(sizes: Sizes, arm: ArmParams) -> int:
    """online and ema; if it is trained also its moments, the discriminator and the discriminator's moments."""
    return 8 * sizes.decoder + (8 * sizes.decoder + 12 * patchgan(arm.decoder.discriminator)) * arm.decoder.train


def rollouts_artifact(sizes: Sizes, params: Params, arm: ArmParams) -> int:
    """int32 tokens and float32 log-probabilities."""
    return 8 * params.prompts.per_round * arm.rollouts.group_size * sizes.length


def evaluation_artifact(sizes: Sizes, params: Params) -> int:
    """int32 tokens of the held-out images, and the images that are shown, twice."""
    settings = params.evaluation
    tokens = 4 * settings.prompts * settings.samples_per_prompt * sizes.length
    return tokens + 6 * settings.images * sizes.image_size**2


def prompts_artifact(sizes: Sizes, params: Params) -> int:
    """The text of a round's prompts as the policy reads it."""
    return params.prompts.per_round * sizes.text_bytes(VALUE[params.runtime.dtype])


def artifact_bytes(name: str, sizes: Sizes, params: Params, arm: str) -> int:
    """What the artifact of stage `name` takes; 0 of one that is small."""
    if name == "sft":
        return (16 if params.sft.train else 8) * sizes.policy  # handed on, the base has no moments
    if name == "start":
        return 8 * (sizes.policy + sizes.decoder)
    if name == "prompts":
        return prompts_artifact(sizes, params)
    if name == "rollouts":
        return rollouts_artifact(sizes, params, params.arm(arm))
    if name == "policy":
        return policy_artifact(sizes)
    if name == "decoder":
        return decoder_artifact(sizes, params.arm(arm))
    if name in ("baseline", "sft_evaluation", "evaluation"):
        return evaluation_artifact(sizes, params)
    return 0


def check_room(params: Params, name: str, arm: str, key: str, states: Path) -> None:
    """RankEError if the file system of the current folder has no room for the stage's artifact and mid-stage state.

    key: that of the cell. states: the folder of all states; what an earlier try of this one has left will be replaced.
    """
    sizes, _ = read_base(params.backbone.name, Path(params.backbone.base))
    needed, free = artifact_bytes(name, sizes, params, arm), shutil.disk_usage(Path.cwd()).free
    if name in STATEFUL:
        needed = 2 * needed - sum(file.stat().st_size for file in states.glob(f"{key}-*/*"))
    if needed > free:
        raise RankEError(
            f"{key.replace('-', ' ')}: needs {gigabytes(needed)} in {Path.cwd()}, {gigabytes(free)} are free; "
            "free some and run again: what is done is kept"
        )
