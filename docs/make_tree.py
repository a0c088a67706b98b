"""Writes docs/tree.md from the first docstring line of every package and module: `python docs/make_tree.py`."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("vqgan", "parti", "tools", "benchmarks")
WHERE = {
    "codes are looked up": "vqgan/quantizers/search.py: nearest_codes",
    "a new quantizer goes": "vqgan/quantizers/__init__.py: QUANTIZERS",
    "R1 is computed": "vqgan/losses/adversarial.py: r1_penalty",
    "both updates of a GAN step are": "vqgan/autoencoder_task.py: AutoencoderTask",
    "captions are dropped": "parti/pairs.py: dropped_captions",
    "guidance is applied": "parti/sampling/filters.py: apply_guidance",
    "codes are sampled": "parti/sampling/generate.py: generate_codes",
    "a training step is": "vqgan/training/loop.py: TrainingLoop",
    "a checkpoint is written": "vqgan/training/checkpoints/manager.py: CheckpointManager",
    "a new objective goes": "parti/objectives.py: OBJECTIVES",
}
"""What readers look for, and where it is; a test checks that the names exist."""
HEAD = """# The tree

One line a file, from the file itself (`python docs/make_tree.py` writes this page; a test compares it). `vqgan` is
stage 1 and the foundation of both stages, `parti` is stage 2; `tools` are thin mains, each with `--help`; `configs`
holds one YAML file a run, whose head comment says command, hardware, time and result; `tests` has a test for what is
claimed.
"""


def summary(path: Path) -> str:
    """The first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def rows(folder: Path, depth: int) -> Iterator[str]:
    """Markdown list items of a package's modules, then of its packages, in the order of their names."""
    indent = "  " * depth
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{indent}- `{path.name}` {summary(path)}"
    for inner in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield f"{indent}- **{inner.name}/** {summary(inner / '__init__.py')}"
        yield from rows(inner, depth + 1)


def tree() -> str:
    """The whole page."""
    where = [
        f"| {what} | `{place.partition(': ')[0]}` | `{place.partition(': ')[2]}` |" for what, place in WHERE.items()
    ]
    parts = [HEAD, "| Where ... | file | name |", "|---|---|---|", *where]
    for name in PACKAGES:
        init = ROOT / name / "__init__.py"
        parts += [f"\n## {name}\n", *([summary(init), ""] if init.exists() else []), *rows(ROOT / name, 0)]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "tree.md").write_text(tree(), encoding="utf-8")
