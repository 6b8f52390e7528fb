"""The rewards of `params.yaml`: built by kind, checked, normalised, and added with their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rank_e.io.plugins import call_factory, calling
from rank_e.precision import Precision
from rank_e.rewards.base import Reward, RewardError, check_pairs, check_scores
from rank_e.rewards.running import RunningNormaliser

if TYPE_CHECKING:
    from rank_e.config.kinds import RewardKind

RawScores = dict[str, Tensor]  # reward name -> scores float32 [N], before normalisation and weights


@dataclass(frozen=True)
class Term:
    """One reward of a mixture, its weight (any finite number) and its normaliser (None: raw scores)."""

    reward: Reward
    weight: float = 1.0
    normaliser: RunningNormaliser | None = None


class Mixture:
    """The weighted sum of rewards; itself a `Reward`.

    A score depends on its own image and prompt and on the statistics of earlier batches alone: `__call__` never
    changes them, `observe` does.
    """

    def __init__(self, terms: Mapping[str, Term], dtype: torch.dtype = torch.float32) -> None:
        """dtype: what the rewards' networks compute in, float32 or bfloat16 (under autocast)."""
        if not terms:
            raise RewardError("rewards: none is given; name at least one")
        self.terms, self.dtype = dict(terms), dtype

    def raw_scores(self, images: Tensor, prompts: list[str]) -> RawScores:
        """Raw scores float32 [N] of each reward, by name. Computed in `dtype` whatever autocast is on.

        Raises RewardError naming the reward whose score is not finite, has another shape, or has no gradient while
        the images ask for one.
        """
        found = {}
        for name, term in self.terms.items():
            check_pairs(name, images, prompts)
            with Precision(images.device, self.dtype).autocast(), calling(f"reward {name}", RewardError):
                scores = term.reward(images.float(), prompts)
            if not isinstance(scores, Tensor) or scores.shape != (len(prompts),) or not scores.is_floating_point():
                given = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
                raise RewardError(f"reward {name}: gave {given}; return float scores [{len(prompts)}]")
            if torch.is_grad_enabled() and images.requires_grad and not scores.requires_grad:
                raise RewardError(
                    f"reward {name}: its scores have no gradient in the images; leave it out of the decoder's reward "
                    "(decoder.lambda_reward or reward_ratio: 0) or compute it in torch"
                )
            found[name] = check_scores(name, scores).float()
        return found

    def combine(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Raw scores by name -> sum of weight * normalised score, float32 [N]."""
        total = None
        for name, term in self.terms.items():
            score = scores[name] if term.normaliser is None else term.normaliser(scores[name])
            total = term.weight * score if total is None else total + term.weight * score
        assert total is not None  # a mixture has at least one term
        return total

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """`images` float [N, 3, H, W] in [0, 1] and N prompts -> scores float32 [N]."""
        return self.combine(self.raw_scores(images, prompts))

    def observe(self, scores: Mapping[str, Tensor]) -> None:
        """Add `raw_scores` to the running statistics that later calls normalise by."""
        for name, term in self.terms.items():
            if term.normaliser is not None:
                term.normaliser.observe(check_scores(name, scores[name]))

    def state(self) -> dict[str, dict[str, float | int]]:
        """The running statistics by reward name, for JSON; empty when nothing is normalised."""
        return {name: term.normaliser.state() for name, term in self.terms.items() if term.normaliser is not None}

    def load_state(self, state: Mapping[str, dict[str, Any]]) -> None:
        """Go on from a `state()` of the same rewards; RewardError otherwise."""
        normalisers = {name: t.normaliser for name, t in self.terms.items() if t.normaliser is not None}
        if normalisers.keys() != state.keys():
            raise RewardError(
                f"rewards: the running state is of {sorted(state)}, normalised here are {sorted(normalisers)}; "
                "start again from the first round or restore these rewards"
            )
        for name, normaliser in normalisers.items():
            normaliser.load_state(state[name])


def build_rewards(
    sections: Mapping[str, RewardKind],
    folder: str | Path,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
) -> Mixture:
    """The mixture of section `rewards`, by name: files within `folder`, weights on `device` in float32.

    dtype: what the networks compute in; bfloat16 is autocast around each reward, the user's own too.

    Each section is one of `rank_e.config.kinds.RewardParams`; the user's own factory(folder, device, **keys) gives a
    call (images, prompts) -> scores. RewardError names the entry and what is wrong with it.
    """
    terms = {}
    for name, section in sections.items():
        where = f"rewards.{name}"
        reward = call_factory(where, section.path, Path(folder), torch.device(device), section.options, RewardError)
        normaliser = RunningNormaliser(name) if section.normalise == "running" else None
        terms[name] = Term(reward, section.weight, normaliser)
    return Mixture(terms, dtype)
