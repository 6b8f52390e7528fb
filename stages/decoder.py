"""Stage decoder: one round of Rank-GAN on the ranked rollouts; the policy stays as it is.

An arm with `decoder.train: false`, or before `decoder.first_round`, hands on the very bytes it was given: the change
stops there.
"""

from pathlib import Path

from rank_e.backbones.protocol import Backbone
from rank_e.data.dataset import Dataset
from rank_e.data.opening import open_dataset
from rank_e.seeds import generator, seed_for
from rank_e.training.decoder_update import DecoderUpdate, Nets
from rank_e.training.networks import build_discriminator, build_perceptual
from rank_e.training.ranked_images import RankedImages
from stages.runtime.artifacts import Artifact, read_artifact
from stages.runtime.backbone import backbone_of, dtype_of
from stages.runtime.rewards import rewards_of
from stages.runtime.sharing import once
from stages.runtime.stage import Stage, main
from stages.runtime.training import train, write


def run(stage: Stage) -> None:
    """online, ema (decoder + post_quant_conv), discriminator, optimizer, progress.json, log.parquet, metrics.json.

    skipped.json names the real images that could not be read. Without training there are online, ema, progress, an
    empty log and no metrics.
    """
    previous = read_artifact(stage.path("decoder", round=stage.round - 1), "decoder")
    settings = stage.arm_params.decoder
    if settings.train and stage.round >= settings.first_round:
        train_decoder(stage, previous)
        return
    tensors = {file: previous.tensors(file) for file in ("online", "ema")}
    # Of params the one fact that decided it: another would spread a change that stops here.
    used, progress = {"decoder": {"train": False}}, previous.json("progress")
    write(stage, "decoder", tensors, [], inputs={}, metrics={}, params=used, progress=progress)


def train_decoder(stage: Stage, previous: Artifact) -> None:
    """Rank-GAN on the round's rollouts, or a copy of what it made of the same for another arm."""
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "rollouts": read_artifact(stage.path("rollouts"), "rollouts"),
        "ranking": read_artifact(stage.path("ranking"), "ranking"),
        "previous": previous,
    }
    once(stage, inputs, lambda: train_and_write(stage, inputs))


def train_and_write(stage: Stage, inputs: dict[str, Artifact]) -> None:
    """Train and write; a killed stage goes on from its last saved step."""
    backbone = backbone_of(stage)
    dataset = open_dataset(stage.params.data.training, backbone.image_size, "data.training")
    update = build(stage, backbone, dataset, inputs)
    state = stage.state(*(artifact.path for artifact in inputs.values()))
    log = train(stage, update, state, state.load())
    progress = {"steps": update.steps_before + len(log)}
    skipped = dataset.skipped()
    write(stage, "decoder", update.state(), log, inputs=inputs, metrics={}, progress=progress, skipped=skipped)
    state.remove()


def build(stage: Stage, backbone: Backbone, dataset: Dataset, inputs: dict[str, Artifact]) -> DecoderUpdate:
    """The update as it stands at the beginning of this round."""
    settings = stage.memory.microbatched(stage.arm_params.decoder)
    folder = Path(stage.params.weights.training)
    previous, ranking = inputs["previous"], inputs["ranking"]
    prompts = inputs["prompts"].table("prompts")["prompt"].tolist()
    before = previous.json("progress")["steps"]
    fresh = generator(stage.seed, "discriminator")
    update = DecoderUpdate(
        Nets(
            backbone.tokenizer(previous.tensors("online")),
            backbone.tokenizer(previous.tensors("ema")),
            build_discriminator(settings.discriminator, folder, fresh, stage.device),
            rewards_of(stage, ranking.json("rewards")) if settings.rewarded else None,
            build_perceptual(settings.perceptual, folder, stage.device),
        ),
        RankedImages(
            inputs["rollouts"].tensors("rollouts")["tokens"].long(),
            ranking.tensors("ranking")["rank_weights"],
            prompts,
            dataset.real_images(prompts, seed_for(stage.seed, "reals", stage.round)),
        ),
        settings,
        seed=stage.seed,
        round_id=stage.round,
        steps_before=before,
        dtype=dtype_of(stage),
    )
    if before > 0:  # before its first step a decoder has neither a discriminator nor an optimiser
        update.load({file: previous.tensors(file) for file in update.state()})
    return update


if __name__ == "__main__":
    main("decoder", run)
