"""Trained weights as a base folder of the embedded world."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rank_e.backbones.llamagen import DECODER_PREFIXES
from rank_e.io.checkpoints import check_finite, check_shapes, read_tensors, save_tensors, shapes_of, write_folder
from rank_e.io.manifest import read_manifest, write_manifest
from rank_e.shapes import FORMAT

TRAINING = ("commits", "metrics", "params")  # how the base was trained and what it measured: not true of other weights


def export_shapes(base: Path, to: Path, policy: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> None:
    """The base folder `base` with another policy and decoder, in its dtypes, as the new folder `to`.

    policy: a `Policy`'s state dict; decoder: a `Tokenizer.decoder_state()`. decoder.safetensors holds the decoder and
    post_quant_conv alone. RankEError for weights that do not fit or that the base's dtype cannot hold.
    """
    manifest = read_manifest(base, FORMAT)
    old, tokenizer = read_tensors(base / "policy.safetensors"), read_tensors(base / "tokenizer.safetensors")
    old_decoder = {name: tensor for name, tensor in tokenizer.items() if name.startswith(DECODER_PREFIXES)}
    new_policy = _fitted(policy, old, "the policy to export")
    new_decoder = _fitted(decoder, old_decoder, "the decoder to export")
    files = {"policy": new_policy, "tokenizer": tokenizer | new_decoder, "decoder": new_decoder}
    with write_folder(to) as folder:
        for stem, tensors in files.items():
            save_tensors(tensors, folder / f"{stem}.safetensors")
        for name in manifest["files"]:
            if not (folder / name).exists():
                shutil.copyfile(base / name, folder / name)
        write_manifest(folder, FORMAT, {key: value for key, value in manifest.items() if key not in TRAINING})


def _fitted(given: Mapping[str, Tensor], like: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """`given` in the order and the dtypes of `like`, which must have the same names and shapes."""
    check_shapes(given, shapes_of(like), where)
    fitted = {name: given[name].to(tensor.dtype) for name, tensor in like.items()}
    check_finite(fitted, where)  # float16 ends at 65504
    return fitted
