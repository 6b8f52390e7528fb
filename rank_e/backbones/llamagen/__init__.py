"""LlamaGen text-to-image (arXiv 2406.06525): names in its files, for those too that start without torch."""

from rank_e.io.manifest import Format

FORMAT = Format("llamagen-t2i", "run `rank-e convert llamagen`")
ROTARY = "freqs_cis"  # a policy's rotary table, which some files carry; LlamaGen's loader passes over it
DECODER_PREFIXES = ("decoder.", "post_quant_conv.")  # of the tokenizer's tensors: what RankE's second stage trains
TEXT_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")  # flan-t5's; one of them is needed
