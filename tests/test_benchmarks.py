"""The GPU benchmark at toy sizes on a CPU: every case gives its figures, and the result says what was measured."""

import json
import sys

import pytest
import torch

from benchmarks import decoder_memory, gpu


@pytest.mark.slow
def test_every_case_of_the_gpu_benchmark_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu", "--small", "--output", str(tmp_path)])
    gpu.main()
    (file,) = tmp_path.iterdir()
    result = json.loads(file.read_text(encoding="utf-8"))
    assert {"date", "commit", "machine", "hardware", "rows"} <= result.keys()
    assert not [row for row in result["rows"] if "not measured" in row["note"]]
    measured = [row for row in result["rows"] if row["ours"] is not None]
    assert len(measured) >= 9
    assert all(row["ours"] > 0 and row["reference"] is None and row["ratio"] is None for row in measured)


@pytest.mark.slow
def test_the_memory_of_a_decoder_update_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["decoder_memory", "--small", "--output", str(tmp_path)])
    decoder_memory.main()
    (file,) = tmp_path.iterdir()
    one, two, more = (row["memory"] for row in json.loads(file.read_text(encoding="utf-8"))["rows"])
    assert 0 < one < two and more == pytest.approx(two - one, abs=2e-3)


def test_what_lives_is_counted_and_what_is_freed_is_not():
    with decoder_memory.Living() as living:
        a = torch.zeros(1000)
        b = a + 1
        view = b[:10]
        del b
        assert living.bytes == 8000
        del view
        assert (living.bytes, living.peak) == (4000, 8000)
