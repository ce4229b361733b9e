"""What README.md says, checked: its commands and code run on small folders, its figures are those of the JSON files."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

import rectrio_lib
from rectrio_lib.cli.app import app
from rectrio_lib.data import synthetic

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("readme")]  # of a group, so that the longest tests come early

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
SCREEN = 250  # lines: a stranger reads so much, not more


def block(language: str, *contents: str) -> str:
    """Return the one block of a language that holds all these texts."""
    found = [text for kind, text in BLOCKS if kind == language and all(part in text for part in contents)]
    assert len(found) == 1, f"{len(found)} blocks of {language} hold {contents}"
    return found[0]


def paragraph(*contents: str) -> str:
    """Return the one paragraph of Python that holds all these texts."""
    parts = [part for kind, text in BLOCKS if kind == "python" for part in text.split("\n\n")]
    (found,) = (part for part in parts if all(text in part for text in contents))
    return found


# --- figures


def value(profile, chapter, *path):
    """Return a figure of outputs/published: a recorded value, or (start of a table's title, first column, column)."""
    values = json.loads((ROOT / "outputs" / "published" / f"{profile}.json").read_text(encoding="utf-8"))
    values = next(e["values"] for name, e in values.items() if name.startswith(chapter))
    if len(path) == 1:
        return values[path[0]]
    title, *wanted, column = path
    (rows,) = (rows for name, rows in values["tables"].items() if name.startswith(title))
    (row,) = (r for r in rows if list(map(str, r.values()))[: len(wanted)] == wanted)
    return float(str(row[column]).split()[0])  # the mean, without its spread or interval


STEPS, COVERS, SEARCH = "What each step buys", "By kind", "Search among"
HEADLINES = {
    "raw pixels; trained from scratch, 3 seeds": (
        value("full", "05", "Three ways", "raw pixels", "recall@1"),
        value("full", "02", "recall_at_1"),
    ),
    "mAP@R: raw pixels; trained from scratch": (
        value("full", "05", "Three ways", "raw pixels", "mAP@R"),
        value("full", "02", "map_at_r"),
    ),
    "(quick profile), mAP@R: raw pixels": (
        value("quick", "05", "Three ways", "raw pixels", "mAP@R"),
        value("quick", "05", "Three ways", "trained", "mAP@R"),
    ),
    "Animals, frozen EfficientNet-Lite0": (
        value("quick", "03", STEPS, "frozen backbone", "mAP@R"),
        value("quick", "03", STEPS, "phase 1", "mAP@R"),
    ),
    "tested on another source": (
        value("full", "03", STEPS, "frozen backbone", "mAP@R"),
        value("full", "03", STEPS, "phase 2", "mAP@R"),
    ),
    "Products, recall@1": (
        value("full", "07", STEPS, "frozen backbone", "recall@1"),
        value("full", "07", STEPS, "phase 2", "recall@1"),
    ),
    "Covers alone, recall@1": (
        value("full", "07", COVERS, "frozen backbone", "covers", "recall@1"),
        value("full", "07", COVERS, "phase 2", "covers", "recall@1"),
    ),
    "Covers alone, mAP@R": (
        value("full", "07", COVERS, "phase 2", "covers", "mAP@R"),
        value("full", "07", COVERS, "phase 2, re-ranked", "covers", "mAP@R"),
    ),
    "Text to image": (
        value("full", "06", "Finding", "text to image, recall@1", "V1, from scratch"),
        value("full", "06", "Finding", "text to image, recall@5", "V1, from scratch"),
    ),
    "One query among 60,000 vectors": (
        value("full", "05", SEARCH, "hnsw", "efSearch 30", "recall_at_10"),
        value("full", "05", SEARCH, "hnsw", "efSearch 30", "times_faster"),
    ),
}


def headline_rows() -> list[list[str]]:
    lines = README.split("## Results")[1].split("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]


@pytest.mark.parametrize("name", HEADLINES)
def test_headline_figures_are_those_of_the_published_files(name):
    (row,) = (cells for cells in headline_rows() if name in cells[0])
    for shown, published in zip(re.findall(r"\d+\.\d+", " ".join(row[1:3])), HEADLINES[name], strict=True):
        digits = len(shown.partition(".")[2])
        assert shown == f"{published:.{digits}f}"


def test_every_headline_is_checked():
    assert len(headline_rows()) == len(HEADLINES) == 10


def test_seconds_in_the_headlines_are_published():
    shown = re.findall(r"(\d+) s of training", README.split("## Results")[1])
    published = [value("quick", "02", "training_seconds")]
    published += [
        value(*step, "training, s") for step in (("quick", "03", STEPS, "phase 1"), ("full", "03", STEPS, "phase 2"))
    ]
    assert shown == [f"{seconds:.0f}" for seconds in published]


# --- form


def test_it_is_short_and_its_images_are_small():
    assert len(README.splitlines()) <= SCREEN
    images = re.findall(r"!\[[^]]*\]\((outputs/\S+)\)", README)
    assert images and all((ROOT / image).stat().st_size < 1_000_000 for image in images)


def test_the_figure_shows_the_packages_and_arrows_along_the_import_rule():
    figure = block("mermaid", "rectrio")
    packages = {path.parent.name for path in (ROOT / "rectrio_lib").glob("*/__init__.py")}
    assert set(re.findall(r"(\w+)\[", figure)) == packages
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = [re.findall(r"rectrio_lib\.(\w+)", layer) for layer in contract["contracts"][0]["layers"]]
    height = {package: -level for level, layer in enumerate(layers) for package in layer}
    arrows = [re.sub(r'\[".*?"\]', "", line).split("-->") for line in figure.splitlines() if "-->" in line]
    assert all(
        height[above] > height[below]
        for froms, tos in arrows
        for above in re.findall(r"\w+", froms)
        for below in re.findall(r"\w+", tos)
    )


def test_every_option_and_command_exists():
    commands = typer.main.get_command(app).commands
    used = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line.startswith("rectrio ")]
    used += [text for text in re.findall(r"`(rectrio [a-z][^`]*)`", README) if "`" not in text]
    assert len(used) > 10
    for line in used:
        name, *words = shlex.split(line, comments=True)[1:]
        command = commands[name]
        if hasattr(command, "commands"):  # such as keys add
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if re.match("--?[a-z]", word)} <= options, line
    passage = README.split("`rectrio search` also")[1].split("\n\n")[0]
    options = {option for parameter in commands["search"].params for option in parameter.opts}
    assert {word.split()[0] for word in re.findall("`(--[^`]+)`", passage)} <= options


# --- commands and code


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def draw(folder: Path, place: str) -> None:
    """Save 72 drawings of six shapes, three objects of each from four sides, as FOLDER/<place>.png."""
    pixels, frame = synthetic.draw_shapes(3, views=4, size=32, channels=3)
    chosen = frame["label"].isin(frame["label"].unique()[:6])
    for image, row in zip(pixels[chosen], frame[chosen].to_dict("records"), strict=True):
        path = folder / f"{place.format(**row)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


@pytest.fixture
def drawings(tmp_path: Path) -> Path:
    draw(tmp_path / "pictures", "{label}/{object}.{view}")
    (tmp_path / "pictures" / "star" / "broken.jpg").write_bytes(b"not an image")
    return tmp_path / "pictures"


def copied(image: Path) -> Path:
    """Save the same pixels as another file, whose bytes and place no index knows."""
    path = image.parents[2] / "some image.png"
    Image.open(image).save(path, compress_level=1)
    return path


@pytest.fixture
def ring(drawings: Path) -> Path:
    return copied(sorted((drawings / "ring").glob("*.png"))[0])


def filled(text: str, query: Path) -> str:
    """Put the test's folders into a block; there are no weights here, which has to be allowed."""
    for name in ("pictures", "products"):
        text = text.replace(f"~/{name}", (query.parent / name).as_posix())
    text = re.sub(r"^(rectrio (?:build|index) (?!.*--encoder).*)$", r"\1 --allow-random-weights", text, flags=re.M)
    text = re.sub(r"(Collection\.build\(.*?)\)", r"\1, allow_random_weights=True)", text)
    return text.replace("some picture.jpg", query.as_posix())


def run(line: str) -> str:
    done = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
    assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
    return done.output


def run_lines(text: str, query: Path) -> list[str]:
    return [run(line) for line in filled(text, query).strip().splitlines()]


def results(printed: str) -> list[tuple[int, float, str]]:
    """Return rank, score and the rest of every result that was printed."""
    return [(int(r), float(s), rest) for r, s, rest in re.findall(r"^(\d+) +(-?\d\.\d+) +(.*)$", printed, re.MULTILINE)]


def test_a_folder_is_trained_on_indexed_reported_and_searched(drawings, ring, tmp_path):
    text = block("sh", "rectrio build ~/pictures", "--show results.png")
    grid = tmp_path / "results.png"
    text = text.replace("build ~/pictures", "build ~/pictures -p size=64 -p resolution=64 -p epochs=1")
    built, searched, *_ = run_lines(text.replace("results.png", grid.as_posix()), ring)
    page = tmp_path / "outputs" / "reports" / "pictures" / "index.html"
    assert str(page) in built and "star/broken.jpg" in page.read_text(encoding="utf-8")
    assert (tmp_path / "outputs" / "encoders" / "pictures-tuned" / "encoder.json").is_file()
    ranked = results(searched)
    assert [rank for rank, _, _ in ranked] == [1, 2, 3, 4, 5]
    assert ranked[0][1] == pytest.approx(1, abs=2e-3) and ranked[0][2].startswith("ring")
    assert min(Image.open(grid).size) > 100


def test_a_folder_is_indexed_again_and_again_and_searched_from_python(drawings, ring, capsys):
    lines = block("sh", "rectrio index ~/pictures ", "rectrio info").splitlines()
    text = "\n".join(line for line in lines if re.match("rectrio (index|info)", line))
    first, overview = run_lines(text, ring)
    assert re.search(r"\b72 of 73\b", first) and "pictures" in overview
    again, _ = run_lines(text, ring)
    assert re.search(r"\b0 of 73\b", again)
    searched = run(
        f'rectrio search "{ring}" --index pictures --where "label == \'ring\' and width > 20" --distinct 0.98'
    )
    assert results(searched) and all(rest.startswith("ring") for _, _, rest in results(searched))
    code = paragraph("Collection.build", "some picture.jpg")
    scope: dict = {"rt": rectrio_lib}
    exec(compile(filled(code, ring), "README.md", "exec"), scope)
    frame = scope["shop"].search(ring, k=5).frame()
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
    assert frame["label"][0] == "ring" and frame["score"][0] == pytest.approx(1, abs=2e-3)
    assert frame["path"][0] in capsys.readouterr().out


def test_a_folder_is_searched_with_text(drawings, ring, capsys):
    text = block("sh", "--backbone clip:ViT-B/32", "--text")
    _, by_text, mixed = run_lines(text, ring)
    assert [rank for rank, _, _ in results(by_text)] == [rank for rank, _, _ in results(mixed)] == list(range(1, 11))
    assert results(by_text) != results(mixed)
    code = paragraph('text="a dog in the snow"')
    scope: dict = {"rt": rectrio_lib}
    exec(compile(filled(code, ring), "README.md", "exec"), scope)
    from_python = scope["shop"].search(text="a dog in the snow", without="people").frame()
    assert from_python["score"].tolist() == pytest.approx([score for _, score, _ in results(by_text)], abs=1e-3)
    assert from_python["path"][0] in capsys.readouterr().out


def test_chapters_take_a_folder(drawings, ring, tmp_path):
    text = block("sh", "dataset=mine", "encoder=mine-triplet")
    short = """epochs=2 -p batch_size=16 -p plan='[8, "M", 8]' -p compare_losses='["triplet/all"]' -p k=5"""
    text = text.replace("epochs=20", short).replace("size=64", "size=32")
    assert "STAND-IN" not in "".join(run_lines(text, ring))
    ledger = (tmp_path / "outputs" / "datasets" / "mine" / "ledger.csv").read_text(encoding="utf-8")
    assert "star/broken.jpg" in ledger
    rank, score, rest = results(run(f'rectrio search "{ring}" --index mine-triplet--mine'))[0]
    assert (rank, score) == (1, pytest.approx(1, abs=2e-3)) and rest.startswith("ring")


def test_products_of_a_folder_each_are_found_again(tmp_path):
    draw(tmp_path / "products", "{object}/front.{view}")
    query = copied(tmp_path / "products" / "star0002" / "front.1.png")
    text = block("sh", "dataset=shop", "pattern=")
    text = text.replace("encoder=shop", "encoder=shop -p size=64 -p epochs=1 -p products_per_batch=4")
    rank, score, rest = results(run_lines(text, query)[-1])[0]
    assert (rank, score) == (1, pytest.approx(1, abs=2e-3))
    assert re.fullmatch(r"star0002 +star0002/front\.1\.png", rest)
