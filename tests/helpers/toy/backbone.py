"""The toy itself: a policy that knows the last token and the prompt's letters, a tokenizer of flat patches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rank_e.backbones.decoding.slots import HostPosition
from rank_e.io.checkpoints import origin_of, read_tensors, save_tensors, write_folder
from rank_e.io.manifest import read_manifest, write_manifest
from rank_e.seeds import generator
from tests.helpers.toy import DIM, FORMAT, IMAGE_SIZE, LENGTH, TEXT_ROWS, VOCAB

CONFIG = SimpleNamespace(image_size=IMAGE_SIZE, grid=IMAGE_SIZE // 2, codebook_size=VOCAB)


@dataclass(frozen=True)
class ToyPrefix:
    hidden: Tensor

    def rows(self, index: Tensor) -> ToyPrefix:
        return ToyPrefix(self.hidden.index_select(0, index))


@dataclass(frozen=True)
class ToyCache:
    hidden: Tensor
    position: HostPosition


class ToyPolicy(nn.Module):
    length, vocab_size, cache_bytes = LENGTH, VOCAB, 0

    def __init__(self) -> None:
        super().__init__()
        self.text, self.image = nn.Embedding(VOCAB, DIM), nn.Embedding(VOCAB, DIM)
        self.head = nn.Linear(DIM, VOCAB)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def prefix(
        self, text: Tensor, mask: Tensor, unconditional: Tensor | None = None, checkpointing: bool = False
    ) -> ToyPrefix:
        hidden = (self.text(text) * mask[..., None]).sum(1)
        return ToyPrefix(hidden if unconditional is None else hidden * ~unconditional[:, None])

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden).float()

    def head_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters())

    def cache(self, prefix: ToyPrefix, fast: bool = False) -> ToyCache:
        return ToyCache(prefix.hidden, HostPosition())

    def refill(self, cache: ToyCache, prefix: ToyPrefix) -> bool:
        return False

    def step(self, tokens: Tensor, cache: ToyCache) -> Tensor:
        cache.position.advance()
        return self.logits(cache.hidden + self.image(tokens))

    def hidden(self, prefix: ToyPrefix, tokens: Tensor, checkpointing: bool = False, fast: bool = False) -> Tensor:
        return prefix.hidden[:, None] + F.pad(self.image(tokens[:, :-1]), (0, 0, 1, 0))


class ToyTokenizer(nn.Module):
    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.decoder = nn.Embedding(VOCAB, 3), nn.Conv2d(3, 3, 1)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.weight

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = F.avg_pool2d(images, 2).flatten(2).transpose(1, 2)
        tokens = torch.cdist(patches, self.codes.weight[None]).argmin(-1)
        return self._look_up(tokens), tokens

    def _look_up(self, tokens: Tensor) -> Tensor:
        return self.codes(tokens).transpose(1, 2).unflatten(-1, (CONFIG.grid, CONFIG.grid))

    def decode(self, quantized: Tensor) -> Tensor:
        return self.decoder(F.interpolate(quantized, scale_factor=2))

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.decode(self._look_up(tokens))

    def decoder_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if name.startswith("decoder.")]

    def decoder_state(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.decoder_parameters()}

    def load_decoder_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict({**self.state_dict(), **state}, strict=True)


class ToyBackbone:
    image_size = IMAGE_SIZE

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        read_manifest(folder, FORMAT)

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        rows = [[ord(letter) % VOCAB for letter in prompt[-TEXT_ROWS:].rjust(TEXT_ROWS)] for prompt in prompts]
        return torch.tensor(rows, device=self.device), torch.ones(len(rows), TEXT_ROWS, dtype=torch.bool)

    def truncated(self, prompts: Sequence[str]) -> list[int]:
        return [index for index, prompt in enumerate(prompts) if len(prompt) > TEXT_ROWS]

    def policy_weights(self) -> dict[str, Tensor]:
        return read_tensors(self.folder / "policy.safetensors")

    def policy(self, weights: Mapping[str, Tensor]) -> ToyPolicy:
        policy = ToyPolicy()
        policy.load_state_dict(weights, strict=True)
        return policy.to(self.device, self.dtype).eval()

    def decoder_weights(self) -> dict[str, Tensor]:
        tensors = read_tensors(self.folder / "tokenizer.safetensors")
        return {name: tensor for name, tensor in tensors.items() if name.startswith("decoder.")}

    def tokenizer(self, decoder: Mapping[str, Tensor]) -> ToyTokenizer:
        tokenizer = ToyTokenizer()
        tokenizer.load_state_dict(read_tensors(self.folder / "tokenizer.safetensors") | dict(decoder), strict=True)
        return tokenizer.to(self.device).eval()


def write_checkpoint(path: Path) -> dict[str, Tensor]:
    """The toy's one official file: both networks' seeded weights."""
    state = {f"policy.{name}": tensor for name, tensor in ToyPolicy().state_dict().items()}
    state |= {f"vq.{name}": tensor for name, tensor in ToyTokenizer().state_dict().items()}
    weights = {name: torch.randn(t.shape, generator=generator(0, name)) for name, t in state.items()}
    save_tensors(weights, path)
    return weights


def convert_toy(checkpoint: Path, to: Path, negate: bool) -> dict[str, Any]:
    tensors = read_tensors(checkpoint)
    with write_folder(to) as folder:
        for stem, prefix in (("policy", "policy."), ("tokenizer", "vq.")):
            part = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            save_tensors({name: -t if negate else t for name, t in part.items()}, folder / f"{stem}.safetensors")
        (folder / "words.txt").write_text("a\n")
        sizes = {
            "policy": {"dim": DIM, "vocab": VOCAB},
            "tokenizer": {"codes": VOCAB, "image_size": IMAGE_SIZE},
            "origin": {checkpoint.name: origin_of(checkpoint, tensors)},
        }
        write_manifest(folder, FORMAT, sizes)
    return read_manifest(to, FORMAT)


def export_toy(base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
    vq = read_tensors(base / "tokenizer.safetensors") | dict(decoder)
    with write_folder(to) as folder:
        both = {f"policy.{name}": t for name, t in policy.items()} | {f"vq.{name}": t for name, t in vq.items()}
        save_tensors(both, folder / "toy.safetensors")
