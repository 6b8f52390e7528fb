"""Trained weights as LlamaGen's own files, over a folder that `rank-e convert llamagen` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rank_e.backbones.llamagen import DECODER_PREFIXES, FORMAT, ROTARY
from rank_e.io.checkpoints import (
    check_absent,
    check_finite,
    check_shapes,
    check_space,
    read_tensors,
    save_tensors,
    save_torch,
    shapes_of,
    without,
    write_folder,
)
from rank_e.io.manifest import files_of, read_manifest, save_json


def export_llamagen(
    base: str | Path,
    to: str | Path,
    policy: Mapping[str, Tensor] | None = None,
    decoder: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Write trained weights over the converted folder `base` as LlamaGen's own files into `to`; their sha256.

    policy: a `Policy`'s state dict; decoder: a `Tokenizer.decoder_state()`; None leaves the base's. Writes
    t2i_SIZE_PIXELS, vq_dsN_t2i and decoder (with post_quant_conv) alone, each as .pt ({"model": ...}) and as
    .safetensors, and export.json. Dtypes are those of the tensors given.
    """
    base, to = Path(base), Path(to)
    check_absent(to)
    manifest = read_manifest(base, FORMAT)
    weights, vq = read_tensors(base / "policy.safetensors"), read_tensors(base / "tokenizer.safetensors")
    trained = without(weights, ROTARY)
    if policy is not None:
        check_shapes(policy, shapes_of(trained), "the policy to export")
        check_finite(policy, "the policy to export")
        weights = {name: policy.get(name, tensor) for name, tensor in weights.items()}
    part = {name: tensor for name, tensor in vq.items() if name.startswith(DECODER_PREFIXES)}
    if decoder is not None:
        check_shapes(decoder, shapes_of(part), "the decoder to export")
        check_finite(decoder, "the decoder to export")
        part = {name: decoder[name] for name in part}
        vq = vq | part
    config = manifest["tokenizer"]
    downsampling = 2 ** (len(config["channel_multipliers"]) - 1)
    files = {
        f"t2i_{manifest['name']}_{config['image_size']}": weights,
        f"vq_ds{downsampling}_t2i": vq,
        "decoder": part,
    }
    check_space(to, 2 * sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values()))
    with write_folder(to) as folder:
        for name, tensors in files.items():
            save_torch(tensors, folder / f"{name}.pt")
            save_tensors(tensors, folder / f"{name}.safetensors")
        written = {"format": f"{FORMAT.name}-export", "origin": manifest["origin"], "files": files_of(folder)}
        save_json(written, folder / "export.json")
    return written
