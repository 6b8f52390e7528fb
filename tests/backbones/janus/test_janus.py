"""Janus's policy against transformers' own: greedy tokens, scores, gradients, prefixes, memory, half precision."""

import itertools

import pytest
import torch
from torch import Tensor

from rank_e.backbones.janus.backbone import JanusBackbone
from rank_e.backbones.janus.convert import convert_janus
from rank_e.backbones.janus.policy import JanusPolicy
from rank_e.errors import RankEError
from rank_e.sampling.distribution import SamplingConfig
from rank_e.sampling.filters import guide
from rank_e.sampling.sampler import sample
from rank_e.sampling.scoring import score
from rank_e.seeds import generator, seed_for
from tests.helpers import tiny_janus
from tests.helpers.allocations import Allocations

PROMPTS = ["a cat", "two red dogs on a boat", "sky"]
GUIDED = SamplingConfig(guidance=5.0)


@pytest.fixture(scope="module")
def upstream():
    return tiny_janus.model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("janus")
    convert_janus(tiny_janus.save(root / "hub"), root / "base")
    return root / "base"


@pytest.fixture(scope="module")
def backbone(folder):
    return JanusBackbone(folder, torch.device("cpu"), torch.float32)


@pytest.fixture
def policy(backbone) -> JanusPolicy:
    return backbone.policy(backbone.policy_weights())


@pytest.fixture(scope="module")
def text(backbone) -> tuple[Tensor, Tensor]:
    return backbone.encode_text(PROMPTS)


def upstream_logits(upstream, ids: Tensor, mask: Tensor, tokens: Tensor, unconditional: bool) -> Tensor:
    """One pass of transformers' modules over text and image rows, as generate() feeds them."""
    if unconditional:
        ids = torch.where((ids == 0) | (ids == 4), ids, 2)
    image = upstream.prepare_embeddings_for_image_generation(tokens[:, :-1])
    rows = torch.cat([upstream.get_input_embeddings()(ids), image], dim=1)
    seen = torch.cat([mask, mask.new_ones(image.shape[:2])], dim=1).long()
    hidden = upstream.model.language_model(inputs_embeds=rows, attention_mask=seen).last_hidden_state
    return upstream.model.generation_head(hidden[:, ids.shape[1] - 1 :])


def some_tokens(count: int = len(PROMPTS)) -> Tensor:
    return torch.randint(64, (count, 16), generator=generator(0, "tokens"))


@pytest.mark.parametrize("guidance", [3.0, 5.0])
def test_greedy_tokens_equal_generate(upstream, policy, text, guidance):
    ids, mask = text
    expected = upstream.generate(
        ids, attention_mask=mask.long(), generation_mode="image", do_sample=False, guidance_scale=guidance
    )
    config = SamplingConfig(guidance=guidance)
    found = sample(policy, ids, mask, [0] * 3, config, batch_size=2, greedy=True)
    assert len(torch.unique(expected)) > 5
    assert torch.equal(found.tokens, expected)


def test_encode_text_is_the_processors_image_mode(backbone, text):
    processor = tiny_janus.processor()
    turns = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in PROMPTS]
    prompts = processor.apply_chat_template(turns, add_generation_prompt=True)
    expected = processor(text=prompts, generation_mode="image", padding=True, return_tensors="pt")
    assert torch.equal(text[0], expected["input_ids"])
    assert torch.equal(text[1], expected["attention_mask"].bool())
    assert prompts[0] == "<|User|>: a cat\n\n<|Assistant|>:"


def test_scores_and_gradients_equal_the_forward_pass(upstream, policy, text):
    ids, mask = text
    tokens = some_tokens()
    conditional, unconditional = (upstream_logits(upstream, ids, mask, tokens, flag) for flag in (False, True))
    for config, logits in (
        (SamplingConfig(), conditional),
        (GUIDED, guide(conditional, unconditional, GUIDED.guidance)),
    ):
        expected = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        found = score(policy, ids, mask, tokens, config)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    weights = dict(upstream.named_parameters())
    names = [name for name, _ in policy.named_parameters()]
    wanted = torch.autograd.grad(expected.mean(), [weights[f"model.{name}"] for name in names])
    given = torch.autograd.grad(found.mean(), list(policy.parameters()))
    for name, a, b in zip(names, given, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3, msg=name)
        assert a.abs().max() > 0, name


@pytest.mark.parametrize("config", [SamplingConfig(), GUIDED, SamplingConfig(5.0, 0.9, 10, 0.9)])
def test_scoring_repeats_the_sampled_distribution(policy, text, config):
    seeds = [seed_for(0, "janus", i) for i in range(6)]
    samples = sample(policy, *text, seeds, config, batch_size=4, repeats=2)
    again = score(policy, *text, samples.tokens, config, owners=torch.arange(6) // 2)
    torch.testing.assert_close(again, samples.log_probs, atol=1e-4, rtol=0)


def test_a_prompt_does_not_know_its_neighbours(policy, backbone, text):
    seeds = [seed_for(0, "alone", i) for i in range(3)]
    together = sample(policy, *text, seeds, GUIDED, batch_size=3)
    for i, prompt in enumerate(PROMPTS):
        alone = sample(policy, *backbone.encode_text([prompt]), seeds[i : i + 1], GUIDED, batch_size=1)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        torch.testing.assert_close(alone.log_probs[0], together.log_probs[i], atol=1e-4, rtol=0)


def test_each_text_runs_once_for_all_its_rollouts(policy, text):
    seen: list[tuple[int, ...]] = []
    layer = policy.layers[0]
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[:2])))
    ids, mask = text
    score(policy, ids, mask, some_tokens(12), GUIDED, owners=torch.arange(12) // 4)
    handle.remove()
    masks = len(torch.unique(mask, dim=0))
    assert seen == [(3 + masks, ids.shape[1]), (24, 15)]


def held_bytes(policy: JanusPolicy, text: tuple[Tensor, Tensor], checkpointing: bool) -> int:
    """Bytes that live between the forward and the backward pass."""
    with Allocations() as made:
        prefix = policy.prefix(*text, None, checkpointing).rows(torch.arange(24) // 8)
        logits = policy.logits(policy.hidden(prefix, some_tokens(24), checkpointing))
        del prefix
        held = made.alive()
    logits.sum().backward()
    return held


def test_checkpointing_saves_memory_and_changes_no_gradient(policy, text):
    assert held_bytes(policy, text, True) < 0.4 * held_bytes(policy, text, False)
    gradients = [
        torch.autograd.grad(
            score(policy, *text, some_tokens(), GUIDED, checkpointing=checkpointing).sum(), list(policy.parameters())
        )
        for checkpointing in (False, True)
    ]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)


def test_bfloat16_works_and_its_positions_are_not_rounded(folder, upstream, text):
    backbone = JanusBackbone(folder, torch.device("cpu"), torch.bfloat16)
    policy = backbone.policy(backbone.policy_weights())
    assert {weight.dtype for weight in policy.parameters()} == {torch.bfloat16}
    position = torch.tensor([[200]])
    cosine, sine = policy._rotation(position, torch.float32)
    expected = upstream.model.language_model.rotary_emb(torch.zeros(1), position)
    torch.testing.assert_close((cosine, sine), expected, atol=1e-6, rtol=0)
    samples = sample(policy, *text, [1, 2, 3], GUIDED, batch_size=3)
    found = score(policy, *text, samples.tokens, GUIDED)
    assert found.dtype == torch.float32
    assert (found - samples.log_probs).abs().mean() < 0.2
    found.sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in policy.parameters())


def test_autocast_over_float32_weights_works(policy, text):
    with torch.autocast("cpu", torch.bfloat16):
        samples = sample(policy, *text, [1, 2, 3], GUIDED, batch_size=3)
        found = score(policy, *text, samples.tokens, GUIDED, checkpointing=True)
    found.sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in policy.parameters())
    assert all(torch.isfinite(weight.grad).all() for weight in policy.parameters())


def test_only_what_is_trained_is_stored_and_policies_share_the_text_embedding(backbone):
    weights = backbone.policy_weights()
    one, other = backbone.policy(weights), backbone.policy(weights)
    assert [*one.state_dict()] == [name for name, _ in one.named_parameters()]
    assert set(one.state_dict()) == set(weights) == set(backbone.trained_policy_keys)
    assert not any("embed_tokens" in name for name in weights)
    assert one.text_embedding.data_ptr() == other.text_embedding.data_ptr()
    with torch.no_grad():  # what is trained is each policy's own, and never the caller's
        for weight in one.parameters():
            weight.zero_()
    for name, weight in other.state_dict().items():
        assert torch.equal(weight, weights[name])
        assert weight.abs().max() > 0


def test_full_size_names_are_the_official_ones():
    from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

    from rank_e.backbones.janus import TEXT_EMBEDDING
    from rank_e.backbones.janus.policy import SpecialTokens
    from rank_e.backbones.janus.tokenizer import ours, theirs, tokenizer_config
    from rank_e.backbones.llamagen.tokenizer import Tokenizer

    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = JanusConfig(
        text_config=LlamaConfig(vocab_size=102400, max_position_embeddings=16384, **sizes).to_dict(),
        vision_config={},
        vq_config={},
    )
    with torch.device("meta"):
        official = {name: weight.shape for name, weight in JanusForConditionalGeneration(config).state_dict().items()}
        policy = JanusPolicy(config, SpecialTokens(0, 1, 2), torch.empty(102400, 2048))
        tokenizer = Tokenizer(tokenizer_config(config.vq_config.to_dict()))
    mine = {f"model.{name}": weight.shape for name, weight in policy.state_dict().items()}
    mine |= {f"model.vqmodel.{theirs(name)}": weight.shape for name, weight in tokenizer.state_dict().items()}
    generation = ("model.language_model.", "model.generation", "model.vqmodel.")
    wanted = {name: shape for name, shape in official.items() if name.startswith(generation)}
    wanted.pop(f"model.{TEXT_EMBEDDING}")
    assert mine == wanted
    assert all(ours(theirs(name)) == name for name in tokenizer.state_dict())
    assert (policy.length, policy.vocab_size, tokenizer.config.image_size) == (576, 16384, 384)
    assert 1.2e9 < sum(weight.numel() for weight in policy.parameters()) < 1.4e9


def test_text_of_another_form_is_refused(policy, backbone, text):
    ids, mask = text
    cases = {
        "not left-padded": (ids, mask.flip(1)),
        "is not BOS": (ids.roll(1, 1), torch.ones_like(mask)),
        "give int64 ids": (ids.float(), mask),
        "positions": (ids.repeat(1, 9), mask.repeat(1, 9)),
    }
    for message, (wrong, its_mask) in cases.items():
        with pytest.raises(RankEError, match=message):
            policy.prefix(wrong, its_mask)
    with pytest.raises(RankEError, match="row 1 is not BOS"):
        policy.prefix(ids.clone().index_put_((torch.tensor(1), torch.tensor(-3)), torch.tensor(4)), mask)
    for token, prompt in itertools.product((tiny_janus.BOS, tiny_janus.BOI), ("a {} cat",)):
        with pytest.raises(RankEError, match="spells the begin-of-sentence"):
            backbone.encode_text([prompt.format(token)])
    with pytest.raises(RankEError, match="no prompts"):
        backbone.encode_text([])
