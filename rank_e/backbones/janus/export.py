"""Trained weights as a Hugging Face Janus folder, over a folder that `rank-e convert janus` wrote."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rank_e.backbones.janus import FORMAT, TEXT_EMBEDDING
from rank_e.backbones.janus.convert import (
    DECODER,
    MODEL,
    NEEDED,
    POLICY,
    PROCESSOR,
    VQ,
)
from rank_e.backbones.janus.tokenizer import theirs
from rank_e.io.checkpoints import (
    check_finite,
    check_shapes,
    read_tensors,
    save_tensors,
    write_folder,
)
from rank_e.io.headers import WEIGHT_FILES
from rank_e.io.manifest import read_manifest, save_json


def export_janus(
    base: str | Path,
    to: str | Path,
    policy: Mapping[str, Tensor] | None = None,
    decoder: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a Hugging Face folder `to` that `JanusForConditionalGeneration.from_pretrained` loads unchanged.

    `policy` (a `JanusPolicy.state_dict()`) and `decoder` (a `Tokenizer.decoder_state()`) replace the base's; without
    them the base comes back bit for bit. Every tensor keeps the checkpoint's dtype and shard.
    decoder.safetensors holds the decoder and post_quant_conv alone, under `JanusVQVAE`'s names. CheckpointError for
    weights that do not fit the base; then `to` does not exist.
    """
    base = Path(base)
    manifest = read_manifest(base, FORMAT)
    tensors = {MODEL + name: tensor for name, tensor in read_tensors(base / "policy.safetensors").items()}
    tensors |= {VQ + theirs(name): tensor for name, tensor in read_tensors(base / "tokenizer.safetensors").items()}
    tensors |= read_tensors(base / "rest.safetensors")
    replaced = {
        **{MODEL + name: tensor for name, tensor in (policy or {}).items()},
        **{VQ + theirs(name): tensor for name, tensor in (decoder or {}).items()},
    }
    trained = (POLICY if policy is not None else ()) + (DECODER if decoder is not None else ())
    wanted = [name for name in tensors if name.startswith(trained) and name != MODEL + TEXT_EMBEDDING]
    check_shapes(replaced, {name: tensors[name].shape for name in wanted}, "the exported weights")
    check_finite(replaced, "the exported weights")
    tensors |= {name: tensor.to("cpu", tensors[name].dtype) for name, tensor in replaced.items()}
    shards: list[list[str]] = manifest["shards"]
    with write_folder(to) as folder:
        for name in (*NEEDED, *PROCESSOR):
            if (base / name).is_file():
                shutil.copyfile(base / name, folder / name)
        places: dict[str, str] = {}
        for number, names in enumerate(shards, 1):
            file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            save_tensors({name: tensors[name] for name in names}, folder / file)
            places |= dict.fromkeys(names, file)
        if len(shards) > 1:
            total = sum(tensors[name].numel() * tensors[name].element_size() for name in places)
            save_json({"metadata": {"total_size": total}, "weight_map": places}, folder / WEIGHT_FILES[0])
        alone = {name.removeprefix(VQ): tensor for name, tensor in tensors.items() if name.startswith(DECODER)}
        save_tensors(alone, folder / "decoder.safetensors")
