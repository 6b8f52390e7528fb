"""A pipeline that computes nothing: its dvc.yaml with the project's matrices, and what stands in for every stage."""

from pathlib import Path

from pipeline.graph import Node, load_graph

WORK = """
import os, pathlib, sys, time
name, out, *deps = sys.argv[1 : sys.argv.index("--") if "--" in sys.argv else None]
for dep in deps:
    assert pathlib.Path(dep).exists(), dep
print("hello from", name, flush=True)
if pathlib.Path("slow-" + name).exists():
    pathlib.Path("pid").write_text(str(os.getpid()))
    time.sleep(60)
time.sleep(0.3)
if pathlib.Path("fail-" + name).exists():
    pathlib.Path("fail-" + name).unlink()
    sys.exit("boom in " + name)
if pathlib.Path("refuse-" + name).exists():
    print("no use in " + name, file=sys.stderr)
    sys.exit(65)
pathlib.Path(out).mkdir(parents=True)
(pathlib.Path(out) / "f.txt").write_text(name)
if name.startswith("policy"):
    (pathlib.Path(out) / "optimizer.safetensors").write_text("optimizer of " + name)
"""
PIPELINE = """
stages:
  reference: {cmd: python work.py reference out/reference, deps: [work.py], outs: [out/reference]}
  prompts:
    matrix: {seed: "${seeds}"}
    cmd: python work.py prompts out/prompts/s${item.seed} -- --seed ${item.seed}
    deps: [work.py]
    outs: ["out/prompts/s${item.seed}"]
  start:
    matrix: {arm: "${arms}", seed: "${seeds}"}
    cmd: python work.py start-${item.arm} out/${item.arm}/s${item.seed}/r0 -- --arm ${item.arm} --seed ${item.seed}
    deps: [work.py]
    outs: ["out/${item.arm}/s${item.seed}/r0"]
  policy:
    matrix: {arm: "${arms}", seed: "${seeds}", round: "${rounds}"}
    cmd: >-
      python work.py policy-${item.arm}-${item.round.id} out/${item.arm}/s${item.seed}/r${item.round.id}
      out/prompts/s${item.seed} out/${item.arm}/s${item.seed}/r${item.round.prev}
      -- --arm ${item.arm} --seed ${item.seed} --round ${item.round.id}
    deps:
      - work.py
      - out/prompts/s${item.seed}
      - out/${item.arm}/s${item.seed}/r${item.round.prev}
    outs: ["out/${item.arm}/s${item.seed}/r${item.round.id}"]
  table:
    cmd: python work.py table out/table out/${factorial.arms[1]}/s${seeds[0]}/r${factorial.round}
    deps: [work.py, "out/${factorial.arms[1]}/s${seeds[0]}/r${factorial.round}"]
    outs: [out/table: {persist: false}]
  report: {cmd: python work.py report report out, deps: [work.py, out], outs: [report]}
  old: {cmd: python work.py old out/old, outs: [out/old], frozen: true}
"""


def nodes(folder: Path, *labels: str) -> list[Node]:
    """The nodes with these labels, in this order."""
    found = {node.label: node for node in load_graph(folder)}
    return [found[label] for label in labels]
