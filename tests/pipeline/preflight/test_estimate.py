"""The estimates against what stages write and what autograd keeps."""

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.preflight import estimate
from rank_e.backbones.info import Sizes
from rank_e.backbones.janus import TEXT_EMBEDDING
from rank_e.backbones.janus import convert as janus
from rank_e.backbones.janus.sizes import JanusInfo
from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.backbones.llamagen.policy import LLAMAGEN, Policy, PolicyConfig
from rank_e.backbones.llamagen.sizes import LlamaGenInfo
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.backbones.llamagen.transformer import Block
from rank_e.backbones.sizes import published, read_base
from rank_e.config import Params
from rank_e.config.profiles import load_profile
from rank_e.precision import Precision
from rank_e.sampling.distribution import SamplingConfig, log_distribution, pick
from rank_e.sampling.scoring import by_parts
from rank_e.seeds import generator
from rank_e.training.patchgan import PatchGAN
from stages import decoder, policy, prompts, ranking, rollouts, sft, start
from stages.runtime import room
from stages.runtime.stage import Stage
from tests.helpers.allocations import Allocations

ROOT = Path(__file__).parents[3]
PUBLISHED = sorted(
    path.stem for path in (ROOT / "profiles").glob("*.yaml") if path.stem.startswith(("llamagen", "janus"))
)
LLAMAGEN_XL = LlamaGenInfo.published["llamagen-xl-256"]


class Kept:
    """Bytes that autograd saves for the backward pass, parameters and inputs aside."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.own = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.tensors: list[Tensor] = []

    def __enter__(self) -> "Kept":
        self.hooks: Any = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda x: x)
        self.hooks.__enter__()
        return self

    def _keep(self, x: Tensor) -> Tensor:
        self.tensors.append(x)
        return x

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in self.tensors}
        return sum(size for place, size in storages.items() if place not in self.own)


def written(path: Path, *names: str) -> int:
    return sum((path / f"{name}.safetensors").stat().st_size for name in names)


@pytest.fixture(scope="module")
def world() -> tuple[Sizes, Params]:
    sizes, problems = read_base("shapes", ROOT / "assets/shapes")
    assert problems == []
    return sizes, load_profile(ROOT / "profiles/tiny.yaml")


def test_a_rounds_artifacts_have_the_estimated_sizes(
    world: tuple[Sizes, Params], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, params = world
    for name in ("assets", "rank_e"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    arm = params.arm("coevolved")
    begin = Stage("start", params, "coevolved", 0, 0)
    sft.run(Stage("sft", params, "", 0, 0))
    start.run(begin)
    prompts.run(Stage("prompts", params, "", 0, 1))
    for name, run in (("rollouts", rollouts), ("ranking", ranking), ("policy", policy), ("decoder", decoder)):
        run.run(Stage(name, params, "coevolved", 0, 1))
    cell, near = Stage("policy", params, "coevolved", 0, 1), 0.03
    base = written(begin.path("policy"), "online", "ema") + written(begin.path("decoder"), "online", "ema")
    assert base == pytest.approx(8 * (sizes.policy + sizes.decoder), rel=near)
    found = written(cell.path("policy"), "online", "ema", "optimizer")
    assert found == pytest.approx(room.policy_artifact(sizes), rel=near)
    found = written(cell.path("decoder"), "online", "ema", "optimizer", "discriminator")
    assert found == pytest.approx(room.decoder_artifact(sizes, arm), rel=near)
    found = written(cell.path("rollouts"), "rollouts")
    assert found == pytest.approx(room.rollouts_artifact(sizes, params, arm), rel=near)
    found = written(cell.path("prompts"), "text")
    assert found == pytest.approx(room.prompts_artifact(sizes, params), rel=near)


def test_the_whole_runs_disk_grows_with_rounds_seeds_and_arms(world: tuple[Sizes, Params]) -> None:
    sizes, params = world
    longer = params.model_copy(update={"rounds": [*params.rounds, *params.rounds], "seeds": [0, 1, 2]})
    once, more = estimate.disk(sizes, params), estimate.disk(sizes, longer)
    assert more["policy"] == 6 * once["policy"] == 24 * room.policy_artifact(sizes)
    assert more["round 0"] == 3 * once["round 0"]
    frozen, trained = (room.decoder_artifact(sizes, params.arm(name)) for name in ("frozen", "coevolved"))
    assert once["decoder"] == 2 * (frozen + trained) and frozen == 8 * sizes.decoder < trained


@pytest.mark.parametrize(("channels", "layers"), [(8, 1), (16, 3), (8, 5)])
def test_the_discriminators_parameters_are_counted(world: tuple[Sizes, Params], channels: int, layers: int) -> None:
    section = world[1].decoder.discriminator.model_copy(update={"channels": channels, "layers": layers})
    real = sum(p.numel() for p in PatchGAN(channels, layers).parameters())
    assert room.patchgan(section) == real


def test_published_sizes_are_those_of_the_networks() -> None:
    for name, side in (("llamagen-xl-256", 256), ("llamagen-xl-512", 512)):
        sizes = LlamaGenInfo.published[name]
        text = {"cls_token_num": sizes.text_rows, "caption_dim": sizes.text_width}
        with torch.device("meta"):
            config = PolicyConfig(**LLAMAGEN["XL"], vocab_size=sizes.vocab, block_size=sizes.length, **text)
            net = Policy(config)
            image = TokenizerConfig(side, sizes.channels, sizes.multipliers, sizes.residual_blocks, 256, sizes.vocab, 8)
            vq = Tokenizer(image)
        assert sizes.policy == sum(p.numel() for p in net.parameters()) and sizes.hidden == config.hidden_dim
        assert sizes.tokenizer == sum(p.numel() for p in vq.parameters()) and image.grid**2 == sizes.length
        parts = [p.numel() for key, p in vq.named_parameters() if key.startswith(DECODER_PREFIXES)]
        assert sizes.decoder == sum(parts)


def test_published_sizes_of_janus_are_those_of_transformers_model() -> None:
    from transformers import JanusConfig, LlamaConfig

    sizes = JanusInfo.published["janus-pro-1b"]
    text = {"vocab_size": 102400, "hidden_size": sizes.dim, "intermediate_size": sizes.hidden}
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16, "num_hidden_layers": sizes.layers}
    config = JanusConfig(
        text_config=LlamaConfig(**text, **heads).to_dict(),
        vision_config={"num_image_tokens": sizes.length},
        vq_config={"num_patches": 24},
    )
    shapes = {name: prod(shape) for name, shape in janus.expected_shapes(config, True, "janus").items()}
    frozen = shapes.pop(janus.MODEL + TEXT_EMBEDDING)
    parts = (janus.POLICY, janus.VQ, janus.DECODER)
    counted = [sum(n for name, n in shapes.items() if name.startswith(part)) for part in parts]
    assert [*counted, frozen] == [sizes.policy, sizes.tokenizer, sizes.decoder, sizes.frozen]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_keeps_about_what_is_estimated(world: tuple[Sizes, Params], dtype: torch.dtype) -> None:
    dim, heads, hidden, rows, length = 256, 4, 768, 2, 64
    block = Block(dim, heads, hidden, 1e-5).to(dtype)
    x = torch.randn(rows, length, dim, dtype=dtype, requires_grad=True)
    turn = torch.ones(length, 2 * heads, dim // heads // 2, dtype=torch.complex64)
    with Kept(block) as kept:
        block.image(x, torch.zeros(rows, dim, dtype=dtype), turn, torch.zeros(rows, 1, length, length + 1, dtype=dtype))
    row = replace(LLAMAGEN_XL, dim=dim, hidden=hidden).layer_row(dtype.itemsize)
    assert row * rows * length == pytest.approx(kept.bytes, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("drawn", [(1.0, 0, 1.0), (1.0, 20, 1.0), (3.0, 0, 1.0), (3.0, 20, 1.0), (3.0, 20, 0.9)])
@pytest.mark.parametrize("positions", [4, 16])
def test_scoring_takes_about_what_is_estimated(
    world: tuple[Sizes, Params],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    drawn: tuple[float, int, float],
    positions: int,
) -> None:
    config = SamplingConfig(drawn[0], 0.9, *drawn[1:])
    net = Policy(PolicyConfig(32, 1, 1, vocab_size=2048, block_size=16, cls_token_num=1, caption_dim=1)).to(dtype)
    tokens, rows = torch.zeros(4, 16, dtype=torch.int64), 4 * config.branches
    monkeypatch.setattr("rank_e.sampling.LOGITS_AT_ONCE", positions * rows * 2048)
    body = torch.randn(rows, 16, 32, dtype=dtype, requires_grad=True)
    with Allocations() as made:
        by_parts(
            net, body * 1.0, tokens, lambda x, part: pick(log_distribution(x, config, part), part)
        ).sum().backward()
    arm = world[1].arm("coevolved")
    rollouts = arm.rollouts.model_copy(update={"guidance": drawn[0], "top_k": drawn[1], "top_p": drawn[2]})
    policy = arm.policy.model_copy(update={"microbatch_size": 4, "scoring": "guided"})
    estimated = estimate.scoring_memory(
        replace(LLAMAGEN_XL, dim=32, vocab=2048, length=16),
        arm.model_copy(update={"rollouts": rollouts, "policy": policy}),
        dtype.itemsize,
    )
    assert 0.55 * estimated < made.peak < 1.05 * estimated


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("side", "multipliers"), [(48, (1, 2, 2)), (64, (1, 1, 2, 2, 4))])
def test_a_decoded_image_keeps_about_what_is_estimated(
    side: int, multipliers: tuple[int, ...], dtype: torch.dtype
) -> None:
    config = TokenizerConfig(side, 32, multipliers, 2, 32, 64, 8)
    vq = Tokenizer(config).initialise(generator(0, "estimate"))
    kept = []
    for count in (1, 3):  # what is kept beside images, such as weights that autocast has cast, does not count
        with Kept(vq) as found, Precision(torch.device("cpu"), dtype).autocast():
            vq.decode_tokens(torch.zeros(count, config.grid**2, dtype=torch.int64))
        kept.append(found.bytes)
    sizes = replace(LLAMAGEN_XL, image_size=side, channels=32, multipliers=multipliers, residual_blocks=2)
    assert 2 * sizes.decoder_image(dtype.itemsize) == pytest.approx(kept[1] - kept[0], rel=0.1)


def test_memory_follows_what_fills_it() -> None:
    params, sizes = load_profile(ROOT / "profiles/llamagen-xl-clip.yaml"), LLAMAGEN_XL
    arm = params.arm("coevolved")
    half = arm.model_copy(update={"policy": arm.policy.model_copy(update={"microbatch_size": 32})})
    plain = arm.model_copy(update={"policy": arm.policy.model_copy(update={"checkpointing": False})})
    whole = estimate.policy_memory(sizes, params, arm)
    # Two policies of 2 bytes, masters and moments of 16, gradients of 6: the average is the anchor.
    assert whole > 26 * sizes.policy
    based = arm.model_copy(update={"policy": arm.policy.model_copy(update={"reference": "base"})})
    assert estimate.policy_memory(sizes, params, based) == whole + 2 * sizes.policy
    assert estimate.policy_memory(sizes, params, half) < whole < estimate.policy_memory(sizes, params, plain)
    assert estimate.decoder_memory(sizes, params, params.arm("frozen")) == 0.0


def test_a_microbatch_bounds_the_decoder_stages_memory() -> None:
    params, sizes = load_profile(ROOT / "profiles/llamagen-xl-clip.yaml"), LLAMAGEN_XL
    arm = params.arm("coevolved")

    def need(dtype: str = "bfloat16", **changes: int) -> float:
        of = params.model_copy(update={"runtime": params.runtime.model_copy(update={"dtype": dtype})})
        settings = arm.decoder.model_copy(update=changes)
        return estimate.decoder_memory(sizes, of, arm.model_copy(update={"decoder": settings}))

    sized = [need(microbatch_size=size) for size in (1, 8, 16, 32)]
    assert sized == sorted(sized) and sized[3] > 2 * sized[2]  # 32 keep the graphs of decoder and losses, of both kinds
    # Held whole, a pair is two graphs of the decoder, one of a loss, pictures, and a last layer's share of the graphs.
    plain = {"lambda_reward": 0.0, "microbatch_size": 8}
    pair = need(**plain, rollouts_per_step=6, reals_per_step=6) - need(**plain, rollouts_per_step=5, reals_per_step=5)
    pixels, drawn = sizes.image_size**2, sizes.decoder_image(2)
    pictures = 2 * 12 * estimate.STEP_IMAGES * pixels
    assert pair == pytest.approx(2 * drawn * (1 + 1 / 30) + estimate.LPIPS_PIXEL * pixels + pictures)
    more = need(rollouts_per_step=64, reals_per_step=64, microbatch_size=16) - sized[2]
    assert 0 < more < 0.2 * sized[2]  # pictures alone
    assert need("float32", microbatch_size=32) > 1.5 * need(microbatch_size=32)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_profile_fits_one_80_gb_card(name: str) -> None:
    params = load_profile(ROOT / f"profiles/{name}.yaml")
    need = estimate.memory(published(params.backbone.name, Path(params.backbone.base)), params)
    assert need.device * 1.1 < 79.1 * 2**30 and need.host < 128e9


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_profiles_rounds_are_the_papers_steps(name: str) -> None:
    params = load_profile(ROOT / f"profiles/{name}.yaml")
    updates = params.prompts.per_round * params.rollouts.group_size // params.policy.minibatch_size
    assert updates == params.decoder.steps and updates * len(params.rounds) == 6000
    assert params.decoder.rollouts_per_step == params.decoder.reals_per_step == 32
    assert params.ranking.temperature.rounds == len(params.rounds) / 5
    scale = sum(reward.weight for reward in params.ranking.rewards.values())
    assert params.ranking.minimum_std == pytest.approx(1e-4 * scale)
    assert params.sft.train and params.sft.steps * params.sft.batch_size >= 2 * params.sft.images
