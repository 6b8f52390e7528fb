"""LlamaGen's text: captions cleaned as in its training, flan-t5's encoder, 120 rows, left-padded with zeros.

LlamaGen (arXiv 2406.06525) reads the last hidden states of flan-t5-xl (width 2048). The cleaning is DeepFloyd
IF's, which PixArt and LlamaGen took over; it is applied twice, so that what the first pass uncovers is cleaned
too. The policy was trained and sampled with the padding in front and its features set to zero.
"""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import torch
from torch import Tensor

from rank_e.backbones.llamagen import TEXT_TOKENIZER_FILES
from rank_e.errors import RankEError
from rank_e.io.checkpoints import CheckpointError, check_shapes, check_whole, read_tensors, shapes_of
from rank_e.io.foreign import foreign_model
from rank_e.io.headers import WEIGHT_FILES
from rank_e.io.torchvision_ops import declare_torchvision_ops

TOKENS = 120

Rules = tuple[tuple[re.Pattern[str], str], ...]


def _rules(*pairs: tuple[str, str]) -> Rules:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


_FILE_TYPES = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_HOST = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_BEFORE_MARKUP = _rules(
    ("<person>", "person"),
    (rf"\b(?:https?:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),
    (rf"\b(?:www:(?:/{{1,3}}|[a-zA-Z0-9%])|{_HOST})", ""),
)
_SYMBOLS = _rules(
    (r"@\w+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # from CJK strokes to the end of the CJK ideographs
    (
        r"[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
        r"\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a backslash and an n
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE_TYPES}", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINERS = re.compile("[-_]")
_NOISE = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE_TYPES}(\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),  # sizes; Latin, Cyrillic and the sign
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def _apply(rules: Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def clean_caption(caption: str) -> str:
    """A caption as LlamaGen's text encoder saw it in training: lower case, without markup, addresses and noise."""
    return _clean_once(_clean_once(caption))


def _clean_once(caption: str) -> str:
    import ftfy
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    text = _apply(_BEFORE_MARKUP, unquote_plus(caption).strip().lower())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a caption may look like a file name
        text = BeautifulSoup(text, features="html.parser").text
    text = _apply(_SYMBOLS, text)
    if len(_JOINERS.findall(text)) > 3:  # this-is-my-cute-cat
        text = _JOINERS.sub(" ", text)
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return _apply(_NOISE, text).strip()


def _transformers() -> Any:
    """The transformers module, imported on first use; it imports torchvision."""
    declare_torchvision_ops()
    return import_module("transformers")


class T5TextEncoder:
    """Captions -> features of a T5 encoder, from a local Hugging Face folder; no network, every weight checked.

    The folder holds config.json, spiece.model or tokenizer.json, and the weights (.safetensors or .bin, whole or in
    shards). RankEError names what is missing or does not fit. float16 is refused: T5's activations overflow in it.
    """

    def __init__(self, folder: str | Path, device: torch.device, dtype: torch.dtype, tokens: int = TOKENS) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            raise RankEError(
                f"text encoder: dtype {dtype} is not float32 or bfloat16, which T5 needs; name one of them"
            )
        folder = Path(folder)
        self.tokens = tokens
        self.config = t5_config(folder)
        self.tokenizer = load_t5_tokenizer(folder)
        self.model = _load_encoder(folder, self.config, device, dtype)

    @property
    def width(self) -> int:
        """C, the width of a feature row."""
        return int(self.config.d_model)

    def truncated(self, prompts: Sequence[str]) -> list[int]:
        """Indices of the prompts whose cleaned captions have more tokens (end sign included) than are read."""
        return [i for i, ids in enumerate(self._ids(prompts, truncation=False)) if len(ids) > self.tokens]

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str], batch_size: int = 32) -> tuple[Tensor, Tensor]:
        """P prompts -> (features [P, tokens, C] in the encoder's dtype, mask bool [P, tokens]), on its device.

        Valid rows stand last; rows of padding are zero. Captions over `tokens` lose their end, but keep the end sign.
        """
        weight = self.model.get_input_embeddings().weight
        features = weight.new_zeros(len(prompts), self.tokens, self.width)
        mask = torch.zeros(len(prompts), self.tokens, dtype=torch.bool, device=weight.device)
        for start in range(0, len(prompts), batch_size):
            rows = self._ids(prompts[start : start + batch_size], truncation=True)
            longest = max(len(row) for row in rows)  # T5's positions are relative: less padding, same features
            padding = self.tokenizer.pad_token_id
            ids = torch.tensor([[padding] * (longest - len(row)) + row for row in rows], device=weight.device)
            valid = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=weight.device)
            hidden = self.model(input_ids=ids, attention_mask=valid).last_hidden_state
            end = start + len(rows)
            features[start:end, self.tokens - longest :] = hidden * valid.unsqueeze(-1).type_as(hidden)
            mask[start:end, self.tokens - longest :] = valid.bool()
        return features, mask

    def _ids(self, prompts: Sequence[str], truncation: bool) -> list[list[int]]:
        cleaned = [clean_caption(prompt) for prompt in prompts]
        if not cleaned:
            return []
        limit = {"truncation": True, "max_length": self.tokens} if truncation else {"verbose": False}
        rows: list[list[int]] = self.tokenizer(cleaned, add_special_tokens=True, padding=False, **limit)["input_ids"]
        return rows


def load_t5_tokenizer(folder: str | Path) -> Any:
    """The tokenizer of a local folder. RankEError: no file of it, a pointer in its place, or none that can be read."""
    folder = Path(folder)
    found = [folder / name for name in TEXT_TOKENIZER_FILES if (folder / name).is_file()]
    if not found:
        names = " or ".join(TEXT_TOKENIZER_FILES)
        raise RankEError(f"text encoder: {folder} holds no {names}; copy it from flan-t5-xl")
    for path in found:
        check_whole(path)
        if path.suffix == ".model":
            _check_sentencepiece(path)
    try:
        return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True, truncation_side="right")
    except Exception as error:  # the libraries beneath raise nothing narrower for a damaged file
        line = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise RankEError(
            f"text encoder: {folder} holds no readable tokenizer ({line}); download {found[0].name} again"
        ) from None


def _check_sentencepiece(path: Path) -> None:
    """RankEError where the file is not what it is called: transformers would take it for another library's."""
    try:
        import_module("sentencepiece").SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise RankEError(f"text encoder: {path} is not a SentencePiece model; download it again") from None


def t5_config(folder: str | Path) -> Any:
    """The T5Config of a local folder; RankEError when its config.json is missing or not a T5's."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise RankEError(f"text encoder: {path} does not exist; give the folder of flan-t5-xl")
    check_whole(path)
    from huggingface_hub.errors import StrictDataclassError

    try:
        config = _transformers().T5Config.from_json_file(path)
    except (ValueError, TypeError, StrictDataclassError) as error:
        cause = " ".join(str(error).split())[:160]
        raise RankEError(f"text encoder: {path} is not a T5 config ({cause}); download it again") from None
    if config.model_type != "t5":
        raise RankEError(f"text encoder: {path} is of model_type {config.model_type!r}, not 't5'; give flan-t5-xl")
    return config


def t5_weights_file(folder: str | Path) -> Path:
    """The file, or the index of files, that a folder's weights are read from; RankEError when there is none."""
    found = next((Path(folder) / name for name in WEIGHT_FILES if (Path(folder) / name).is_file()), None)
    if found is None:
        raise RankEError(f"text encoder: {folder} holds none of {', '.join(WEIGHT_FILES)}; download the weights")
    return found


def read_t5_encoder(folder: str | Path, config: Any) -> dict[str, Tensor]:
    """The encoder's weights under T5EncoderModel's names, checked strictly; the decoder's are left out."""
    path = t5_weights_file(folder)
    held = read_tensors(path)
    state = {name: tensor for name, tensor in held.items() if name.startswith(("encoder.", "shared."))}
    # One table under two names; files hold either or both.
    names = ("shared.weight", "encoder.embed_tokens.weight")
    table = next((state[name] for name in names if name in state), None)
    if table is None:
        raise CheckpointError(f"{path} holds no shared.weight; give the weights of a T5")
    state |= dict.fromkeys(names, table)
    with foreign_model(Path(folder) / "config.json"):
        expected = shapes_of(_transformers().T5EncoderModel(config).state_dict())
    check_shapes(state, expected, path)
    return state


def _load_encoder(folder: Path, config: Any, device: torch.device, dtype: torch.dtype) -> Any:
    state = read_t5_encoder(folder, config)
    with torch.device("meta"):
        model = _transformers().T5EncoderModel(config)
    table = state["shared.weight"].to(device, dtype)
    state = {name: tensor.to(device, dtype) for name, tensor in state.items() if tensor is not state["shared.weight"]}
    names = ("shared.weight", "encoder.embed_tokens.weight")
    model.load_state_dict(state | dict.fromkeys(names, table), strict=True, assign=True)
    return model.eval().requires_grad_(False)
