"""What is shipped to run Pharos and what looks at it: compose, image, Grafana, Kubernetes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mlx_pharos
from mlx_pharos.settings import Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
GRACE: float = Settings.model_fields["shutdown_grace"].default
MANIFESTS = sorted(each.name for each in (DEPLOY / "kubernetes").glob("*.yaml"))


def _missing(name: str) -> None:
    text = f"{name} is not on this machine: `make checkers` installs it"
    if os.environ.get("REQUIRE_CHECKERS") == "1":
        pytest.fail(text)
    pytest.skip(text)


def _read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text(encoding="utf-8"))


def _services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = _read("compose.yaml")["services"]
    return found


def test_compose_opens_the_loopback_alone() -> None:
    """No port of any service can be reached from a network."""
    ports = [port for each in _services().values() for port in each.get("ports", ())]
    assert len(ports) >= 6
    assert [] == [port for port in ports if not re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)]


def test_compose_pins_bounds_and_confines_every_service() -> None:
    """A version, a limit of memory and processes, a bounded log, a read-only root, no privileges."""
    for name, service in _services().items():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert {"max-size", "max-file"} == service["logging"]["options"].keys(), name
        assert service["read_only"], name
        assert ["ALL"] == service["cap_drop"], name
        assert ["no-new-privileges:true"] == service["security_opt"], name
        assert service["restart"] in {"unless-stopped", "on-failure:3"}, name
        assert not service.get("privileged"), name


def test_grafana_has_no_account_to_guess_the_password_of() -> None:
    """Nobody can log in; whoever reaches the loopback port may look."""
    environment = _services()["grafana"]["environment"]
    assert "true" == environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"]
    assert "true" == environment["GF_AUTH_DISABLE_LOGIN_FORM"]
    assert "false" == environment["GF_AUTH_BASIC_ENABLED"]
    assert "Admin" != environment["GF_AUTH_ANONYMOUS_ORG_ROLE"]
    assert not [name for name in environment if "PASSWORD" in name]


@pytest.mark.parametrize(
    "name", ["prometheus", "alertmanager", "collector", "jaeger", "victorialogs"]
)
def test_compose_runs_the_versions_that_are_tested(name: str) -> None:
    """The image has the version that `make backends` builds, with which its files are tested."""
    recipe = (DEPLOY.parent / "tools" / "backends").read_text(encoding="utf-8")
    built = dict(re.findall(r"^([A-Z]+)=(\d+\.\d+\.\d+)\b", recipe, flags=re.MULTILINE))
    tag = _services()[name]["image"].rpartition(":")[2]
    assert built[name.upper()] == tag.removeprefix("v")


def test_every_file_that_compose_mounts_is_shipped() -> None:
    """An engine makes a directory of a file that is missing, and the program fails on it."""
    sources = [
        re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", mount).rsplit(":", 2)[0]
        for service in _services().values()
        for mount in service.get("volumes", ())
        if mount.startswith((".", "$"))
    ]
    assert len(sources) >= 8
    assert [] == [source for source in sources if not (DEPLOY / source).exists()]


def test_compose_tells_the_configurations_where_to_listen_and_send() -> None:
    """Each variable that a service is given is one that its configuration reads."""
    for name, file in (("collector", "collector/config.yaml"), ("jaeger", "jaeger/config.yaml")):
        read = set(re.findall(r"\$\{env:(\w+)", (DEPLOY / file).read_text(encoding="utf-8")))
        assert _services()[name]["environment"].keys() <= read


@pytest.mark.parametrize("place", ["host", "server"])
def test_prometheus_has_the_same_jobs_in_containers(place: str) -> None:
    """Rules and boards ask for jobs by name, wherever the programs run."""
    for path in sorted((DEPLOY / "prometheus/targets").glob("*.yml")):
        ours = _read(f"compose/targets/{place}/{path.name}")
        shipped = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert [each.get("labels") for each in shipped] == [each.get("labels") for each in ours]


def test_nothing_kills_a_container_before_the_grace_is_over() -> None:
    """Compose and Kubernetes wait 20 s longer than running requests get by default."""
    assert _services()["pharos"]["stop_grace_period"] == f"{GRACE + 20:g}s"
    pod = _read("kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    assert GRACE + 20 == pod["terminationGracePeriodSeconds"]


def test_the_image_is_that_of_this_version() -> None:
    """The tags say what is in them."""
    tag = f"mlx-pharos:{mlx_pharos.__version__}"
    assert tag == _services()["pharos"]["image"]
    assert f"{tag}-cuda" == _read("compose.cuda.yaml")["services"]["pharos"]["image"]
    (image,) = _read("kubernetes/kustomization.yaml")["images"]
    assert f"{mlx_pharos.__version__}-cuda" == image["newTag"]


def test_hadolint_finds_no_fault_with_the_dockerfile() -> None:
    """hadolint, with all its rules and those of the shell."""
    place = Path(sys.executable).with_name("hadolint")
    found = str(place) if place.exists() else shutil.which("hadolint")
    if found is None:
        _missing("hadolint")
    assert found is not None
    done = subprocess.run(
        [found, DEPLOY / "Dockerfile"], capture_output=True, text=True, timeout=18, check=False
    )
    assert ("", 0) == (done.stdout, done.returncode)


def test_the_image_runs_as_nobody_in_particular() -> None:
    """Not as root; from pinned hashes; what is copied exists."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert ["10001:10001"] == re.findall(r"^USER (.*)$", text, flags=re.MULTILINE)
    assert "--require-hashes" in text
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", text, flags=re.MULTILINE)
    assert [] == [
        name for line in copied for name in line.split() if not (DEPLOY.parent / name).exists()
    ]


@pytest.mark.parametrize("name", ["deployment", "service", "poddisruptionbudget"])
@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_kubernetes_takes_the_manifest(name: str, version: str) -> None:
    """The schema of the oldest and the newest version that are looked at, and no unknown field."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        _missing("kubernetes-validate")
    validate = importlib.import_module("kubernetes_validate").validate
    validate(_read(f"kubernetes/{name}.yaml"), version, strict=True)


def test_kustomization_has_every_manifest() -> None:
    """A file that is not listed is not applied."""
    listed = [*_read("kubernetes/kustomization.yaml")["resources"], "kustomization.yaml"]
    assert MANIFESTS == sorted(listed)


def test_the_pods_are_found_confined_and_probed() -> None:
    """One label leads from service, budget and monitor to the pods, whose probes ask the right path."""
    deployment = _read("kubernetes/deployment.yaml")
    label = {"app.kubernetes.io/name": "pharos"}
    assert label == deployment["spec"]["template"]["metadata"]["labels"]
    assert label == _read("kubernetes/service.yaml")["spec"]["selector"]
    assert label == _read("kubernetes/service.yaml")["metadata"]["labels"]
    for name in ("poddisruptionbudget", "servicemonitor"):
        assert label == _read(f"kubernetes/{name}.yaml")["spec"]["selector"]["matchLabels"]
    pod = deployment["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    (container,) = pod["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    asked = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness")]
    assert ["/readyz", "/readyz"] == asked
    assert "/livez" == container["livenessProbe"]["httpGet"]["path"]
    variables = {each["name"] for each in container["env"] if each["name"].startswith("PHAROS_")}
    known = {f"PHAROS_{name.upper()}" for name in Settings.model_fields}
    assert variables <= known


def test_grafanas_sources_lead_from_exemplars_to_traces_to_the_log() -> None:
    """Each source has a variable for its address, which compose sets, and none is a password's.

    The source of the log is no part of Grafana's image: compose has it fetched, at one version.
    """
    sources = {
        each["uid"]: each
        for each in _read("grafana/provisioning/datasources/pharos.yaml")["datasources"]
    }
    (way,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]
    assert {"name": "trace_id", "datasourceUid": "jaeger"}.items() <= way.items()
    assert sources["prometheus"]["jsonData"]["alertmanagerUid"] in sources
    log = sources[sources["jaeger"]["jsonData"]["tracesToLogsV2"]["datasourceUid"]]
    (back,) = log["jsonData"]["derivedFields"]
    assert {"matcherRegex": "trace_id", "datasourceUid": "jaeger"}.items() <= back.items()
    environment = _services()["grafana"]["environment"]
    assert re.fullmatch(rf"{log['type']}@\d+\.\d+\.\d+", environment["GF_PLUGINS_PREINSTALL"])
    assert "GF_PLUGINS_PREINSTALL_DISABLED" not in environment
    variables = {each["url"].removeprefix("$") for each in sources.values()}
    assert variables <= environment.keys()
    (provider,) = _read("grafana/provisioning/dashboards/pharos.yaml")["providers"]
    assert f"./grafana/boards:{provider['options']['path']}:ro" in _services()["grafana"]["volumes"]
