"""Stage decoder: one round of Rank-GAN on the ranked rollouts; the policy stays as it is.

An arm with `decoder.train: false` hands on the very bytes it was given: the change stops there.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch

from rank_e.backbones.protocol import Backbone
from rank_e.data.dataset import Dataset
from rank_e.data.opening import open_dataset
from rank_e.seeds import generator, seed_for
from rank_e.training.decoder_update import DecoderUpdate, Nets, RankedImages
from rank_e.training.networks import build_discriminator, build_perceptual
from stages.runtime.artifacts import Artifact, ArtifactWriter, read_artifact
from stages.runtime.backbone import backbone_of
from stages.runtime.rewards import rewards_of
from stages.runtime.stage import Stage, main

KINDS = ("online/", "ema/", "discriminator/", "optimizer/")


def run(stage: Stage) -> None:
    """online, ema (decoder + post_quant_conv), discriminator, optimizer, progress.json, log.parquet, metrics.json."""
    previous = read_artifact(stage.path("decoder", round=stage.round - 1), "decoder")
    if not stage.arm_params.decoder.train:
        with ArtifactWriter(stage.path("decoder"), "decoder", seed=stage.seed, inputs={}) as out:
            out.tensors("online", previous.tensors("online"))
            out.tensors("ema", previous.tensors("ema"))
            out.json("progress", previous.json("progress"))
            out.table("log", pd.DataFrame({"step": pd.Series(dtype="int64")}))
            out.json("metrics", {})
        return
    train(stage, previous)


def build(stage: Stage, backbone: Backbone, dataset: Dataset, inputs: dict[str, Artifact]) -> DecoderUpdate:
    """The update as it stands at the beginning of this round."""
    settings = stage.arm_params.decoder
    folder = Path(stage.params.weights.training)
    previous, ranking = inputs["previous"], inputs["ranking"]
    prompts = inputs["prompts"].table("prompts")["prompt"].tolist()
    steps = previous.json("progress")["steps"]
    draw = generator(stage.seed, "discriminator")
    discriminator = build_discriminator(settings.discriminator, folder, draw, stage.device)
    if steps > 0:
        discriminator.load_state_dict(previous.tensors("discriminator"))
    update = DecoderUpdate(
        Nets(
            backbone.tokenizer(previous.tensors("online")),
            backbone.tokenizer(previous.tensors("ema")),
            discriminator,
            rewards_of(stage, ranking.json("rewards")) if settings.lambda_reward > 0 else None,
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
        steps_before=steps,
    )
    if steps > 0:
        update.load_state(previous.tensors("optimizer"))
    return update


def snapshot(update: DecoderUpdate) -> dict[str, dict[str, torch.Tensor]]:
    """Everything that moves, by artifact file."""
    return {
        "online": update.nets.online.decoder_state(),
        "ema": update.nets.average.decoder_state(),
        "discriminator": update.nets.discriminator.state_dict(),
        "optimizer": update.state(),
    }


def restore(update: DecoderUpdate, parts: dict[str, dict[str, torch.Tensor]]) -> None:
    """Put a snapshot back."""
    update.nets.online.load_decoder_state(parts["online"])
    update.nets.average.load_decoder_state(parts["ema"])
    update.nets.discriminator.load_state_dict(parts["discriminator"])
    update.load_state(parts["optimizer"])


def train(stage: Stage, previous: Artifact) -> None:
    inputs = {
        "prompts": read_artifact(stage.path("prompts"), "prompts"),
        "rollouts": read_artifact(stage.path("rollouts"), "rollouts"),
        "ranking": read_artifact(stage.path("ranking"), "ranking"),
        "previous": previous,
    }
    backbone = backbone_of(stage)
    dataset = open_dataset(stage.params.data.training, backbone.image_size, "data.training")
    update = build(stage, backbone, dataset, inputs)
    state = stage.state(*(artifact.path for artifact in inputs.values()))
    saved = state.load()
    log: list[dict[str, Any]] = []
    if saved is not None:
        log = saved[1]["log"]
        restore(update, {k[:-1]: {n[len(k) :]: t for n, t in saved[0].items() if n.startswith(k)} for k in KINDS})
    else:
        for index in stage.progress(range(update.warmup_steps), "discriminator warm-up"):
            update.warm_up(index)
    steps, total = update.steps_before, update.params.steps
    for index in stage.progress(range(len(log), total), "decoder"):
        metrics = {"step": steps + index, **update.step(index)}
        log.append(metrics)
        stage.events.log(steps + index, total, metrics)
        if state.due():
            parts = snapshot(update)
            state.save({f"{k}/{n}": t for k, part in parts.items() for n, t in part.items()}, {"log": list(log)})
    table = pd.DataFrame(log)
    paths = {name: artifact.path for name, artifact in inputs.items()}
    with ArtifactWriter(stage.path("decoder"), "decoder", seed=stage.seed, inputs=paths) as out:
        for name, tensors in snapshot(update).items():
            out.tensors(name, tensors)
        out.json("progress", {"steps": steps + total})
        out.json("skipped", dataset.skipped())
        out.table("log", table)
        out.json("metrics", table.drop(columns="step").mean().to_dict())
    state.remove()


if __name__ == "__main__":
    main("decoder", run)
