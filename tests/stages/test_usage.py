"""Costs are told beside the results: a record that a full disk cut off ends no report, claim, run or gc."""

from pathlib import Path

import pytest

from stages.runtime.usage import read_usage

DAMAGED = ("", '{"secon', "[]", "null", "{}", "\xff", "[" * 100_000, '{"seconds": "9"}', '{"seconds": NaN}')
DAMAGED += ('{"seconds": -1}', '{"seconds": true}', '{"seconds": 1, "shared": []}', '{"seconds": 1, "shared": {}}')


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_record_of_costs_is_as_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "policy-frozen-s0-r1.json"
    assert read_usage(path, "seconds") is None
    path.write_bytes(text.encode("latin-1"))
    assert read_usage(path, "seconds") is None
    path.write_text('{"seconds": 1.5}')
    assert read_usage(path, "seconds") == {"seconds": 1.5} and read_usage(path, "peak_rss_mb") is None
