"""Janus-Pro as a backbone, from a folder that `rank-e convert janus` wrote (see `rank_e.backbones.janus.convert`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rank_e.backbones.janus import FORMAT, TEXT_EMBEDDING
from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.io.checkpoints import check_shapes, read_tensors, shapes_of
from rank_e.io.manifest import read_manifest

if TYPE_CHECKING:
    from rank_e.backbones.janus.policy import JanusPolicy, SpecialTokens


class JanusBackbone:
    """Text ids, policy and tokenizer of a Janus-Pro; each loads on first use.

    The policy lies on `device` in `dtype`. The tokenizer lies there too, but always in float32: it is small, its
    tokens must be exact, and the second stage's steps are finer than bfloat16 resolves.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = Path(folder), torch.device(device), dtype
        self.manifest: dict[str, Any] = read_manifest(self.folder, FORMAT)

    @property
    def image_size(self) -> int:
        """Side of the images in pixels: 384 for Janus-Pro."""
        return self._tokenizer_config.image_size

    @cached_property
    def special(self) -> SpecialTokens:
        from rank_e.backbones.janus.policy import SpecialTokens

        text = self.manifest["text"]
        return SpecialTokens(text["bos"], text["boi"], text["pad"])

    @cached_property
    def processor(self) -> Any:
        """transformers' `JanusProcessor` of this folder."""
        from rank_e.io.torchvision_ops import declare_torchvision_ops

        declare_torchvision_ops()
        from transformers import JanusProcessor

        try:
            processor = JanusProcessor.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RankEError(
                f"backbone.base: {self.folder} has no complete Janus processor ({cause}); "
                "convert a folder with tokenizer.json, tokenizer_config.json and processor_config.json"
            ) from None
        if processor.chat_template is None:
            raise RankEError(
                f"backbone.base: {self.folder} has no chat template; convert a folder with chat_template.jinja"
            )
        return processor

    def encode_text(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> (ids int64 [P, T], mask bool [P, T]), left-padded to the longest.

        A row is BOS, the chat template with the prompt as the user's words, BOI: what the processor makes with
        generation_mode="image". RankEError for no prompts and for one that spells BOS or BOI itself.
        """
        if not prompts:
            raise RankEError("encode_text: no prompts; give at least one")
        special = self.special
        turns = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
        texts = self.processor.apply_chat_template(turns, add_generation_prompt=True)
        # BOS and BOI by id: whether a tokenizer adds BOS itself depends on its files and on transformers' version.
        rows = self.processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
        width = max(map(len, rows)) + 2
        ids = torch.full((len(rows), width), special.pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            if special.bos in row or special.boi in row:
                raise RankEError(
                    f"prompt {prompt!r} spells the begin-of-sentence or begin-of-image token; take it out of the prompt"
                )
            ids[number, -len(row) - 2 :] = torch.tensor([special.bos, *row, special.boi])
            mask[number, -len(row) - 2 :] = True
        return ids, mask

    def truncated(self, prompts: Sequence[str]) -> list[int]:
        """None: Janus reads a prompt of any length that its language model has positions for."""
        return []

    @cached_property
    def _policy_tensors(self) -> dict[str, Tensor]:
        """policy.safetensors, mapped into memory in its own dtype."""
        return read_tensors(self.folder / "policy.safetensors")

    @cached_property
    def _text_embedding(self) -> Tensor:
        """Frozen, so that all policies of this backbone share one copy."""
        return self._policy_tensors[TEXT_EMBEDDING].to(self.device, self.dtype)

    @property
    def trained_policy_keys(self) -> list[str]:
        """Names of what a round trains and stores: all of the policy but the text embedding."""
        return [name for name in self._policy_tensors if name != TEXT_EMBEDDING]

    def policy_weights(self) -> dict[str, Tensor]:
        """The base policy's trained weights, float32, on the CPU."""
        return {name: self._policy_tensors[name].float() for name in self.trained_policy_keys}

    def policy(self, weights: Mapping[str, Tensor]) -> JanusPolicy:
        """A policy, in eval mode, of copies of `weights` (every trained key) and the one shared text embedding."""
        from rank_e.backbones.janus.convert import read_config
        from rank_e.backbones.janus.policy import JanusPolicy

        with torch.device("meta"):
            policy = JanusPolicy(read_config(self.folder), self.special, self._text_embedding)
        check_shapes(weights, shapes_of(policy.state_dict()), "the policy's weights")
        copies = {name: tensor.to(self.device, self.dtype, copy=True) for name, tensor in weights.items()}
        policy.load_state_dict(copies, strict=True, assign=True)
        return policy.eval()

    @cached_property
    def _tokenizer_config(self) -> TokenizerConfig:
        return TokenizerConfig(**self.manifest["tokenizer"])

    @cached_property
    def _tokenizer_tensors(self) -> dict[str, Tensor]:
        tensors = read_tensors(self.folder / "tokenizer.safetensors")
        return {name: tensor.float() for name, tensor in tensors.items()}

    def decoder_weights(self) -> dict[str, Tensor]:
        """The base decoder's and post_quant_conv's weights, float32, on the CPU."""
        return {name: tensor for name, tensor in self._tokenizer_tensors.items() if name.startswith(DECODER_PREFIXES)}

    def tokenizer(self, decoder: Mapping[str, Tensor]) -> Tokenizer:
        """The base's tokenizer with the decoder weights replaced, float32, on the device, in eval mode."""
        with torch.device("meta"):
            tokenizer = Tokenizer(self._tokenizer_config)
        copies = {name: tensor.to(self.device, copy=True) for name, tensor in self._tokenizer_tensors.items()}
        tokenizer.load_state_dict(copies, strict=True, assign=True)
        tokenizer.load_decoder_state(decoder)
        return tokenizer.eval()
