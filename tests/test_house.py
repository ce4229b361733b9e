"""The rules of the house: who imports whom, what no module does, and that the files around the library agree."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "rectrio_lib"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ADDRESS = PROJECT["urls"]["Repository"]
SLUG = ADDRESS.removeprefix("https://github.com/")
EXTRAS = ("app", "clip", "dev", "lab", "postgres", "timm")  # what the lock and environment.yml install
TOP_LEVEL = {
    *("notebooks", "rectrio_lib", "data", "outputs", "tests", ".ci", ".github"),
    *("README.md", "LICENSE", "CITATION.cff", "Makefile", ".gitignore", ".gitattributes"),
    *("pyproject.toml", "requirements.lock", "environment.yml", "Dockerfile", ".dockerignore", "compose.yaml"),
}
TREES = {path.relative_to(LIBRARY): ast.parse(path.read_text(encoding="utf-8")) for path in LIBRARY.rglob("*.py")}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def run_python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_packages_import_only_what_lies_below_them():
    run_python("from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache")


def test_import_rule_covers_every_package():
    (contract,) = PYPROJECT["tool"]["importlinter"]["contracts"]
    layers = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    assert layers == {f"rectrio_lib.{path.parent.name}" for path in LIBRARY.glob("*/__init__.py")}


def test_import_of_the_library_loads_neither_torch_nor_pandas_nor_its_own_packages():
    loaded = run_python("import sys, rectrio_lib; print(*sys.modules)").split()
    assert {"torch", "pandas", "numpy", "faiss", "matplotlib", "typer"}.isdisjoint(loaded)
    assert [name for name in loaded if name.startswith("rectrio_lib")] == ["rectrio_lib"]


def test_import_of_a_module_has_no_effect_outside_of_it():
    blocks = [(path, node) for path, tree in TREES.items() for node in tree.body]
    blocks += [(p, inner) for p, n in blocks if isinstance(n, ast.If | ast.For | ast.Try) for inner in n.body]
    blocks = [(path, node) for path, node in blocks if path.name != "env.py"]  # which Alembic runs, and nobody imports
    bare = [(path, n.value) for path, n in blocks if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
    allowed = ("os.register_at_fork",)  # changes forked children alone; in cli, typer registers commands by calls
    wrong = [(path, call) for path, call in bare if path.parts[0] != "cli" and ast.unparse(call.func) not in allowed]
    assert [f"{path}:{call.lineno}" for path, call in wrong] == []
    stored = [(path, target) for path, n in blocks if isinstance(n, ast.Assign) for target in n.targets]
    assert [f"{p}:{t.lineno}" for p, t in stored if isinstance(t, ast.Attribute | ast.Subscript)] == []


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, str], int]]:  # name, keywords, line
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords}, node.lineno


def where(wrong: Callable[[str, dict[str, str]], bool]) -> list[str]:
    return [f"{path}:{line}" for path, tree in TREES.items() for name, k, line in calls(tree) if wrong(name, k)]


def test_only_the_command_line_prints():
    may = ("cli/", "chapters/telling.py")  # the latter in notebooks, where printing is what it is for
    assert [w for w in where(lambda name, k: name == "print") if not w.startswith(may)] == []


def test_nothing_writes_to_the_environment():
    changes = re.compile(r"(os\.)?environ\.(update|setdefault|pop|clear)|os\.(un)?(put|set)env|(mock\.)?patch(\.dict)?")
    assert where(lambda name, k: changes.fullmatch(name)) == []
    subscripts = [n for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.Subscript)]
    written = [ast.unparse(n) for n in subscripts if not isinstance(n.ctx, ast.Load)]
    assert [target for target in written if "environ[" in target] == []


def test_nothing_is_unpickled():
    def wrong(name, keywords):
        unsafe = name == "torch.load" and keywords.get("weights_only") != "True"
        return unsafe or keywords.get("allow_pickle", "False") != "False" or name.endswith(("read_pickle", "to_pickle"))

    assert where(wrong) == []
    imported = [n for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    unpicklers = re.compile(r"(import|from) (pickle|dill|joblib|cloudpickle|shelve|marshal)\b")
    lines = [ast.unparse(node) for node in imported if unpicklers.match(ast.unparse(node))]
    assert set(lines) <= {"from pickle import UnpicklingError"}  # what a refusal to unpickle raises


def test_images_are_opened_with_a_list_of_formats():
    assert where(lambda name, k: name.endswith("Image.open") and "formats" not in k) == []


def test_no_module_is_longer_than_270_lines():
    assert [str(path) for path in TREES if len((LIBRARY / path).read_bytes().splitlines()) > 270] == []


def test_packages_hold_four_to_eleven_modules():
    sizes = {p.parent.name: len(list(p.parent.glob("*.py"))) - 1 for p in LIBRARY.glob("*/__init__.py")}
    assert {name: size for name, size in sizes.items() if not 4 <= size <= 11} == {}


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {requirement.name: requirement for requirement in map(Requirement, lines)}


def ours() -> dict[str, Requirement]:
    """Return the ranges of pyproject.toml by name."""
    extras = [line for extra in EXTRAS for line in PROJECT["optional-dependencies"][extra]]
    return requirements(PROJECT["dependencies"] + extras)


def test_library_needs_no_notebook_software_outside_of_its_extra():
    base = requirements(PROJECT["dependencies"]).keys()
    assert base.isdisjoint(requirements(PROJECT["optional-dependencies"]["lab"]))


def test_environment_yml_names_every_package_with_the_same_lower_bound():
    environment = yaml.safe_load(read("environment.yml"))
    *lines, last = environment["dependencies"]
    *pip, checkout = last["pip"]
    assert (environment["channels"], checkout) == (["conda-forge"], "-e .")
    clip = next(line for line in pip if line.startswith("git+https://github.com/openai/CLIP.git@"))
    pip.remove(clip)

    conda = requirements(lines + pip)
    tools = {name: str(conda.pop(name).specifier) for name in ("python", "pip", "git")}
    assert tools["python"] == PROJECT["requires-python"]
    wanted = {"pytorch" if n == "torch" else n: str(r.specifier) for n, r in ours().items()}
    del wanted["clip-anytorch"]
    assert {name: str(requirement.specifier) for name, requirement in conda.items()} == wanted


@pytest.mark.parametrize("minor", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_lock_pins_every_dependency_once_and_within_its_range(minor, system):
    here = {**default_environment(), "python_version": minor, "python_full_version": f"{minor}.9"}
    pins = [Requirement(line) for line in read("requirements.lock").splitlines()[1:]]
    pins = [pin for pin in pins if not pin.marker or pin.marker.evaluate({**here, "sys_platform": system})]
    for name, wanted in ours().items():
        if wanted.marker and not wanted.marker.evaluate({**here, "sys_platform": system}):
            continue
        (version,) = [str(pin.specifier).removeprefix("==") for pin in pins if pin.name == name]
        assert wanted.specifier.contains(version), name


def test_lock_says_how_it_is_made_and_holds_no_address():
    header, *pins = read("requirements.lock").splitlines()
    extras = " ".join(f"--extra {extra}" for extra in EXTRAS)
    assert header.startswith(f"# uv pip compile --universal --python-version 3.11 {extras} ")
    assert all(re.match(r"[a-z0-9.-]+==[\w.]+( ; |$)", pin) for pin in pins)
    assert not re.search(r"://|[/\\@]", "\n".join([header, *pins]))


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, encoding="utf-8")
    return [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]


def test_what_is_tracked_is_the_house_and_small(tracked):
    assert {name.partition("/")[0] for name in tracked} == TOP_LEVEL
    assert [name for name in tracked if (ROOT / name).stat().st_size > 1_000_000] == []
    kept = re.compile(r"data/README\.md|outputs/README\.md|outputs/published/.+")
    assert [name for name in tracked if name.startswith(("data/", "outputs/")) and not kept.fullmatch(name)] == []


def colab_badges(text: str) -> list[str]:
    return re.findall(r"https://colab\.research\.google\.com/github/([^\s)\"'>\]]+)", text)


def test_colab_badges_lead_to_every_notebook():
    notebooks = {path: f"{SLUG}/blob/main/notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    for path, target in notebooks.items():
        first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]
        assert colab_badges("".join(first["source"])) == [target]
    assert set(colab_badges(read("README.md"))) == set(notebooks.values())


def test_citation_and_clone_commands_name_this_repository():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["version"], citation["repository-code"]) == (PROJECT["version"], ADDRESS)
    for path in [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        named = re.findall(r"(?:git clone (?:-\S+ )*|git\+)https://github\.com/([\w.-]+/[\w-]+)", text)
        assert set(named) <= {SLUG, "openai/CLIP"}, path.name


@pytest.mark.parametrize("page", ["README.md", "data/README.md", "outputs/README.md"])
def test_relative_links_and_named_files_exist(page):
    text = read(page)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=[\"']([^\"']+)", text)
    relative = [link.partition("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)]
    relative += [f"{ROOT}/{name}" for name in re.findall(r"`((?:notebooks|rectrio_lib|tests)/[\w./-]+)`", text)]
    assert [link for link in relative if not (ROOT / page).parent.joinpath(link).exists()] == []


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("make") is None or os.name == "nt":
        pytest.skip("needs make and a POSIX shell")
    shutil.copy(ROOT / "Makefile", folder)
    ours = ("MAKE", "MFLAGS", "RECTRIO_", "PROFILE", "ARGS", "PYTHON", "DISK_GB")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_make_lists_its_targets(tmp_path):
    listed = re.findall(r"^  make (\w+)", make(tmp_path).stdout, flags=re.MULTILINE)
    assert listed == ["help", "run", "check", "test", "serve", "lab", "clean"]


@pytest.mark.parametrize("setting", ["PYTHON=no-such-python", "DISK_GB=99999999"])
def test_make_stops_with_one_sentence_before_it_installs_anything(tmp_path, setting):
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    done = make(tmp_path, "run", f"PYTHON={sys.executable}", setting)
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode != 0 and setting.partition("=")[2] in sentence
    assert not (tmp_path / ".venv").exists()


def test_make_clean_keeps_data_and_published_results(tmp_path):
    kept = ["data/set.gz", "outputs/README.md", "outputs/published/a.json"]
    gone = ["outputs/results.json", "outputs/encoders/x/encoder.json", ".venv/installed"]
    for name in kept + gone:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert make(tmp_path, "clean").returncode == 0
    assert [name for name in kept + gone if (tmp_path / name).exists()] == kept


@pytest.mark.xdist_group("house")
def test_tests_of_one_group_stay_on_one_process(request):
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("one process runs all tests")
    assert request.node.nodeid.endswith("@house")  # else chapters are compared out of order
