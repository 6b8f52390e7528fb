"""An evaluation's tokens: the same prompts with the same seeds for every policy, so that differences are paired."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from rank_e.backbones.protocol import Backbone, PolicyModel
from rank_e.config import EvaluationParams
from rank_e.evaluation.prompt_sets import PromptSet
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.sampler import Sampler
from rank_e.seeds import seed_for


def sample_prompt_set(
    backbone: Backbone,
    policy: PolicyModel,
    prompt_set: PromptSet,
    params: EvaluationParams,
    *,
    fast: bool,
    done: Tensor | None = None,
    sampled: Callable[[list[Tensor]], None] = lambda rows: None,
    progress: Callable[[range], Iterable[int]] = iter,
) -> Tensor:
    """Tokens int32 [N, L] on the CPU of all N prompts, each with a seed of its own that its place decides.

    fast: `runtime.fast`. `done` are the first tokens, from an earlier try; `sampled` is told all rows after each
    batch, to keep them.
    """
    config = SamplingConfig(params.guidance, params.temperature, params.top_k, params.top_p)
    sampler, rows = Sampler(policy, config, params.batch_size, fast), [] if done is None else [done]
    for start in progress(range(sum(map(len, rows)), len(prompt_set.prompts), params.batch_size)):
        prompts = prompt_set.prompts[start : start + params.batch_size]
        text, mask = backbone.encode_text(prompts)
        places = range(start, start + len(prompts))
        seeds = [seed_for(params.seed, "evaluation", prompt_set.name, place) for place in places]
        rows.append(sampler(text, mask, seeds).tokens.int().cpu())
        sampled(rows)
    return torch.cat(rows)
