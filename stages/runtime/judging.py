"""What evaluation, reference and factorial share: the held-out prompt set, and tokens judged through a decoder.

Images are decoded, judged and forgotten batch by batch; what was judged lies in the stage's state, so that a killed
stage goes on at the image where it was and memory does not grow with their number.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from rank_e.backbones.llamagen.tokenizer import to_unit
from rank_e.backbones.protocol import TokenizerModel
from rank_e.config import EvaluationParams
from rank_e.data.opening import open_dataset
from rank_e.evaluation.base import as_bytes
from rank_e.evaluation.reference import Statistics
from rank_e.evaluation.resize import square_lanczos
from rank_e.evaluation.sets import PromptSet, reward_score
from rank_e.evaluation.stream import Batch, Stream, judge
from rank_e.evaluation.suite import build_judges
from rank_e.seeds import seed_for
from stages.runtime.artifacts import Artifact
from stages.runtime.stage import Stage
from stages.runtime.state import StageState

HELD_OUT = "held_out"
Draw = Callable[[int, int], tuple[Tensor, list[str]]]  # images number start to stop, uint8, and their prompts


def held_out_set(stage: Stage, image_size: int) -> PromptSet:
    """The held-out dataset's prompts, the whole list samples_per_prompt times, with the evaluation's judges.

    The rewards' weighted sum is one more score, "reward".
    """
    params, weights = stage.params.evaluation, stage.params.weights
    seed = seed_for(params.seed, "evaluation", "prompts")
    dataset = open_dataset(stage.params.data.held_out, image_size, "data.held_out")
    rows = dataset.prompts(params.prompts, seed) * params.samples_per_prompt
    judges = build_judges(params.distances, params.scores, Path(weights.evaluation), stage.device)
    rewards = stage.params.ranking.rewards
    key = digest({name: section.model_dump() for name, section in rewards.items()})
    judges.scores["reward"] = reward_score(rewards, Path(weights.training), stage.device, key)
    return PromptSet(HELD_OUT, [prompt for prompt, _ in rows], [category for _, category in rows], judges)


def digest(value: object) -> str:
    """A short hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def references_of(artifact: Artifact, part: PromptSet) -> dict[str, Statistics]:
    """The real statistics of each distance; EvaluationError where they are of another network or protocol."""
    features = part.judges.features.items()
    return {name: Statistics.load(artifact.path / f"{name}.safetensors", network) for name, network in features}


@torch.no_grad()
def decode(tokenizer: TokenizerModel, tokens: Tensor) -> Tensor:
    """Tokens [n, L] -> images [n, 3, S, S] in [0, 1], on the tokenizer's device."""
    device = next(tokenizer.parameters()).device
    return to_unit(tokenizer.decode_tokens(tokens.long().to(device))).clamp(0, 1)


def judged(stage: Stage, state: StageState, part: PromptSet, tag: str, draw: Draw, total: int) -> Stream:
    """A finished stream of `total` images of `part`, from wherever an earlier try left it."""
    stream = Stream(
        state.folder / f"{part.name}-{tag}",
        key=part.source,
        features=part.judges.features,
        scores=part.judges.scores,
        every=stage.params.evaluation.batch_size,
    )

    def batch(start: int, stop: int) -> Batch:
        images, prompts = draw(start, stop)
        return Batch(images, prompts, part.categories[start:stop], part.values(start, images))

    label = f"judging {tag}"
    judge(stream, batch, total, stage.params.evaluation.batch_size, lambda steps: stage.progress(steps, label))
    return stream


def decoded(
    part: PromptSet, tokens: Tensor, tokenizer: TokenizerModel, change: Callable[[Tensor, int], Tensor] | None = None
) -> Draw:
    """Tokens [N, L] of `part` through a tokenizer's decoder; `change(images, start)` may alter them on the way."""

    def draw(start: int, stop: int) -> tuple[Tensor, list[str]]:
        images = decode(tokenizer, tokens[start:stop]).cpu()
        return as_bytes(images if change is None else change(images, start)), part.prompts[start:stop]

    return draw


def metrics_of(
    stage: Stage, part: PromptSet, stream: Stream, references: Mapping[str, Statistics], intervals: bool = True
) -> dict[str, float]:
    """Every metric of a finished stream, with intervals if they are asked for."""
    params: EvaluationParams = stage.params.evaluation
    resamples = params.bootstrap if intervals else 0
    return part.metrics(stream, references, seed=params.seed, resamples=resamples, device=stage.device)


def squares(images: list[Tensor], size: int) -> Tensor:
    """Real images (uint8 [3, H, W]) as a generator of `size` pixels would draw them: uint8 [N, 3, size, size]."""
    return torch.stack([square_lanczos(image, size) for image in images])
