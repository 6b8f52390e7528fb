"""Tiny seeded networks and params shared by the training tests."""

from collections.abc import Mapping

import torch

from rank_e.backbones.llamagen.policy import Policy, PolicyConfig
from rank_e.backbones.llamagen.tokenizer import Tokenizer, TokenizerConfig
from rank_e.config import DecoderParams, PolicyParams
from rank_e.seeds import generator

POLICY = PolicyConfig(
    dim=32, n_layer=2, n_head=2, vocab_size=16, block_size=4, cls_token_num=3, caption_dim=8, multiple_of=16
)
TOKENIZER = TokenizerConfig(8, 8, (1, 2, 2), 1, 16, 16, 4, norm_groups=4)


def tiny_policy(name: str = "policy") -> Policy:
    policy = Policy(POLICY).initialise(generator(0, name))
    with torch.no_grad():  # a zero output layer would make every policy the same
        policy.output.weight.normal_(0.0, 0.3, generator=generator(0, name, "output"))
    return policy.eval()


def tiny_tokenizer() -> Tokenizer:
    return Tokenizer(TOKENIZER).initialise(generator(0, "tokenizer")).eval()


def policy_params(**changes: object) -> PolicyParams:
    values: dict[str, object] = {
        "epochs": 1,
        "minibatch_size": 8,
        "microbatch_size": 8,
        "learning_rate": 1e-2,
        "betas": [0.9, 0.95],
        "weight_decay": 0.01,
        "gradient_clip": 1.0,
        "clip_epsilon": 0.2,
        "kl_coefficient": 0.05,
        "reference": "base",
        "scoring": "guided",
        "ema_decay": 0.5,
        "ema_every": 1,
        "checkpointing": False,
    }
    return PolicyParams.model_validate(values | changes)


def decoder_params(**changes: object) -> DecoderParams:
    values: dict[str, object] = {
        "train": True,
        "first_round": 1,
        "steps": 2,
        "rollouts_per_step": 6,
        "reals_per_step": 4,
        "microbatch_size": 6,
        "learning_rate": 1e-3,
        "discriminator_learning_rate": 1e-3,
        "betas": [0.5, 0.95],
        "weight_decay": 0.0,
        "gradient_clip": 1.0,
        "lambda_gan": 1.0,
        "lambda_reward": 0.0,
        "lambda_reconstruction": 1.0,
        "lambda_consistency": 1.0,
        "l1_weight": 1.0,
        "perceptual": {"kind": "lpips", "file": "vgg16.pth"},
        "perceptual_weight": 0.5,
        "adversarial_rule": "gradient_norm",
        "adversarial_ratio": 1.0,
        "reward_ratio": 0.0,
        "rank_weighting": "rank",
        "discriminator_inputs": "rollouts",
        "discriminator": {"kind": "patchgan", "channels": 8, "layers": 1},
        "discriminator_start": 0,
        "discriminator_steps": 1,
        "discriminator_warmup_steps": 2,
        "instance_noise": 0.1,
        "lecam": 0.1,
        "ema_decay": 0.5,
    }
    return DecoderParams.model_validate(values | changes)


def copied(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copied(module.state_dict())


def moved(before: dict[str, torch.Tensor], module: torch.nn.Module) -> set[str]:
    """Names of the weights that changed since `before`."""
    return {name for name, value in module.state_dict().items() if not torch.equal(before[name], value)}
