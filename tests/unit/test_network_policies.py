"""What NetworkPolicies let through: they see the port of the pod behind a Service, which distributions choose."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

MANIFESTS = Path(__file__).resolve().parents[2] / "manifests"
FILES = [MANIFESTS / "operator" / "network_policy.yaml", MANIFESTS / "tenant" / "network_policies.yaml"]


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.parent.name)
def test_names_are_let_through_where_dns_listens_at_53_and_where_at_5353(file: Path) -> None:
    policies = [each for each in yaml.safe_load_all(file.read_text()) if each]
    asked = [rule["ports"] for policy in policies for rule in policy["spec"].get("egress", ()) if "ports" in rule]
    names = [
        {(each["port"], each["protocol"]) for each in ports}
        for ports in asked
        if {"port": 53, "protocol": "UDP"} in ports
    ]
    assert names
    for ports in names:
        assert {(port, protocol) for port in (53, 5353) for protocol in ("UDP", "TCP")} <= ports
