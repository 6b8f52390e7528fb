"""A backbone of no known architecture, in one folder: what `rank_e.backbones` asks of a new one."""

from rank_e.io.manifest import Format

FORMAT = Format("toy", "run `rank-e convert toy`")
LENGTH, VOCAB, DIM, TEXT_ROWS, IMAGE_SIZE = 16, 32, 8, 6, 8
