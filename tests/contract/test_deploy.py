"""deploy/ names only what exists, keeps the order of a deploy, and starts the two sides: without a container engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec
import pytest
from ruamel.yaml import YAML

from kedge.durations import parse_duration
from kedge_worker._settings import WorkerSettings
from tests.contract.dockerfile import REPOSITORY, instructions

DEPLOY = REPOSITORY / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAMS = Path(sys.executable).parent

Analyze: TypeAlias = Callable[..., str]

by_name = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.stem)


class Build(msgspec.Struct, frozen=True):
    context: str
    dockerfile: str


class Needs(msgspec.Struct, frozen=True):
    condition: str


class Replicas(msgspec.Struct, frozen=True):
    replicas: int


class Service(msgspec.Struct, frozen=True):
    image: str
    build: Build | None = None
    command: list[str] = []
    environment: dict[str, str] = {}
    volumes: list[str] = []
    depends_on: dict[str, Needs] = {}
    deploy: Replicas = Replicas(1)
    stop_grace_period: str = "10s"
    ports: list[str] = []
    healthcheck: dict[str, object] | None = None


class Compose(msgspec.Struct, frozen=True):
    services: dict[str, Service]


@pytest.fixture(scope="module")
def services() -> dict[str, Service]:
    yaml = YAML(typ="safe")
    loaded: object = yaml.load(DEPLOY / "compose.yaml")  # pyright: ignore[reportUnknownMemberType]  # untyped parameter
    return msgspec.convert(loaded, Compose).services


def check(*command: str, env: dict[str, str] | None = None) -> str:
    """Run a checker and return what it complains about; nothing on success."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})})
    return "" if done.returncode == 0 and not done.stderr else f"exit {done.returncode}\n{done.stdout}{done.stderr}"


def settings(unit: Path) -> dict[str, str]:
    """A unit's settings; where one stands twice, its last."""
    return dict(re.findall(r"(?m)^(\w+)=(.*)$", unit.read_text("utf-8")))


# ---------------------------------------------------------------- Dockerfiles


@by_name
def test_hadolint_has_no_complaint(dockerfile: Path) -> None:
    assert check(f"{PROGRAMS}/hadolint", "--no-color", str(dockerfile)) == ""


@by_name
def test_an_image_runs_without_root_in_exec_form_and_is_stopped_by_sigterm(dockerfile: Path) -> None:
    everything = instructions(dockerfile)

    last = {at.word: at.rest for at in everything if at.stage == everything[-1].stage}

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert last["CMD"].startswith("[")
    assert last.get("ENTRYPOINT", "[").startswith("[")


@by_name
def test_nothing_enters_an_image_without_a_hash_or_from_elsewhere_than_this_repository(dockerfile: Path) -> None:
    commands = [part for at in instructions(dockerfile) if at.word == "RUN" for part in at.rest.split("&&")]

    installs = [command for command in commands if "install" in command]

    assert installs
    assert [one for one in installs if not re.search(r"--require-hashes -r |--no-index --no-deps \./", one)] == []


@by_name
def test_what_an_image_copies_is_let_through_to_the_build(dockerfile: Path) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}

    copied = [shlex.split(at.rest)[:-1] for at in instructions(dockerfile) if at.word == "COPY"]

    assert "*" in lines
    folders = {source.split("/")[0] for sources in copied if not sources[0].startswith("--from=") for source in sources}
    assert folders <= let_through


@pytest.mark.parametrize("side", ["api", "worker"])
def test_an_image_gets_the_versions_that_the_tests_ran_with(side: str) -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"(?m)^[a-z0-9.-]+==[^ ;]+", (REPOSITORY / "requirements" / f"{name}.txt").read_text()))

    assert pins(side)
    assert pins(side) <= pins("dev")


# ---------------------------------------------------------------- compose.yaml


def test_compose_follows_the_specification() -> None:
    checker = f"{PROGRAMS}/check-jsonschema"

    assert check(checker, "--builtin-schema", "vendor.compose-spec", str(DEPLOY / "compose.yaml")) == ""


def test_compose_keeps_the_order_postgres_migrate_workers_clients(services: dict[str, Service]) -> None:
    needs = {name: {other: need.condition for other, need in s.depends_on.items()} for name, s in services.items()}

    assert services["postgres"].healthcheck
    assert needs == {
        "postgres": {},
        "migrate": {"postgres": "service_healthy"},
        "worker": {"migrate": "service_completed_successfully"},
        "api": {"migrate": "service_completed_successfully", "worker": "service_started"},
    }
    assert services["migrate"].command == ["migrate"]
    assert services["worker"].deploy.replicas == 3
    assert all("KEDGE_DATABASE_URL" in services[name].environment for name in ("migrate", "worker", "api"))


def test_compose_builds_and_mounts_what_exists(services: dict[str, Service]) -> None:
    builds = [service.build for service in services.values() if service.build]
    mounts = [v.split(":")[0] for service in services.values() for v in service.volumes if v.startswith(".")]

    assert {build.dockerfile for build in builds} == {f"deploy/{path.name}" for path in DOCKERFILES}
    assert all((DEPLOY / build.context).resolve() == REPOSITORY for build in builds)
    assert mounts
    assert all((DEPLOY / mount).is_file() for mount in mounts)


def test_the_port_that_compose_publishes_is_the_one_that_the_api_listens_on(services: dict[str, Service]) -> None:
    words = {at.word: at.rest for at in instructions(DEPLOY / "api.Dockerfile")}
    command = msgspec.json.decode(words["CMD"], type=list[str])

    assert [port.split(":")[-1] for port in services["api"].ports] == [words["EXPOSE"]]
    assert command[command.index("--port") + 1] == words["EXPOSE"]


def test_whoever_kills_a_worker_waits_for_its_grace_and_its_goodbyes(services: dict[str, Service]) -> None:
    unit = settings(DEPLOY / "systemd" / "kedge-worker@.service")
    waits = (services["worker"].stop_grace_period, unit["TimeoutStopSec"])

    # After the grace: unwinding, draining, leaving, and closing, each bounded to five seconds.
    enough_s = WorkerSettings(database_url="").grace_s + 6 * 5
    assert [text for text in waits if parse_duration(text, option="wait").total_seconds() < enough_s] == []


# ---------------------------------------------------------------- systemd


@pytest.fixture
def analyze(tmp_path: Path) -> Analyze:
    """systemd-analyze on copies of the units, among stubs of the machine's: what those complain about is not ours."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed here: the units in deploy/systemd were NOT verified")
    for target in ("sysinit", "basic"):
        (tmp_path / f"{target}.target").write_text("[Unit]\nDescription=stub\n")
    for unit in UNITS:
        # verify looks whether the program can be executed; the one of this environment stands for the one deployed.
        text, count = re.subn(r"(?m)^ExecStart=/opt/kedge/bin/", f"ExecStart={PROGRAMS}/", unit.read_text("utf-8"))
        assert count == 1
        (tmp_path / unit.name).write_text(text)

    def run(command: str, unit: Path, *options: str) -> str:
        env = {"SYSTEMD_UNIT_PATH": str(tmp_path)}
        return check("systemd-analyze", "--no-pager", command, *options, str(tmp_path / unit.name), env=env)

    return run


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_has_no_complaint_about_a_unit(analyze: Analyze, unit: Path) -> None:
    # The exit code is 0 even for unknown keys; check() wants an empty stderr too.
    assert analyze("verify", unit, "--man=no", "--generators=no") == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_is_exposed_by_no_more_than_the_network(analyze: Analyze, unit: Path) -> None:
    # 2.0 of 10; a unit without hardening has 9.6.
    assert analyze("security", unit, "--offline=true", "--threshold=20") == ""


def test_the_units_run_what_the_image_runs_and_the_workers_come_after_the_migration() -> None:
    migrate, worker = (settings(DEPLOY / "systemd" / f"{name}.service") for name in ("kedge-migrate", "kedge-worker@"))
    image = {at.word: at.rest for at in instructions(DEPLOY / "worker.Dockerfile")}
    program, run = (msgspec.json.decode(image[word], type=list[str]) for word in ("ENTRYPOINT", "CMD"))

    assert migrate["ExecStart"].split() == [f"/opt/kedge/bin/{program[0]}", "migrate"]
    assert worker["ExecStart"].split() == [f"/opt/kedge/bin/{program[0]}", *run]
    assert migrate["Type"] == "oneshot"
    assert "kedge-migrate.service" in worker["After"].split()
    assert "Requires" not in worker
