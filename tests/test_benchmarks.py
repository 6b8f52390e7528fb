"""The GPU benchmark at toy sizes on a CPU: every case gives its figures, and the result says what was measured."""

import json
import sys

import pytest

from benchmarks import gpu


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
