"""The tokenizer against LlamaGen's own numbers, and what may and may not be trained."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from rank_e.backbones.llamagen.convolutions import NormSwish, Upsample
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.errors import RankEError
from rank_e.precision import GroupNorm
from rank_e.seeds import generator

GOLDEN = Path(__file__).parents[2] / "golden"
SMALL = TokenizerConfig(
    image_size=16,
    channels=32,
    channel_multipliers=(1, 2),
    residual_blocks=1,
    z_channels=16,
    codebook_size=32,
    codebook_dim=4,
)


def small(seed: int = 0) -> Tokenizer:
    return Tokenizer(SMALL).initialise(generator(seed, "tokenizer"))


def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=generator(0, "images")) * 2 - 1


@pytest.fixture(scope="module")
def golden() -> tuple[Tokenizer, dict[str, Tensor]]:
    with safe_open(GOLDEN / "llamagen_tokenizer.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config["l2_norm"] = config.pop("codebook_l2_norm")
    tokenizer = Tokenizer(TokenizerConfig(**config))
    weights = {key.removeprefix("weights."): value for key, value in tensors.items() if key.startswith("weights.")}
    tokenizer.load_state_dict(weights, strict=True)
    return tokenizer, tensors


@torch.no_grad()
def test_tokens_and_images_equal_llamagen(golden: tuple[Tokenizer, dict[str, Tensor]]) -> None:
    tokenizer, data = golden
    quantized, indices = tokenizer.encode(data["images"])
    assert torch.equal(indices, data["indices"])
    torch.testing.assert_close(quantized, data["quantized"], atol=1e-5, rtol=0)
    torch.testing.assert_close(tokenizer.decode(quantized), data["reconstructions"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer.decode_tokens(data["tokens"]), data["decoded_tokens"], atol=1e-4, rtol=0)


def test_state_dict_is_llamagen_vq16s() -> None:
    with torch.device("meta"):
        tokenizer = Tokenizer(TokenizerConfig(256, 128, (1, 1, 2, 2, 4), 2, 256, 16384, 8))
    official = json.loads((GOLDEN / "llamagen_vq16_state_dict.json").read_text())
    assert official.pop("quantize.codebook_used") == [65536]  # a usage statistic, dropped when it is loaded
    assert {name: list(weight.shape) for name, weight in tokenizer.state_dict().items()} == official


def test_the_usage_statistic_of_official_checkpoints_is_no_obstacle() -> None:
    state = small().state_dict() | {"quantize.codebook_used": torch.zeros(8)}
    Tokenizer(SMALL).load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match=r"quantize\.unknown"):
        Tokenizer(SMALL).load_state_dict(state | {"quantize.unknown": torch.zeros(8)}, strict=True)


@torch.no_grad()
def test_tokens_are_the_nearest_codes_in_raster_order() -> None:
    tokenizer = small()
    z = tokenizer.features(images())
    quantized, indices = tokenizer.nearest(z)
    assert quantized.shape == (2, 4, 8, 8) and indices.shape == (2, 64)
    places = z[1].permute(1, 2, 0).reshape(64, 4)
    distances = torch.cdist(places.double(), tokenizer.codes().double())
    assert torch.equal(indices[1], distances.argmin(1))
    torch.testing.assert_close(quantized[1, :, 2, 3], tokenizer.codes()[indices[1, 2 * 8 + 3]])
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2, 8, 8))
    assert torch.equal(tokenizer.decode(quantized), tokenizer.decode_tokens(indices))


def test_only_decoder_and_post_quant_conv_are_the_decoders() -> None:
    tokenizer = small()
    chosen = dict(tokenizer.decoder_parameters())
    rest = {name for name, _ in tokenizer.named_parameters()} - chosen.keys()
    assert {name.split(".")[0] for name in chosen} == {"decoder", "post_quant_conv"}
    assert {name.split(".")[0] for name in rest} == {"encoder", "quant_conv", "quantize"}
    assert tokenizer.last_layer is chosen["decoder.conv_out.weight"]
    tokenizer.decode_tokens(torch.zeros(1, 64, dtype=torch.int64)).mean().backward()
    assert all(parameter.grad is not None for parameter in chosen.values())


@torch.no_grad()
def test_a_decoder_state_moves_the_images_and_nothing_else() -> None:
    one, other = small(0), small(1)
    before = one.encode(images())[1]
    one.load_decoder_state(other.decoder_state())
    assert torch.equal(one.encode(images())[1], before)
    z = other.encode(images())[0]
    assert torch.equal(one.decode(z), other.decode(z))


def test_a_foreign_decoder_state_is_refused() -> None:
    tokenizer = small()
    state = tokenizer.decoder_state()
    for wrong in (
        {name: value for name, value in state.items() if name != "decoder.conv_in.bias"},
        state | {"encoder.conv_in.bias": torch.zeros(32)},
        state | {"decoder.conv_in.bias": torch.zeros(3)},
    ):
        with pytest.raises(RankEError, match="1 names or shapes differ"):
            tokenizer.load_decoder_state(wrong)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(RankEError, match="multiples of 32"):
        TokenizerConfig(16, 48, (1, 2), 1, 16, 32, 4)
    with pytest.raises(RankEError, match="multiple of 4"):
        TokenizerConfig(18, 32, (1, 1, 2), 1, 16, 32, 4)


def test_upsampling_at_once_equals_doubling_and_then_a_convolution_in_values_and_gradients() -> None:
    upsample = Upsample(5).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64, requires_grad=True)
    wanted = upsample.conv(torch.nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    inputs = [x, *upsample.parameters()]
    pull = torch.randn_like(wanted)
    torch.testing.assert_close(upsample(x), wanted)
    for found, right in zip(
        torch.autograd.grad(upsample(x), inputs, pull), torch.autograd.grad(wanted, inputs, pull), strict=True
    ):
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_and_swish_at_once_are_the_two_to_the_bit_and_keep_their_input_alone(dtype: torch.dtype) -> None:
    random = generator(0, "swish")
    norm, plain = NormSwish(64, 32), GroupNorm(32, 64, 1e-6)
    with torch.no_grad():
        norm.weight.normal_(generator=random), norm.bias.normal_(generator=random)
    plain.load_state_dict(norm.state_dict())
    x, pull = (torch.randn(3, 64, 7, 9, generator=random).to(dtype) for _ in range(2))
    assert norm(x[:0]).shape == x[:0].shape
    for given in (x, x.to(memory_format=torch.channels_last)):
        given, kept = given.detach().requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            found = norm(given)
        maps = [t for t in kept if t.numel() == x.numel()]
        assert len(maps) == 1 and torch.equal(maps[0], x) and found.dtype == dtype
        wanted = torch.nn.functional.silu(plain(given))
        assert torch.equal(found, wanted) and found.stride() == wanted.stride()
        for one, other in zip(
            torch.autograd.grad(found, [given, *norm.parameters()], pull),
            torch.autograd.grad(wanted, [given, *plain.parameters()], pull),
            strict=True,
        ):
            assert torch.equal(one, other)
