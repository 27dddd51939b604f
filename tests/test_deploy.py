"""The files of ``deploy/``: what Docker and systemd would do with them is done here by hand, in fresh folders."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import yaml  # type: ignore[import-untyped]

from config import VARIABLES, parse_settings
from demo.catalogue import video
from demo.media import ensure_library
from demo.process import SiteProcess
from demo.site import DEFAULT_CACHE
from tests.conftest import engine_binary
from tests.farm import ROOT, finished_files, free_port, wait_until

DEPLOY = ROOT / "deploy"
TOKEN = "a-token-of-more-than-sixteen-characters"


def text_of(name: str) -> str:
    return (DEPLOY / name).read_text("utf-8")


# ------------------------------------------------------------------------------------------ the image


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile, by its documented syntax: one a line here, none continued."""
    lines = [line for line in text_of("Dockerfile").splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest) for name, _space, rest in (line.partition(" ") for line in lines)]


def ignored(path: str, patterns: list[str]) -> bool:
    """Tell whether .dockerignore keeps a file out: the last pattern that matches it, or a folder above it, decides."""
    parts = path.split("/")
    above = ["/".join(parts[: number + 1]) for number in range(len(parts))]
    found = False
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        deep = wanted.removeprefix("**/")
        names = [part for one in above for part in (one, one.rpartition("/")[2])] if deep != wanted else above
        hit = any(fnmatch.fnmatchcase(name, deep) and ("/" in deep or "/" not in name) for name in names)
        if hit:
            found = not pattern.startswith("!")
    return found


def context() -> list[str]:
    """Return the files of the repository that Docker would send to the build."""
    patterns = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line]
    patterns = [line for line in patterns if not line.startswith("#")]
    known = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in known.stdout.decode().splitlines() if not ignored(name, patterns)]


def image_environ() -> dict[str, str]:
    return dict(pair.split("=", 1) for name, rest in instructions() if name == "ENV" for pair in shlex.split(rest))


def test_the_image_has_what_the_program_needs_and_nothing_else() -> None:
    names = context()
    assert {"web_server.py", "run.py", "add_url.py", "requirements.txt", "LICENSE"} <= set(names)
    assert {"lua/lease.lua", "web/__init__.py", "templates/frame.html", "static/vendor"} <= {
        *names,
        *(name.rpartition("/")[0] for name in names),
    }
    assert "locales/zh_CN/LC_MESSAGES/bili.mo" in names
    tops = {name.partition("/")[0] for name in names if "/" in name}
    packages = {"delivery", "extras", "merging", "sources", "store", "transfer", "web"}
    assert tops == {*packages, "locales", "lua", "static", "templates"}
    assert not [name for name in names if name.endswith((".po", ".pyc")) or Path(name).name.startswith(".env")]


def test_the_image_is_of_two_stages_and_runs_as_nobody_in_particular() -> None:
    found = instructions()
    known = {"FROM", "COPY", "RUN", "ENV", "WORKDIR", "USER", "VOLUME", "EXPOSE", "CMD"}
    assert {name for name, _rest in found} <= known
    bases = [rest.split()[0] for name, rest in found if name == "FROM"]
    assert len(bases) == 2 and len(set(bases)) == 1 and "slim" in bases[0]
    last = found[len(found) - [name for name, _rest in found][::-1].index("FROM") :]
    users = [rest for name, rest in last if name == "USER"]
    assert users == ["bili"] and any("useradd" in rest and "bili" in rest for name, rest in last if name == "RUN")
    for name, rest in found:
        if name == "COPY" and not rest.startswith("--from") and (source := rest.split()[0]) != ".":
            assert source in context(), f"{source} is kept out by .dockerignore"
    assert json.loads(dict(last)["CMD"])[:2] == ["python", "web_server.py"]
    # Every setting of the image is one, and they are good.
    settings = {name: value for name, value in image_environ().items() if name.startswith("BILI_")}
    assert set(settings) <= set(VARIABLES)
    parse_settings(settings)


# ------------------------------------------------------------------------------------------ settings of all files


@pytest.mark.parametrize("name", ["compose.yaml", "compose.env", "server.env", "worker.env", "nginx.conf", "Caddyfile"])
def test_every_setting_that_is_named_is_one(name: str) -> None:
    named = set(re.findall(r"\b(?:BILI|REDIS)_[A-Z_]+\b", text_of(name)))
    assert named and named <= set(VARIABLES)


@pytest.mark.parametrize(
    "name", ["docs/deploy.md", "README.md", "README.zh-CN.md", "deploy/nginx.conf", "deploy/compose.env"]
)
def test_every_file_of_deploy_that_is_named_is_there_and_none_is_forgotten(name: str) -> None:
    named = set(re.findall(r"\bdeploy/([\w@.-]+\w)", (ROOT / name).read_text("utf-8")))
    there = {path.name for path in DEPLOY.iterdir()}
    assert named <= there
    assert name != "docs/deploy.md" or named == there


def env_file(name: str) -> dict[str, str]:
    lines = [line for line in text_of(name).splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.mark.parametrize("name", ["server.env", "worker.env"])
def test_the_settings_of_the_units_are_good(name: str) -> None:
    assert parse_settings(env_file(name))


# ------------------------------------------------------------------------------------------ compose


def interpolated(value: Any, values: Mapping[str, str]) -> Any:
    """Return a value with ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?complaint}`` replaced as Compose does."""
    if isinstance(value, dict):
        return {name: interpolated(one, values) for name, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, values) for one in value]
    if not isinstance(value, str):
        return value

    def found(match: re.Match[str]) -> str:
        given = values.get(match[1], "")
        assert given or match[2] == ":-", f"{match[1]} is not set: {match[3]}"
        return given or match[3]

    return re.sub(r"\$\{([A-Z_]+)(?:(:-|:\?)([^}]*))?\}", found, value)


def compose() -> dict[str, Any]:
    values = {**env_file("compose.env"), "BILI_TOKEN": TOKEN, "VALKEY_PASSWORD": "a-password"}
    content: dict[str, Any] = interpolated(yaml.safe_load(text_of("compose.yaml")), values)
    return content


def test_the_compose_file_hangs_together() -> None:
    content = compose()
    services = content["services"]
    assert set(services) == {"valkey", "server-1", "server-2", "proxy", "worker"}
    assert {name for one in services.values() for name in one["networks"]} == set(content["networks"])
    volumes = {volume.split(":")[0] for one in services.values() for volume in one.get("volumes", ())}
    assert {name for name in volumes if not name.startswith(".")} == set(content["volumes"])
    assert all((DEPLOY / name).exists() for name in volumes if name.startswith("."))
    for one in services.values():
        assert set(one.get("depends_on", ())) <= set(services)
        build = one.get("build")
        assert build is None or (DEPLOY / build["context"] / build["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    # Only servers reach Valkey, and only the proxy can be reached from outside.
    assert {name for name, one in services.items() if "engine" in one["networks"]} == {"valkey", "server-1", "server-2"}
    assert [name for name, one in services.items() if "ports" in one] == ["proxy"]
    for name in ("server-1", "server-2", "worker"):
        assert services[name]["cap_drop"] == ["ALL"] and services[name]["read_only"]
        environ = services[name]["environment"]
        assert set(environ) <= set(VARIABLES)
        settings = parse_settings(environ)
        assert len(settings.server_urls) == (2 if name == "worker" else 1)
    address = services["proxy"]["networks"]["farm"]["ipv4_address"]
    assert services["server-1"]["environment"]["BILI_TRUSTED_PROXIES"] == address


def test_a_secret_that_is_missing_is_complained_of() -> None:
    with pytest.raises(AssertionError, match=r"BILI_TOKEN is not set: see deploy/compose.env"):
        interpolated(yaml.safe_load(text_of("compose.yaml")), {**env_file("compose.env"), "VALKEY_PASSWORD": "x"})


# ------------------------------------------------------------------------------------------ by hand


class ByHand:
    """Runs what a container or a unit would run, as processes in folders of the test's own."""

    def __init__(self, folder: Path, site: SiteProcess) -> None:
        self.folder = folder
        self._site = site
        self._processes: list[subprocess.Popen[bytes]] = []
        self.program = folder / "opt" / "bili"
        for name in context():
            target = self.program / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target)

    def environ(self, *parts: Mapping[str, str]) -> dict[str, str]:
        """Return an environment of nothing but what is given, the stand-in site, and what every system has."""
        kept = {"HOME": str(self.folder), "LANGUAGE": "en", "BILI_API_INTERVAL": "0", **self._site.environ()}
        given = {name: value for part in parts for name, value in part.items()}
        path = f"{Path(sys.executable).parent}:{os.defpath}"
        return {**kept, **given, "PATH": path}

    def start(self, name: str, command: list[str], environ: Mapping[str, str], cwd: Path | None = None) -> Path:
        """Start a command; return the file with its output."""
        log = self.folder / f"{name}.log"
        command = [sys.executable if command[0].endswith("python") else command[0], *command[1:]]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, env=dict(environ), cwd=cwd or self.program, stdout=output, stderr=subprocess.STDOUT
            )
        self._processes.append(process)
        return log

    def close(self) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="module")
def site() -> Iterator[SiteProcess]:
    ensure_library(DEFAULT_CACHE, imageio_ffmpeg.get_ffmpeg_exe())
    with SiteProcess(DEFAULT_CACHE) as site:
        yield site


@pytest.fixture
def hand(tmp_path: Path, site: SiteProcess) -> Iterator[ByHand]:
    site.post("reset")
    hand = ByHand(tmp_path, site)
    yield hand
    hand.close()


def ask(port: int, path: str, body: object = None, token: str = TOKEN) -> Any:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    content = None if body is None else json.dumps(body).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(f"http://127.0.0.1:{port}{path}", content, headers), timeout=10) as answer:
        return json.load(answer)


def serves(port: int, path: str = "/healthz") -> bool:
    try:
        return bool(ask(port, path))
    except OSError:
        return False


def is_open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_commands_of_the_compose_file_make_a_farm(hand: ByHand) -> None:
    """Each service's own command, environment and health check, with the names of hosts turned into ports here."""
    services = compose()["services"]
    ports = {name: free_port() for name in ("valkey", "server-1", "server-2")}
    data = hand.folder / "data"
    data.mkdir()

    def here(value: str, of: str = "") -> str:
        for name, port in ports.items():
            value = re.sub(rf"\b{name}:\d+", f"127.0.0.1:{port}", value)
        return value.replace("8080", str(ports[of])) if of else value

    engine = [engine_binary(), *services["valkey"]["command"][1:], "--port", str(ports["valkey"])]
    hand.start("valkey", [*engine, "--bind", "127.0.0.1", "--dir", str(data)], hand.environ(), data)
    wait_until("Valkey serves", lambda: is_open(ports["valkey"]), 20)
    of_image = {name: value.replace("/data", str(data)) for name, value in image_environ().items()}
    for name in ("server-1", "server-2"):
        service = services[name]
        environ = hand.environ(of_image, {key: here(value) for key, value in service["environment"].items()})
        command = [here(word, name) for word in service["command"]]
        hand.start(name, command, environ)
        wait_until(f"{name} serves", lambda port=ports[name]: serves(port), 30)  # type: ignore[misc]
        kind, *check = service["healthcheck"]["test"]
        check = [sys.executable if word == "python" else here(word, name) for word in check]
        assert kind == "CMD" and subprocess.run(check, env=environ).returncode == 0
        dead = [word.replace(str(ports[name]), str(free_port())) for word in check]
        assert subprocess.run(dead, env=environ, stderr=subprocess.DEVNULL).returncode != 0
    worker = services["worker"]
    environ = hand.environ(of_image, {key: here(value) for key, value in worker["environment"].items()})
    log = hand.start("worker", worker["command"], environ)
    assert ask(ports["server-1"], "/add_url", {"urls": [video("plain").bvid]})["added"] == 1
    wait_until("the video is done", lambda: ask(ports["server-2"], "/status")["jobs"]["done"] == 1, 60)
    assert len(finished_files(data / "Download")) == 1, log.read_text("utf-8")
    assert (data / "working.json").exists()


# ------------------------------------------------------------------------------------------ systemd


def unit(name: str, instance: str) -> list[tuple[str, str]]:
    """Return the assignments of a unit, with the specifiers that it uses."""
    text = text_of(name).replace("%i", instance).replace("%l", "host")
    return [(key, value) for key, _equals, value in (line.partition("=") for line in text.splitlines()) if value]


def unit_environ(content: list[tuple[str, str]]) -> dict[str, str]:
    words = [word for key, value in content if key == "Environment" for word in shlex.split(value)]
    return dict(word.split("=", 1) for word in words)


UNITS = ("bili-server@.service", "bili-worker@.service")


@pytest.mark.parametrize("name", UNITS)
def test_the_units_lead_to_what_is_there(name: str) -> None:
    content = unit(name, "8081")
    values = dict(content)
    program, script, *_options = values["ExecStart"].split()
    assert program.startswith(f"{values['WorkingDirectory']}/.venv/bin/") and (ROOT / script).exists()
    environ = unit_environ(content)
    parse_settings({key: value for key, value in environ.items() if key.startswith("BILI_")})
    sample = Path(values["EnvironmentFile"]).name
    assert (DEPLOY / sample).exists()
    assert values["User"] == "bili" and values["NoNewPrivileges"] == "yes" and values["ProtectSystem"] == "strict"
    for setting in ("BILI_DATA_DIR", "BILI_DOWNLOAD_DIR"):  # everything else cannot be written
        writable = (f"/var/lib/{values['StateDirectory']}", *values.get("ReadWritePaths", "").split())
        assert environ.get(setting, "/var/lib/bili").startswith(writable)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units_and_finds_them_shut(name: str, tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    assert program, "make test-all installs systemd"
    path = tmp_path / name
    path.write_text(text_of(name).replace("/opt/bili/.venv/bin/python", sys.executable), "utf-8")
    instance = tmp_path / name.replace("@", "@1")
    instance.symlink_to(path)
    said = subprocess.run([program, "verify", "--man=no", str(instance)], capture_output=True, text=True)
    ours = [line for line in said.stderr.splitlines() if "bili" in line]
    assert said.returncode == 0 and not ours, said.stderr
    exposure = [program, "security", "--offline=true", "--threshold=25", "--no-pager", str(path)]
    shut = subprocess.run(exposure, capture_output=True, text=True)
    assert shut.returncode == 0, shut.stdout + shut.stderr


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_commands_of_the_units_make_a_farm(hand: ByHand) -> None:
    """ExecStart, Environment and EnvironmentFile of two servers and a worker, as systemd would start them."""
    engine_port, ports = free_port(), [free_port(), free_port()]
    engine = [engine_binary(), str(DEPLOY / "valkey.conf"), "--port", str(engine_port), "--bind", "127.0.0.1"]
    engine += ["--dir", str(hand.folder)]
    hand.start("valkey", engine, hand.environ())
    wait_until("Valkey serves", lambda: is_open(engine_port), 20)
    server_env = {name: value.replace(":6379", f":{engine_port}") for name, value in env_file("server.env").items()}
    token = {"BILI_TOKEN": TOKEN}

    def start(name: str, instance: str, given: Mapping[str, str]) -> None:
        content = unit(name, instance)
        roots = ("/var/lib/bili", "/srv/bili")
        environ = hand.environ(unit_environ(content), given, token)
        for root in roots:
            (hand.folder / root[1:]).mkdir(parents=True, exist_ok=True)
            environ = {key: value.replace(root, str(hand.folder / root[1:])) for key, value in environ.items()}
        hand.start(f"{name}-{instance}", shlex.split(dict(content)["ExecStart"]), environ)

    for port in ports:
        start("bili-server@.service", str(port), server_env)
        wait_until(f"the server at {port} serves", lambda port=port: serves(port), 30)  # type: ignore[misc]
    urls = {"BILI_SERVER_URL": ",".join(f"http://127.0.0.1:{port}" for port in ports)}
    metrics_port = free_port()
    start("bili-worker@.service", "1", {**urls, "BILI_METRICS_ADDRESS": str(metrics_port)})
    assert ask(ports[0], "/add_url", {"urls": [video("plain").bvid]})["added"] == 1
    wait_until("the video is done", lambda: ask(ports[1], "/status")["jobs"]["done"] == 1, 60)
    assert [worker["worker"] for worker in ask(ports[0], "/status")["workers"]] == ["host-1"]
    assert len(finished_files(hand.folder / "srv" / "bili")) == 1
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
        shown = answer.read().decode()
    assert "bili_worker_done_total 1\n" in shown and "bili_worker_mirror_speed_bytes_per_second{" in shown
    with opener.open(f"http://127.0.0.1:{metrics_port}/livez", timeout=10) as answer:
        assert answer.read() == b"ok\n"
