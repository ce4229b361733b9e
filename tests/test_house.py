"""The files around the library agree with each other: dependencies, Makefile, links, addresses, sizes."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it to Python 3.10

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ADDRESS = PROJECT["urls"]["Repository"]
SLUG = ADDRESS.removeprefix("https://github.com/")
CONDA_NAMES = {"torch": "pytorch", "clip-anytorch": "clip"}
SUPPORTED_PYTHONS = ("3.10", "3.11", "3.12", "3.13")
TOP_LEVEL = {
    *("notebooks", "rectrio_lib", "data", "outputs", "tests", ".ci", ".github"),
    *("README.md", "LICENSE", "CITATION.cff", "Makefile", ".gitignore", ".gitattributes"),
    *("pyproject.toml", "requirements.lock", "environment.yml"),
}
needs_make = pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason="needs make and a POSIX shell")


def requirements(*extras: str) -> dict[str, Requirement]:
    """Return the ranges of pyproject.toml by name: the dependencies and those of the named extras."""
    lines = PROJECT["dependencies"] + [line for e in extras for line in PROJECT["optional-dependencies"][e]]
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


# --- dependencies


def conda_requirements() -> dict[str, Requirement]:
    entries = yaml.safe_load(read("environment.yml"))["dependencies"]
    pip_lines = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    lines = [entry for entry in entries if isinstance(entry, str)] + [line for line in pip_lines if line != "-e ."]
    named = [re.sub(r"^(git\+https://github\.com/openai/CLIP\.git@\w+)$", r"clip @ \1", line) for line in lines]
    return {requirement.name: requirement for requirement in map(Requirement, named)}


def test_environment_yml_names_every_package_with_the_same_lower_bound():
    conda = conda_requirements()
    tools = {name: str(conda.pop(name).specifier) for name in ("python", "pip", "git")}
    ours = {CONDA_NAMES.get(name, name): r for name, r in requirements("clip", "dev").items()}

    assert tools["python"] == PROJECT["requires-python"]
    assert conda.keys() == ours.keys()
    assert conda.pop("clip").url == "git+https://github.com/openai/CLIP.git@d05afc4"
    assert {name: str(r.specifier) for name, r in conda.items()} == {name: str(ours[name].specifier) for name in conda}


def test_environment_yml_uses_one_channel_and_installs_the_checkout():
    environment = yaml.safe_load(read("environment.yml"))
    assert environment["channels"] == ["conda-forge"]
    assert environment["dependencies"][-1]["pip"][-1] == "-e ."


@pytest.mark.parametrize("python", SUPPORTED_PYTHONS)
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_lock_pins_every_dependency_once_and_within_its_range(python, system):
    environment = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
        "sys_platform": system,
    }
    pins = [Requirement(line) for line in read("requirements.lock").splitlines()[1:]]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment)]
    for name, wanted in requirements("clip", "dev").items():
        found = [pin for pin in here if pin.name == name]
        assert len(found) == 1, f"{name} is pinned {len(found)} times for Python {python} on {system}"
        version = str(found[0].specifier).removeprefix("==")
        assert wanted.specifier.contains(version), f"{found[0]} is outside of {wanted}"


def test_lock_says_how_it_is_made_and_holds_no_address():
    header, *pins = read("requirements.lock").splitlines()
    assert header.startswith("# uv pip compile --universal --python-version 3.10 --extra clip --extra dev")
    assert all(re.match(r"[a-z0-9.-]+==[\w.]+( ; |$)", pin) for pin in pins)
    assert not re.search(r"://|[/\\@]", "\n".join([header, *pins]))


# --- what git tracks


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, encoding="utf-8")
    names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    return names or pytest.skip("nothing is committed yet")


def test_top_level_holds_the_house_and_nothing_else(tracked):
    assert {name.partition("/")[0] for name in tracked} == TOP_LEVEL


def test_no_tracked_file_exceeds_one_megabyte(tracked):
    assert [name for name in tracked if (ROOT / name).stat().st_size > 1_000_000] == []


def test_nothing_but_readme_and_published_results_is_tracked_where_runs_write(tracked):
    kept = re.compile(r"data/README\.md|outputs/README\.md|outputs/published/.+")
    assert [name for name in tracked if name.startswith(("data/", "outputs/")) and not kept.fullmatch(name)] == []


# --- addresses and links


def notebook_sources() -> Iterator[tuple[Path, list[str]]]:
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        yield path, ["".join(cell["source"]) for cell in cells]


def colab_targets(text: str) -> list[str]:
    return re.findall(r"https://colab\.research\.google\.com/github/([^\s)\"'>\]]+)", text)


def own_addresses(text: str) -> set[str]:
    """Return owner/name wherever a text clones, installs or shows the state of a repository, CLIP's apart."""
    found = re.findall(r"(?:git clone (?:-\S+ )*|git\+)https://github\.com/([\w.-]+/[\w-]+)", text)
    found += re.findall(r"github\.com/([\w.-]+/[\w-]+)/actions", text)
    return set(found) - {"openai/CLIP"}


def test_every_notebook_opens_with_a_colab_badge_to_itself_and_installs_this_project():
    notebooks = list(notebook_sources())
    assert notebooks
    for path, cells in notebooks:
        assert colab_targets(cells[0]) == [f"{SLUG}/blob/main/notebooks/{path.name}"], path.name
        assert own_addresses("\n".join(cells)) == {SLUG}, path.name


def test_readme_has_a_badge_for_ci_and_for_every_notebook_at_our_address():
    readme = read("README.md")
    notebooks = {f"{SLUG}/blob/main/notebooks/{path.name}" for path, _ in notebook_sources()}
    assert f"{ADDRESS}/actions/workflows/test.yml/badge.svg" in readme
    assert f"git clone {ADDRESS}" in readme
    assert own_addresses(readme) == {SLUG}
    assert set(colab_targets(readme)) == notebooks


def test_citation_repeats_version_and_address():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["repository-code"]) == (PROJECT["version"], ADDRESS)
    assert [author["name"] for author in citation["authors"]] == [a["name"] for a in PROJECT["authors"]]


@pytest.mark.parametrize("page", ["README.md", "data/README.md", "outputs/README.md"])
def test_relative_links_and_named_files_exist(page):
    text = read(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    relative = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    named = re.findall(r"`((?:notebooks|rectrio_lib|tests)/[\w./-]+)`", text)
    missing = [p for p in relative if not (ROOT / page).parent.joinpath(p).exists()]
    assert missing + [p for p in named if not (ROOT / p).exists()] == []


# --- Makefile


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a folder with what the Makefile needs to start, and nothing installed."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "RECTRIO_"))}
    environment = {k: v for k, v in kept.items() if k not in ("PROFILE", "ARGS", "PYTHON", "DISK_GB")}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


def python_reporting(version: str, folder: Path) -> Path:
    script = folder / "fake-python"
    code = f"import sys; sys.version_info = ({version}); exec(sys.argv[1])"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$2"\n', encoding="utf-8")
    script.chmod(0o755)
    return script


@needs_make
@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("PYTHON={fake}", r"needs Python 3\.10 or newer, but .*fake-python is 3\.8"),
        ("PYTHON=no-such-python", r"needs Python 3\.10 or newer, but there is no no-such-python"),
        ("DISK_GB=99999999", r"takes 99999999 GB of disk .* but only [\d.]+ GB are free"),
    ],
)
def test_make_stops_with_one_sentence_before_it_installs_anything(copy, setting, sentence):
    python = f"PYTHON={sys.executable}"
    done = make(copy, "run", python, setting.format(fake=python_reporting("3, 8, 18", copy)))
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0
    assert len(said) == 1
    assert re.search(sentence, said[0])
    assert not (copy / ".venv").exists()


@needs_make
def test_make_run_installs_again_only_after_a_dependency_file_changed(copy):
    stamp = copy / ".venv" / "installed"
    stamp.parent.mkdir()
    stamp.touch()
    unchanged = make(copy, "-n", "run", "PROFILE=full", "ARGS=--only 02").stdout
    assert unchanged.strip() == ".venv/bin/rectrio run --profile full --only 02"

    later = stamp.stat().st_mtime + 10
    os.utime(copy / "requirements.lock", (later, later))
    assert "pip install" in make(copy, "-n", "run").stdout


@needs_make
@pytest.mark.parametrize("beside", [True, False])
def test_make_uses_shared_data_beside_the_checkout_only_if_it_exists(copy, beside):
    folder = copy / "checkout"
    rectrio = folder / ".venv" / "bin" / "rectrio"
    rectrio.parent.mkdir(parents=True)
    rectrio.write_text('#!/bin/sh\necho "data=$RECTRIO_DATA weights=$RECTRIO_WEIGHTS"\n', encoding="utf-8")
    rectrio.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(copy / name, folder / name)
    (folder / ".venv" / "installed").touch()
    shared = (copy / "shared").resolve()
    if beside:
        (shared / "data").mkdir(parents=True)
        (shared / "weights").mkdir()
    expected = f"data={shared / 'data'} weights={shared / 'weights'}" if beside else "data= weights="
    assert make(folder, "run").stdout.strip() == expected


@needs_make
def test_make_clean_keeps_data_and_published_results(copy):
    kept = ["data/set.gz", "outputs/README.md", "outputs/published/a.json"]
    gone = ["outputs/results.json", "outputs/encoders/x/encoder.json", ".venv/installed"]
    for name in kept + gone:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).touch()
    assert make(copy, "clean").returncode == 0
    assert [name for name in kept + gone if (copy / name).exists()] == kept


@needs_make
def test_make_alone_lists_every_target(copy):
    listed = make(copy).stdout
    assert re.findall(r"^  make (\w+)", listed, flags=re.MULTILINE) == ["help", "run", "test", "lab", "clean"]
