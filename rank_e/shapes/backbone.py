"""The embedded world as a backbone: real networks of the real architectures at toy size, from one folder."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from rank_e.backbones.llamagen.policy import Policy, PolicyConfig
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.io.checkpoints import check_finite
from rank_e.io.manifest import BASE_FILE, check_files, parse_manifest, read_manifest
from rank_e.rewards.clip import ClipModel
from rank_e.shapes import FORMAT, clip


def load_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """NAME.safetensors of a base folder in float32; RankEError if it is not there, not as recorded, or not finite."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise RankEError(f"{path} does not exist; {FORMAT.fix}")
    files = parse_manifest(folder, FORMAT)["files"]
    if path.name not in files:
        raise RankEError(f"{path} is not listed in {BASE_FILE}; {FORMAT.fix}")
    check_files(folder, {path.name: files[path.name]}, "weights", FORMAT.fix)
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    check_finite(tensors, path)
    return tensors


def load_world_clip(folder: Path, name: str, size: clip.ClipSize, device: torch.device) -> ClipModel:
    """The CLIP called `name` ("text", "reward" or "evaluator") of a base folder, frozen, float32."""
    model = clip.build(size)
    model.load_state_dict(load_tensors(folder, name), strict=True)
    return model.to(device).eval().requires_grad_(False)


class ShapesBackbone:
    """Loads from `folder`: base.json and {text,tokenizer,policy}.safetensors (float16)."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype
        self.manifest = read_manifest(folder, FORMAT)

    @cached_property
    def tokenizer_config(self) -> TokenizerConfig:
        return TokenizerConfig(**self.manifest["tokenizer"])

    @property
    def image_size(self) -> int:
        """Side of an image in pixels: 48."""
        return self.tokenizer_config.image_size

    @cached_property
    def text_encoder(self) -> clip.TextEncoder:
        return clip.TextEncoder(load_world_clip(self.folder, "text", clip.TEXT, self.device))

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """N prompts -> (features [N, T, C] in `dtype`, mask bool [N, T]), left-padded; each prompt encoded once."""
        places = {prompt: index for index, prompt in enumerate(dict.fromkeys(prompts))}
        features, mask = self.text_encoder(list(places))
        rows = torch.tensor([places[prompt] for prompt in prompts], device=features.device)
        return features[rows].to(self.dtype), mask[rows]

    def truncated(self, prompts: Sequence[str]) -> list[int]:
        """None: the world's captions all fit, and other words are refused."""
        return []

    def policy_weights(self) -> dict[str, Tensor]:
        """The base policy's weights, float32, on the CPU."""
        return load_tensors(self.folder, "policy")

    def policy(self, weights: Mapping[str, Tensor]) -> Policy:
        """A policy that holds a copy of `weights` in `dtype` on the device, in eval mode."""
        with torch.device("meta"):
            policy = Policy(PolicyConfig(**self.manifest["policy"]))
        placed = {name: tensor.detach().to(self.device, self.dtype, copy=True) for name, tensor in weights.items()}
        policy.load_state_dict(placed, strict=True, assign=True)
        return policy.eval()

    def decoder_weights(self) -> dict[str, Tensor]:
        """The base decoder's and post_quant_conv's weights, float32, on the CPU."""
        return self._base_tokenizer().decoder_state()

    def _base_tokenizer(self) -> Tokenizer:
        with torch.device("meta"):
            tokenizer = Tokenizer(self.tokenizer_config)
        tokenizer.load_state_dict(load_tensors(self.folder, "tokenizer"), strict=True, assign=True)
        return tokenizer.eval()

    def tokenizer(self, decoder: Mapping[str, Tensor]) -> Tokenizer:
        """The base tokenizer with a copy of `decoder` for its decoder, float32, on the device, in eval mode."""
        tokenizer = self._base_tokenizer()
        tokenizer.load_decoder_state(decoder)
        return tokenizer.to(self.device)
