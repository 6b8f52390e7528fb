"""LlamaGen's official files at toy size, seeded."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rank_e.backbones.llamagen.backbone import LlamaGenBackbone
from rank_e.backbones.llamagen.convert import convert_llamagen
from rank_e.backbones.llamagen.policy import Policy, PolicyConfig, rotary_table
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.seeds import generator

CPU = torch.device("cpu")


POLICY = PolicyConfig(32, 2, 2, vocab_size=64, block_size=16, cls_token_num=120, caption_dim=32)


TOKENIZER = TokenizerConfig(8, 32, (1, 2), 1, 32, 64, 8)  # 4 x 4 tokens


def tiny_policy(config: PolicyConfig = POLICY) -> dict[str, Tensor]:
    weights = Policy(config).initialise(generator(0, "policy")).state_dict()
    spread = 0.3 * (32 / config.dim) ** 0.5  # logits as large at any width
    weights["output.weight"].normal_(0.0, spread, generator=generator(0, "output"))
    return weights


def tiny_tokenizer(config: TokenizerConfig = TOKENIZER) -> dict[str, Tensor]:
    return Tokenizer(config).initialise(generator(0, "tokenizer")).state_dict() | {
        "quantize.codebook_used": torch.arange(65536.0)
    }


def rotary(config: PolicyConfig) -> Tensor:
    """The table as LlamaGen's files hold it [text + image rows, head_dim / 2, 2]; text rows are zero."""
    table = torch.view_as_real(rotary_table(config))
    return torch.cat([torch.zeros(config.cls_token_num, *table.shape[1:]), table])


class Official:
    """Files in the official layout in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.policy = self.write("t2i_tiny.pt", tiny_policy())
        self.tokenizer = self.write("vq_ds2_t2i.pt", tiny_tokenizer())
        self.to = folder / "base"

    def write(self, name: str, state: dict[str, Tensor]) -> Path:
        torch.save({"model": state}, self.folder / name)
        return self.folder / name

    def convert(self, **changes: Any) -> dict[str, Any]:
        values = {"policy": self.policy, "tokenizer": self.tokenizer, "to": self.to, "image_size": 8, "heads": 2}
        return convert_llamagen(**(values | changes))

    def backbone(self, dtype: torch.dtype = torch.float32) -> LlamaGenBackbone:
        return LlamaGenBackbone(self.to, CPU, dtype)

    def refuses(self, expected: str, **changes: Any) -> None:
        """convert fails in one line that matches `expected`, and leaves no trace."""
        before = sorted(os.listdir(self.folder))
        with pytest.raises(RankEError, match=expected) as error:
            self.convert(**changes)
        assert "\n" not in str(error.value) and sorted(os.listdir(self.folder)) == before


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
