"""Loading a backbone's networks: the stored bits in tensors of their own, and no number drawn on the way."""

from pathlib import Path

import pytest
import torch

from rank_e.backbones import load_backbone
from rank_e.backbones.janus.convert import convert_janus
from rank_e.backbones.protocol import Backbone
from tests.helpers import tiny_janus
from tests.helpers.llamagen_files import Official
from tests.helpers.tiny_nets import moved, snapshot

SHAPES = Path(__file__).parents[2] / "assets/shapes"


@pytest.fixture(scope="module", params=["shapes", "llamagen", "janus"])
def backbone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "llamagen":
        files = Official(folder)
        files.convert()
        return files.backbone()
    if request.param == "janus":
        convert_janus(tiny_janus.save(folder / "hub"), folder / "base")
    return load_backbone(
        request.param, SHAPES if request.param == "shapes" else folder / "base", torch.device("cpu"), torch.float32
    )


def test_policy_and_tokenizer_hold_copies_and_draw_nothing(backbone: Backbone) -> None:
    policies, decoders = backbone.policy_weights(), backbone.decoder_weights()
    before = torch.get_rng_state()
    policy, tokenizer = backbone.policy(policies), backbone.tokenizer(decoders)
    assert torch.equal(torch.get_rng_state(), before)
    for given, held in ((policies, dict(policy.named_parameters())), (decoders, dict(tokenizer.decoder_parameters()))):
        assert given.keys() == held.keys()
        for name, weight in held.items():
            assert weight.requires_grad and weight.is_leaf and weight.device.type == "cpu", name
            assert torch.equal(weight, given[name]) and weight.data_ptr() != given[name].data_ptr(), name
    # What is trained in one network is read by no other.
    first = snapshot(policy), snapshot(tokenizer)
    with torch.no_grad():
        for weight in tokenizer.parameters():
            weight.zero_()
        for _, weight in policy.named_parameters():
            weight.zero_()
    again = backbone.policy(policies), backbone.tokenizer(decoders)
    assert [moved(*pair) for pair in zip(first, again, strict=True)] == [set(), set()]


def test_weights_of_another_network_are_refused(backbone: Backbone) -> None:
    policies, decoders = backbone.policy_weights(), backbone.decoder_weights()
    name = next(iter(policies))
    for wrong in (policies | {name: policies[name][:1]}, policies | {"another": torch.zeros(1)}):
        with pytest.raises(Exception, match=f"{name}|another"):
            backbone.policy(wrong)
    with pytest.raises(Exception, match="another"):
        backbone.tokenizer(decoders | {"decoder.another": torch.zeros(1)})
