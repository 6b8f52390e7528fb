"""Stage sft: the supervised start of every arm: the policy learns the tokens of real images from their own captions.

With `sft.train: false` it hands on the base policy, and every arm starts from the base.
"""

import json
from itertools import islice

import torch
from torch import Tensor

from rank_e.backbones.protocol import Backbone
from rank_e.data.opening import open_dataset
from rank_e.seeds import seed_for
from rank_e.training.sft_update import EncodedImages, SftUpdate, encode_images
from stages.runtime.backbone import backbone_of
from stages.runtime.stage import Stage, main
from stages.runtime.state import StageState
from stages.runtime.training import Saved, by_file, by_name, train, write


class TrainingImages:
    """Tokens int32 [n, L] and captions of the first n of `sft.images` pairs: what a stage's state keeps of them."""

    def __init__(self, saved: Saved | None) -> None:
        """Nothing, or what an earlier try has saved."""
        self.tokens: list[Tensor] = []
        self.captions: list[str] = []
        self.skipped: list[dict[str, str]] = []
        if saved is not None:
            images = by_file(saved[0])["images"]
            self.tokens = [images["tokens"]]
            self.captions = json.loads(images["captions"].numpy().tobytes())
            self.skipped = saved[1]["skipped"]

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Captions are bytes here: the header of a file of tensors is limited, and many captions are long."""
        captions = torch.frombuffer(bytearray(json.dumps(self.captions).encode()), dtype=torch.uint8)
        return {"images": {"tokens": torch.cat(self.tokens), "captions": captions}}

    def read(self, stage: Stage, backbone: Backbone, state: StageState) -> None:
        """Read and encode all that are left, a batch at a time: the images themselves are forgotten."""
        params, done = stage.memory.microbatched(stage.params.sft), len(self.captions)
        if done == params.images:
            return
        dataset = open_dataset(stage.params.data.training, backbone.image_size, "data.training")
        tokenizer = backbone.tokenizer(backbone.decoder_weights())
        # The stream keeps its first name, or every start trained so far would draw other images.
        found = dataset.captioned_images(params.images, seed_for(stage.seed, "sft", "pictures"), done)
        before = self.skipped
        for _ in stage.progress(range(done, params.images, params.microbatch_size), "encoding"):
            batch = list(islice(found, params.microbatch_size))
            images = torch.stack([item.image for item in batch])
            self.tokens.append(encode_images(tokenizer, images).int())
            self.captions += [item.caption for item in batch]
            rows = {row["name"]: row for row in [*before, *dataset.skipped()]}
            self.skipped = [rows[name] for name in sorted(rows)]  # however often the stage was killed
            if state.due():
                state.save(by_name(self.state()), {"skipped": self.skipped})

    def encoded(self, backbone: Backbone) -> EncodedImages:
        """For the update: captions are encoded when their turn comes, since features of all may not fit in memory."""

        def text(rows: Tensor) -> tuple[Tensor, Tensor]:
            return backbone.encode_text([self.captions[row] for row in rows.tolist()])

        return EncodedImages(torch.cat(self.tokens).long(), text)


def train_policy(stage: Stage, backbone: Backbone) -> None:
    """Encode, train from the base, and write; a killed stage goes on from its last saved batch or update."""
    params, state = stage.memory.microbatched(stage.params.sft), stage.state()
    saved = state.load()
    images = TrainingImages(saved)
    images.read(stage, backbone, state)
    base = backbone.policy_weights()
    update = SftUpdate(backbone.policy(base), images.encoded(backbone), params, stage.seed)
    update.load({"online": base, "ema": base, "optimizer": {}})
    log = train(stage, update, state, saved, kept=images.state(), value={"skipped": images.skipped})
    counts = {"truncated": len(backbone.truncated(images.captions)), "skipped": len(images.skipped)}
    trained = update.state()
    tensors = {"online": trained["online"], "ema": trained["ema"]}
    progress = {"updates": len(log)}
    write(stage, "policy", tensors, log, inputs={}, metrics=counts, progress=progress, skipped=images.skipped)
    state.remove()


def run(stage: Stage) -> None:
    """online and ema, progress.json, log.parquet (a row per update), metrics.json, skipped.json.

    metrics: the log's means; `truncated`, captions that are longer than the text encoder reads; `skipped`, samples that
    could not be read, which skipped.json names. None where nothing was trained.
    """
    backbone = backbone_of(stage)
    if stage.params.sft.train:
        train_policy(stage, backbone)
        return
    base = backbone.policy_weights()
    tensors = {"online": base, "ema": base}
    used, progress = {"backbone": stage.used["backbone"], "sft": {"train": False}}, {"updates": 0}
    write(stage, "policy", tensors, [], inputs={}, metrics={}, params=used, progress=progress, skipped=[])


if __name__ == "__main__":
    main("sft", run)
