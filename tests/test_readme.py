"""The README's own words, executed: a folder of one's own pictures from nothing to search results."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rectrio_lib import shapes

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN = README.split("## Your own pictures")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    pixels, frame = shapes.draw_shapes(6, views=4, size=32, channels=3)
    for number, (picture, label) in enumerate(zip(pixels, frame["label"], strict=True)):
        (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "pictures" / label / f"{number}.png")
    (tmp_path / "pictures" / "star" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "RECTRIO_OUTPUTS": str(tmp_path / "outputs")}


def run_commands(block: str, pictures: Path, environment: dict[str, str], **smaller: str) -> None:
    """Run a block of the README on the pictures, with some of its values replaced."""
    assert "~/pictures" in block
    for line in block.replace("~/pictures", pictures.as_posix()).strip().splitlines():
        for wanted, instead in smaller.items():
            line = re.sub(rf"\b{wanted}=\S+", f"{wanted}={instead}", line)
        rectrio = [sys.executable, "-m", "rectrio_lib.cli", *shlex.split(line)[1:]]
        done = subprocess.run(rectrio, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "STAND-IN" not in done.stdout or "clip" in line  # no weights in a test


def test_own_pictures_become_a_searchable_collection(pictures: Path, tmp_path: Path, environment: dict[str, str]):
    block = blocks(OWN, "sh")[0].replace("epochs=20", "epochs=20 -p batch_size=32")
    run_commands(block, pictures, environment, epochs="8", size="32")
    ledger = (tmp_path / "outputs" / "datasets" / "mine" / "ledger.csv").read_text(encoding="utf-8")
    assert "star/broken.jpg" in ledger

    asked = next((pictures / "ring").glob("*.png"))
    (code,) = blocks(OWN, "python")
    assert "some picture.jpg" in code
    code = code.replace("some picture.jpg", asked.as_posix())
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert answer.returncode == 0, answer.stderr
    assert "ring" in answer.stdout and "score" in answer.stdout


def test_own_pictures_go_through_a_pretrained_backbone(pictures: Path, tmp_path: Path, environment: dict[str, str]):
    block = blocks(OWN, "sh")[1]
    assert "encoder=mine-clip" in block and "backbone=clip:ViT-B/32" in block
    run_commands(block.replace("--only 03", "--only 03 -p batch_size=32 -p epochs=1"), pictures, environment, size="64")
    saved = sorted(path.name for path in (tmp_path / "outputs" / "encoders").iterdir())
    assert saved == ["mine-clip", "mine-clip-frozen", "mine-clip-phase1"]
    assert (tmp_path / "outputs" / "indexes" / "mine-clip--mine").is_dir()


def test_every_option_that_the_readme_names_exists():
    shown = subprocess.run(
        [sys.executable, "-m", "rectrio_lib.cli", "run", "--help"],
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    for option in ("--only", "--from", "--profile", "-p"):
        assert option in shown.stdout and option in README
