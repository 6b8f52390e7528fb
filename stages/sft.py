"""Stage sft: the supervised start of every arm: the policy learns the tokens of real images from their own captions.

With `sft.train: false` it hands on the base policy, and every arm starts from the base.
"""

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rank_e.backbones.protocol import Backbone
from rank_e.data.opening import open_dataset
from rank_e.seeds import seed_for
from rank_e.training.sft_update import EncodedImages, SftUpdate, encode_images
from stages.runtime.artifacts import ArtifactWriter
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main
from stages.runtime.state import StageState

TOKENS, CAPTIONS = "images/tokens", "images/captions"
Weights = Mapping[str, Tensor]


class RealImages:
    """Tokens int32 [n, L] and captions of the first n of `sft.images` images: what a stage's state keeps of them."""

    def __init__(self, saved: tuple[dict[str, Tensor], Any] | None) -> None:
        """Nothing, or what an earlier try has saved."""
        self.parts: list[Tensor] = [saved[0][TOKENS]] if saved else []
        self.captions: list[str] = json.loads(saved[0][CAPTIONS].numpy().tobytes()) if saved else []
        self.skipped: list[dict[str, str]] = saved[1]["skipped"] if saved else []

    def tensors(self) -> dict[str, Tensor]:
        """Captions are bytes here: the header of a file of tensors is limited, and many captions are long."""
        captions = torch.frombuffer(bytearray(json.dumps(self.captions).encode()), dtype=torch.uint8)
        return {TOKENS: torch.cat(self.parts), CAPTIONS: captions}

    def read(self, stage: Stage, backbone: Backbone, state: StageState) -> None:
        """Read and encode all that are left, a batch at a time: the images themselves are forgotten."""
        params, done = stage.params.sft, len(self.captions)
        if done == params.images:
            return
        dataset = open_dataset(stage.params.data.training, backbone.image_size, "data.training")
        tokenizer = backbone.tokenizer(backbone.decoder_weights())
        found = dataset.captioned_images(params.images, seed_for(stage.seed, "sft", "pictures"), done)
        before = self.skipped
        for _ in stage.progress(range(done, params.images, params.microbatch_size), "encoding"):
            batch = list(islice(found, params.microbatch_size))
            images = torch.stack([item.image for item in batch])
            self.parts.append(encode_images(tokenizer, images, len(batch)).int())
            self.captions += [item.caption for item in batch]
            rows = {row["name"]: row for row in [*before, *dataset.skipped()]}
            self.skipped = [rows[name] for name in sorted(rows)]  # however often the stage was killed
            if state.due():
                state.save(self.tensors(), {"skipped": self.skipped, "log": []})

    def encoded(self, backbone: Backbone) -> EncodedImages:
        """For the update: captions are encoded when their turn comes, since features of all may not fit in memory."""

        def text(rows: Tensor) -> tuple[Tensor, Tensor]:
            return backbone.encode_text([self.captions[row] for row in rows.tolist()])

        return EncodedImages(torch.cat(self.parts).long(), text)


def train(stage: Stage, backbone: Backbone) -> None:
    """Encode, train from the base, and write; a killed stage goes on from its last saved batch or update."""
    params, state = stage.params.sft, stage.state()
    saved = state.load()
    images = RealImages(saved)
    images.read(stage, backbone, state)
    base = backbone.policy_weights()
    update = SftUpdate(backbone.policy(base), images.encoded(backbone), params, stage.seed)
    update.load_weights(base)
    log: list[dict[str, float]] = saved[1]["log"] if saved else []
    if saved and log:
        update.load_state(saved[0])
    for index in stage.progress(range(len(log), params.steps), "sft"):
        metrics = {"step": index, **update.step(index)}
        log.append(metrics)
        stage.events.log(index, params.steps, metrics)
        if state.due():
            state.save(images.tensors() | update.state(), {"skipped": images.skipped, "log": log})
    table = pd.DataFrame(log)
    counts = {"truncated": len(backbone.truncated(images.captions)), "skipped": len(images.skipped)}
    metrics = {**table.drop(columns="step").mean().to_dict(), **counts}
    write(stage, update.weights(), update.average, table, metrics, images.skipped)
    state.remove()


def write(
    stage: Stage,
    online: Weights,
    average: Weights,
    log: pd.DataFrame,
    metrics: dict[str, float],
    skipped: list[dict[str, str]],
) -> None:
    """The artifact of a policy: the same files whether it was trained or handed on."""
    with ArtifactWriter(stage.path("sft"), "policy", seed=stage.seed, inputs={}) as out:
        out.tensors("online", online)
        out.tensors("ema", average)
        out.json("progress", {"updates": len(log)})
        out.table("log", log)
        out.json("metrics", metrics)
        out.json("skipped", skipped)


def run(stage: Stage) -> None:
    """online and ema, progress.json, log.parquet (a row per update), metrics.json, skipped.json.

    metrics: the log's means; `truncated`, captions that are longer than the text encoder reads; `skipped`, samples that
    could not be read, which skipped.json names. None where nothing was trained.
    """
    backbone = backbone_of(stage)
    if stage.params.sft.train:
        train(stage, backbone)
        return
    base = backbone.policy_weights()
    write(stage, base, base, pd.DataFrame({"step": pd.Series(dtype="int64")}), {}, [])


if __name__ == "__main__":
    main("sft", run)
