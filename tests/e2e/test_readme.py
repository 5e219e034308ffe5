"""The commands of the README do what it says, as a reader would type them, on a small table of photographs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina_ray.data.synthetic import draw

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)

QUICK = "train.epochs=1 data.image_size=32 evaluate.bootstrap=20 method.backbone=shufflenet_v2_x0_5 method.weights=none"
"""What a test cannot wait for, and no demo's weights; given last, it wins over the README's values."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photographs graded for DR and DME, their table, and the command with quick settings."""
    folder = tmp_path_factory.mktemp("desk")
    rng = np.random.default_rng(0)
    lines = ["image,dr_grade,dme_grade"]
    for index in range(60):
        grade = index % 5
        Image.fromarray(draw(size=96, task="dr", grade=grade, seed=1, index=index).image).save(folder / f"{index}.jpg")
        lines.append(f"{index}.jpg,{grade},{min(2, grade // 2) if rng.random() < 0.8 else index % 3}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(folder / "3.jpg", folder / "photograph.jpg")
    command = folder / "bin" / "retina-ray"
    command.parent.mkdir()
    quick = " ".join(f"--set {setting}" for setting in QUICK.split())
    command.write_text(
        f"""#!/bin/bash
run() {{ exec {sys.executable} -c 'from retina_ray.cli.main import main; main()' "$@"; }}
if [ "$1" = train ]; then run "$@" {quick}; else run "$@"; fi
""",
        encoding="utf-8",
    )
    command.chmod(0o755)
    return folder


def run_block(desk: Path, block: str) -> str:
    """Run a block of the README as a shell would; return its standard output."""
    env = {**os.environ, "PATH": f"{desk / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=desk, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(1200)
def test_the_example_on_the_readers_own_photographs(desk: Path) -> None:
    ingest, train, folds = (block for block in BLOCKS if "retina-ray" in block)
    assert "60 of 61 images" in run_block(desk, ingest)
    assert (desk / "sheet.png").stat().st_size > 10_000
    trained = run_block(desk, train)
    assert "dr" in trained
    assert (desk / "runs/first/report.html").is_file()
    assert "single task" in trained
    # Two of the five folds, each of a fifth of the images, show that runs are pooled; five would take minutes.
    assert "0 1 2 3 4" in folds
    pooled = run_block(desk, folds.replace("0 1 2 3 4", "0 1"))
    assert re.search(r"dme +│ sall +│ +24 ", pooled), pooled


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"make ([a-z-]+)", README)
    assert {"demo", "test", "lint"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_every_file_the_readme_links_exists() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).is_file(), path
