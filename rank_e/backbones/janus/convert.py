"""Janus-Pro Hugging Face folders (such as deepseek-community/Janus-Pro-1B) as base folders.

A base folder holds, beside base.json and copies of the configuration and processor files,

* policy.safetensors: language model, generation embedding, aligner and head, without "model." in their names,
* tokenizer.safetensors: the VQ model, under `rank_e.backbones.llamagen.tokenizer.Tokenizer`'s names,
* rest.safetensors: what generation never runs (vision encoder, its aligner, text head), kept for export alone.

Every tensor keeps its dtype and its bits; `export_janus` puts them back under the checkpoint's names, file by file.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rank_e.backbones.janus import FORMAT
from rank_e.backbones.janus.tokenizer import ours, tokenizer_config
from rank_e.io.checkpoints import (
    CheckpointError,
    check_finite,
    check_shapes,
    check_whole,
    origin_of,
    read_shards,
    read_tensors,
    save_tensors,
    shapes_of,
    write_folder,
)
from rank_e.io.foreign import check_floating, foreign_model
from rank_e.io.headers import WEIGHT_FILES
from rank_e.io.json_text import parse_json
from rank_e.io.manifest import read_manifest, write_manifest
from rank_e.io.torchvision_ops import declare_torchvision_ops

if TYPE_CHECKING:
    from transformers import JanusConfig

NEEDED = ("config.json", "tokenizer.json", "tokenizer_config.json")
PROCESSOR = (
    "generation_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
)
"""Files that are copied as they are, if the checkpoint has them."""
MODEL, VQ = "model.", "model.vqmodel."
PARTS = ("language_model", "generation_embeddings", "generation_aligner", "generation_head")
POLICY = tuple(f"{MODEL}{part}." for part in PARTS)
DECODER = (f"{VQ}decoder.", f"{VQ}post_quant_conv.")
TEXT_HEAD = "lm_head.weight"


def convert_janus(checkpoint: str | Path, to: str | Path) -> dict[str, Any]:
    """Write the base folder `to` from the Hugging Face folder `checkpoint`; returns its manifest.

    CheckpointError (one line: file or key, and the fix) for a missing or damaged file, keys or shapes that do not
    fit config.json, another model, values that are not finite; then `to` does not exist.
    """
    checkpoint = Path(checkpoint)
    for name in NEEDED:
        if not (checkpoint / name).is_file():
            raise CheckpointError(f"{checkpoint / name} does not exist; give a Hugging Face folder of Janus-Pro")
    for name in (*NEEDED, *PROCESSOR):
        if (checkpoint / name).is_file():
            check_whole(checkpoint / name)
    config = read_config(checkpoint)
    special = special_tokens(checkpoint)
    vocabulary = config.text_config.vocab_size  # type: ignore[union-attr]
    if any(not 0 <= token < vocabulary for token in special.values()):
        wrong = f"token ids {special} exceed the vocabulary of {vocabulary}"
        raise CheckpointError(f"{checkpoint}: {wrong}; download it again")
    files = read_weights(checkpoint)
    tensors = {name: tensor for part in files.values() for name, tensor in part.items()}
    check_shapes(tensors, expected_shapes(config, TEXT_HEAD in tensors, checkpoint / "config.json"), checkpoint)
    check_floating(tensors, checkpoint)
    check_finite(tensors, checkpoint)
    names = [[*part] for part in files.values()]
    with write_folder(to) as folder:
        for name in (*NEEDED, *PROCESSOR):
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, folder / name)
        policy = {name.removeprefix(MODEL): tensors[name] for name in tensors if name.startswith(POLICY)}
        vq = {ours(name.removeprefix(VQ)): tensors[name] for name in tensors if name.startswith(VQ)}
        rest = {name: tensors[name] for name in tensors if not name.startswith((*POLICY, VQ))}
        for stem, part in (("policy", policy), ("tokenizer", vq), ("rest", rest)):
            save_tensors(part, folder / f"{stem}.safetensors")
        settings = config.to_dict()
        text = config.text_config.to_dict()  # type: ignore[union-attr]
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
        vq_settings = settings["vq_config"]
        manifest = {
            "policy": {
                "length": vq_settings["num_patches"] ** 2,
                "vocab_size": vq_settings["num_embeddings"],
                **{name: text[name] for name in sizes},
            },
            "tokenizer": asdict(tokenizer_config(vq_settings)),
            "text": {**special, "vocab_size": vocabulary, "max_positions": text["max_position_embeddings"]},
            "origin": {path.name: origin_of(path, part) for path, part in files.items()},
            "shards": names,
        }
        write_manifest(folder, FORMAT, manifest)
    return read_manifest(to, FORMAT)


def read_config(folder: Path) -> JanusConfig:
    """config.json of a folder; CheckpointError when it is damaged or of another model."""
    declare_torchvision_ops()
    from huggingface_hub.errors import StrictDataclassError
    from transformers import JanusConfig

    path = folder / "config.json"
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
        kind = settings["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(f"{path} is missing or damaged; download it again") from None
    if kind != "janus":
        hint = "this is DeepSeek's own layout, " if kind == "multi_modality" else ""
        raise CheckpointError(
            f"{path}: model_type {kind!r}, not 'janus'; {hint}give a transformers folder such as "
            "deepseek-community/Janus-Pro-1B"
        )
    try:
        config = JanusConfig.from_dict(settings)
    except (TypeError, ValueError, StrictDataclassError) as error:
        cause = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{path} is not a Janus configuration ({cause}); download it again") from None
    vision, vq = config.to_dict()["vision_config"], config.to_dict()["vq_config"]
    tokens = vq["num_patches"] ** 2
    if vision["num_image_tokens"] != tokens:
        raise CheckpointError(
            f"{path}: vision_config.num_image_tokens {vision['num_image_tokens']} does not fit the image size, which "
            f"gives {tokens} tokens; use the configuration that belongs to the checkpoint"
        )
    if tokenizer_config(vq).image_size != vision["image_size"]:
        raise CheckpointError(
            f"{path}: vision_config.image_size {vision['image_size']} is not the VQ model's "
            f"{tokenizer_config(vq).image_size}; use the configuration that belongs to the checkpoint"
        )
    return config


def expected_shapes(config: JanusConfig, text_head: bool, where: str | Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight of the model; a tied text head may be left out of a checkpoint.

    CheckpointError naming `where` if no model has the sizes of `config`.
    """
    declare_torchvision_ops()
    from transformers import JanusForConditionalGeneration

    with foreign_model(where):
        shapes = shapes_of(JanusForConditionalGeneration(config).state_dict())
    if config.tie_word_embeddings and not text_head:
        shapes.pop(TEXT_HEAD)
    return shapes


def read_weights(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """The tensors of the checkpoint's file, or of the shards that its index names."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder} holds none of {', '.join(WEIGHT_FILES)}; download the model's weights")
    if found.name.endswith(".index.json"):
        check_whole(found)
        return read_shards(found)
    return {found: read_tensors(found)}


def special_tokens(folder: Path) -> dict[str, int]:
    """bos, boi and pad: what generation_config.json says, as transformers' generate() does, else the tokenizer."""
    from tokenizers import Tokenizer

    settings: dict[str, Any] = {}
    if (folder / "generation_config.json").is_file():
        settings = _json(folder / "generation_config.json")
    given = {**(settings.get("generation_kwargs") or {}), **settings}
    names = _json(folder / "tokenizer_config.json")
    names = {**(names.get("extra_special_tokens") or {}), **names}
    try:
        vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(
            f"{folder / 'tokenizer.json'} cannot be read ({str(error)[:160]}); download it again"
        ) from None
    ids = {}
    for kind in ("bos", "boi", "pad"):
        token = names.get(f"{kind}_token")
        text = token["content"] if isinstance(token, dict) else token
        found = given.get(f"{kind}_token_id")
        found = vocabulary.token_to_id(text) if found is None and text is not None else found
        if found is None:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'} and generation_config.json name no known {kind} token; "
                "use the files of a Janus-Pro model in transformers' format"
            )
        ids[kind] = int(found)
    return ids


def _json(path: Path) -> dict[str, Any]:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is damaged; download it again")
    return value
