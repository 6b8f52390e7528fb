"""The rewards of `params.yaml`: built by kind, checked, normalised, and added with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rank_e.io.plugins import call_factory, is_path
from rank_e.rewards.aesthetic import load_aesthetic
from rank_e.rewards.base import Reward, RewardError, check_pairs, check_scores
from rank_e.rewards.clip import ClipModel, ClipReward, Tokenize
from rank_e.rewards.imagereward import load_imagereward
from rank_e.rewards.open_clip_models import load_clip, model_within
from rank_e.rewards.preprocessing import clip_protocol, hps_protocol
from rank_e.rewards.running import RunningNormaliser

Parts = dict[str, Tensor]  # reward name -> raw scores float32 [N]
COMMON = frozenset({"kind", "weight", "normalise"})


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

    def __init__(self, terms: Mapping[str, Term]) -> None:
        if not terms:
            raise RewardError("rewards: none is given; name at least one")
        self.terms = dict(terms)

    def parts(self, images: Tensor, prompts: list[str]) -> Parts:
        """Raw scores float32 [N] of each reward, by name. Computed in float32 whatever autocast is on.

        Raises RewardError naming the reward whose score is not finite, has another shape, or has no gradient while
        the images ask for one.
        """
        scores = {}
        for name, term in self.terms.items():
            check_pairs(name, images, prompts)
            with torch.autocast(images.device.type, enabled=False):
                part = term.reward(images.float(), prompts)
            if not isinstance(part, Tensor) or part.shape != (len(prompts),) or not part.is_floating_point():
                found = f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
                raise RewardError(f"reward {name}: gave {found}; return float scores [{len(prompts)}]")
            if torch.is_grad_enabled() and images.requires_grad and not part.requires_grad:
                raise RewardError(
                    f"reward {name}: its scores have no gradient in the images; leave it out of the decoder's reward "
                    "(decoder.lambda_reward: 0) or compute it in torch"
                )
            scores[name] = check_scores(name, part).float()
        return scores

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Raw scores by name -> sum of weight * normalised score, float32 [N]."""
        total = None
        for name, term in self.terms.items():
            score = parts[name] if term.normaliser is None else term.normaliser(parts[name])
            total = term.weight * score if total is None else total + term.weight * score
        assert total is not None  # a mixture has at least one term
        return total

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """`images` float [N, 3, H, W] in [0, 1] and N prompts -> scores float32 [N]."""
        return self.combine(self.parts(images, prompts))

    def observe(self, parts: Mapping[str, Tensor]) -> None:
        """Add raw scores (as `parts` gave them) to the running statistics that later calls normalise by."""
        for name, term in self.terms.items():
            if term.normaliser is not None:
                term.normaliser.observe(check_scores(name, parts[name]))

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


class _Builder:
    """Builds one reward from its section; CLIPs are loaded once for all that use the same one."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self._clips: dict[tuple[str, str], tuple[ClipModel, Tokenize]] = {}

    def _clip(self, model: str, file: str) -> tuple[ClipModel, Tokenize]:
        if (model, file) not in self._clips:
            self._clips[model, file] = load_clip(model_within(self.folder, model), self.folder / file, self.device)
        return self._clips[model, file]

    def clip(self, name: str, *, file: str, model: str = "ViT-L-14-quickgelu") -> Reward:
        return ClipReward(*self._clip(model, file), name=name, protocol=clip_protocol)

    def hpsv2(self, name: str, *, file: str, model: str = "ViT-H-14") -> Reward:
        return ClipReward(*self._clip(model, file), name=name, scale=1.0, protocol=hps_protocol)

    def aesthetic(self, name: str, *, file: str, clip_file: str, model: str = "ViT-L-14-quickgelu") -> Reward:
        return load_aesthetic(self.folder / file, self._clip(model, clip_file)[0], name)

    def imagereward(self, name: str, *, file: str, tokenizer: str) -> Reward:
        return load_imagereward(self.folder / file, self.folder / tokenizer, self.device, name)

    @cached_property
    def kinds(self) -> dict[str, tuple[Callable[..., Reward], set[str], set[str]]]:
        """kind -> (builder, keys that must be given, further keys that may be given)."""
        return {
            "clip": (self.clip, {"file"}, {"model"}),
            "hpsv2": (self.hpsv2, {"file"}, {"model"}),
            "aesthetic": (self.aesthetic, {"file", "clip_file"}, {"model"}),
            "imagereward": (self.imagereward, {"file", "tokenizer"}, set()),
        }

    def published(self, name: str, kind: str, options: dict[str, Any]) -> Reward:
        build, required, optional = self.kinds[kind]
        if missing := sorted(required - options.keys()):
            raise RewardError(f"rewards.{name}.{missing[0]}: is missing; kind {kind} needs a path there")
        if unknown := sorted(options.keys() - required - optional):
            known = ", ".join(sorted(required | optional | COMMON))
            raise RewardError(f"rewards.{name}.{unknown[0]}: unknown key; kind {kind} knows {known}")
        for key, value in options.items():
            if not isinstance(value, str) or not value:
                raise RewardError(f"rewards.{name}.{key}: is {value!r}; give a path or a name")
        try:
            return build(name, **options)
        except RewardError as error:
            raise RewardError(f"rewards.{name}: {error}") from error


def build_rewards(settings: Mapping[str, Mapping[str, Any]], folder: str | Path, device: torch.device | str) -> Mixture:
    """The mixture that section `rewards` asks for: files within `folder`, networks on `device` in float32.

    Each entry NAME: {kind, weight (1.0), normalise (none | running), ...}. Kinds and their keys:
    `clip` {file, model: ViT-L-14-quickgelu}: 100 cos(image, prompt);
    `hpsv2` {file, model: ViT-H-14}: HPSv2 or HPSv2.1, as published, about 0.2 to 0.3;
    `aesthetic` {file: the head, clip_file, model: ViT-L-14-quickgelu};
    `imagereward` {file, tokenizer: bert-base-uncased's vocab.txt or its folder};
    `package.module:factory` {...}: factory(folder, device, **rest) -> (images, prompts) -> scores.
    `model` is open_clip's name, or a JSON file of its format within `folder`.
    Raises RewardError naming the entry and the key.
    """
    builder = _Builder(Path(folder), torch.device(device))
    terms = {}
    for name, section in settings.items():
        options = {key: value for key, value in section.items() if key not in COMMON}
        kind, weight = section.get("kind"), section.get("weight", 1.0)
        normalise = section.get("normalise", "none")
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not isfinite(weight):
            raise RewardError(f"rewards.{name}.weight: is {weight!r}; give a finite number")
        if normalise not in ("none", "running"):
            raise RewardError(f"rewards.{name}.normalise: is {normalise!r}; give none or running")
        if isinstance(kind, str) and kind in builder.kinds:
            reward = builder.published(name, kind, options)
        elif isinstance(kind, str) and is_path(kind):
            reward = call_factory(f"rewards.{name}", kind, builder.folder, builder.device, options, RewardError)
        else:
            known = ", ".join(builder.kinds)
            raise RewardError(f"rewards.{name}.kind: is {kind!r}; give {known} or your own package.module:factory")
        terms[name] = Term(reward, float(weight), RunningNormaliser(name) if normalise == "running" else None)
    return Mixture(terms)
