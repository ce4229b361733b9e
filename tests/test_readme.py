"""The README's own words, executed: a folder of one's own pictures from nothing to search results."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from rectrio_lib.data import synthetic

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OWN = README.split("## Your own pictures")[1].split("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    pixels, frame = synthetic.draw_shapes(6, views=4, size=32, channels=3)
    for number, (picture, label) in enumerate(zip(pixels, frame["label"], strict=True)):
        (tmp_path / "pictures" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "pictures" / label / f"{number}.png")
    (tmp_path / "pictures" / "star" / "broken.jpg").write_bytes(b"no picture")
    return tmp_path / "pictures"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "RECTRIO_OUTPUTS": str(tmp_path / "outputs")}


def run_commands(block: str, pictures: Path, environment: dict[str, str], **smaller: str) -> str:
    """Run a block of the README on the pictures, with some of its values replaced; return what was printed."""
    printed, asked = [], next((pictures / "ring").glob("*.png"), "")
    for line in block.strip().splitlines():
        line = line.replace("~/pictures", pictures.as_posix()).replace("some picture.jpg", str(asked))
        for wanted, instead in smaller.items():
            line = re.sub(rf"\b{wanted}=\S+", f"{wanted}={instead}", line)
        rectrio = [sys.executable, "-m", "rectrio_lib.cli", *shlex.split(line)[1:]]
        if rectrio[3] in ("build", "index"):
            rectrio.append("--allow-random-weights")  # there are no weights in a test
        done = subprocess.run(rectrio, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        printed.append(done.stderr + done.stdout)
    return "".join(printed)


def run_python(code: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_any_folder_is_trained_on_indexed_reported_and_searched(
    pictures: Path, tmp_path: Path, environment: dict[str, str]
):
    whole, again = blocks(OWN, "sh")[:2]
    assert "build ~/pictures" in whole and "--show answers.png" in whole
    grid = (tmp_path / "answers.png").as_posix()
    small = "build ~/pictures -p size=64 -p epochs=1"
    said = run_commands(whole.replace("build ~/pictures", small).replace("answers.png", grid), pictures, environment)
    page = (tmp_path / "outputs" / "reports" / "pictures" / "index.html").read_text(encoding="utf-8")
    assert "star/broken.jpg" in page and "test pictures, which were not trained on" in page
    assert "STAND-IN" in page  # there are no weights in a test
    assert "pictures-tuned" in said and Path(grid).stat().st_size > 10_000
    assert "rectrio index ~/pictures" in again
    said = run_commands(again, pictures, environment)
    assert "0 of 241 embedded" in said and re.search("^Encoder +pictures-tuned", said, re.MULTILINE)


def test_the_three_functions_train_build_and_search(pictures: Path, environment: dict[str, str]):
    code = blocks(OWN, "python")[0]
    asked = next((pictures / "ring").glob("*.png"))
    assert "some picture.jpg" in code and 'rt.train("~/pictures")' in code
    code = code.replace('train("~/pictures")', 'train("~/pictures", size=64, epochs=1)')
    said = run_python(
        code.replace("~/pictures", pictures.as_posix()).replace("some picture.jpg", asked.as_posix()), environment
    )
    assert "240 of 241 embedded" in said and f"ring/{asked.name}" in said


def test_own_pictures_become_a_searchable_collection(pictures: Path, tmp_path: Path, environment: dict[str, str]):
    block = blocks(OWN, "sh")[3].replace("epochs=20", "epochs=20 -p batch_size=32")
    assert "~/pictures" in block
    said = run_commands(block, pictures, environment, epochs="8", size="32")
    assert "STAND-IN" not in said
    ledger = (tmp_path / "outputs" / "datasets" / "mine" / "ledger.csv").read_text(encoding="utf-8")
    assert "star/broken.jpg" in ledger
    assert "`mine-triplet--mine`" in OWN
    said = run_commands('rectrio search "some picture.jpg" --index mine-triplet--mine', pictures, environment)
    assert re.search(r"^1 +1\.000 +ring +ring/", said, re.MULTILINE)


def test_any_folder_is_asked_in_words(pictures: Path, environment: dict[str, str]):
    block = blocks(OWN, "sh")[2]
    assert "--backbone clip:ViT-B/32" in block
    said = run_commands(block, pictures, environment)
    assert said.count("STAND-IN") >= 3  # there are no weights in a test
    asked = re.findall("^a dog in the snow$|^[+]1 .* [+]1 'in the snow' -0.5 'people'$", said, re.MULTILINE)
    assert len(asked) == 2
    code, picture = blocks(OWN, "python")[1], next((pictures / "ring").glob("*.png"))
    assert "some picture.jpg" in code
    assert re.search("dog|cat|snowman", run_python(code.replace("some picture.jpg", picture.as_posix()), environment))


def test_own_pictures_go_through_a_pretrained_backbone(pictures: Path, tmp_path: Path, environment: dict[str, str]):
    block = blocks(OWN, "sh")[4]
    assert "encoder=mine-clip" in block and "backbone=clip:ViT-B/32" in block and "~/pictures" in block
    run_commands(block.replace("--only 03", "--only 03 -p batch_size=32 -p epochs=1"), pictures, environment, size="64")
    saved = sorted(path.name for path in (tmp_path / "outputs" / "encoders").iterdir())
    assert saved == ["mine-clip", "mine-clip-frozen", "mine-clip-phase1"]
    assert (tmp_path / "outputs" / "indexes" / "mine-clip--mine").is_dir()


def test_own_products_are_found_again_also_when_each_has_a_folder(tmp_path: Path, environment: dict[str, str]):
    pixels, frame = synthetic.draw_shapes(4, views=4, size=32, channels=3)
    for picture, product, view in zip(pixels, frame["object"], frame["view"], strict=True):
        (tmp_path / "products" / product).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.transpose(1, 2, 0)).save(tmp_path / "products" / product / f"front.{view}.png")
    by_name, by_folder, *searched = blocks(OWN, "sh")[5].splitlines()
    assert by_folder.startswith(by_name)
    small = f"{by_folder} -p size=64 -p epochs=1 -p products_per_batch=8"
    asked = tmp_path / "products" / "star0002" / "front.1.png"
    block = "\n".join([small, *searched]).replace("~/products", (tmp_path / "products").as_posix())
    said = run_commands(block.replace("some picture.jpg", asked.as_posix()), tmp_path, environment)
    assert re.search(r"^1 +1\.000 +star0002 +star0002/front\.1\.png", said, re.MULTILINE)


def test_every_option_that_the_readme_names_exists():
    named = {
        "run": ("--only", "--from", "--profile", "-p"),
        "build": ("-p", "--name"),
        "index": ("--recall", "--backbone", "--encoder"),
        "search": (
            *("--index", "--k", "--show", "--where", "--minimum", "--distinct", "--mmr"),
            *("--expand", "--reciprocal", "--combine", "--json", "--text", "--without"),
        ),
    }
    for command, options in named.items():
        shown = subprocess.run(
            [sys.executable, "-m", "rectrio_lib.cli", command, "--help"],
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
        )
        for option in options:
            assert option in shown.stdout and option in README
