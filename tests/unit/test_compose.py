"""compose.yaml, which no test can start: what it promises about ports, passwords and versions."""

from __future__ import annotations

import re

import yaml
from conftest import ROOT

TEXT = (ROOT / "compose.yaml").read_text()
SERVICES = yaml.safe_load(TEXT)["services"]
COMMAND = SERVICES["mlflow"]["command"]


def test_it_listens_on_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]
    assert "--allowed-hosts=127.0.0.1:5000,localhost:5000" in COMMAND


def test_the_password_comes_from_the_environment_alone_and_has_no_default():
    values = [value for service in SERVICES.values() for value in service["environment"].items()]
    secrets = [value for key, value in values if "PASSWORD" in key]
    assert len(secrets) == 2 and all(re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", value) for value in secrets)
    assert "@" not in " ".join(COMMAND), "an address with a password would be seen by all"


def test_the_server_is_the_mlflow_of_the_lock():
    [locked] = re.findall(r"^mlflow==(\S+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    assert SERVICES["mlflow"]["image"] == f"ghcr.io/mlflow/mlflow:v{locked}-full"


def test_what_is_kept_outlives_the_containers():
    kept = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert kept == set(yaml.safe_load(TEXT)["volumes"])
    assert [volume.partition(":")[2] for volume in SERVICES["mlflow"]["volumes"]] == [
        word.partition("=")[2] for word in COMMAND if word.startswith("--artifacts-destination=")
    ]
