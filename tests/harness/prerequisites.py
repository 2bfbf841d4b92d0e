"""What the machine must have. As root on Debian or Ubuntu the harness installs the missing packages itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.harness import tools
from tests.harness.errors import MissingPrerequisite
from tests.harness.store import locked

_IMAGE_PACKAGES = {
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "busybox-static": "/bin/busybox",
}
_NODE_PACKAGES = {
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "nftables": "/usr/sbin/nft",
    "iptables": "/usr/sbin/iptables",
    "conntrack": "/usr/sbin/conntrack",
    "iproute2": "/sbin/ip",
}
DEBIAN_PACKAGES = {**_IMAGE_PACKAGES, **_NODE_PACKAGES}
"""Package to a file that it brings; what a cluster needs."""
BROWSER_PACKAGES = {"chromium": "/usr/bin/chromium", "fonts-dejavu-core": "/usr/share/fonts/truetype/dejavu"}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_APT_TIMEOUT_S = 900


def require_for_api() -> None:
    """Raise `MissingPrerequisite` when kube-apiserver and etcd can be neither built nor found in the cache."""
    if tools.go_version() is None and not all(tools.is_built(name) for name in tools.API_PROGRAMS):
        raise MissingPrerequisite(
            "Go is missing, and the cache holds no kube-apiserver: install Go (golang.org/dl, or golang-go)"
        )


def require_for_chart() -> None:
    """Raise `MissingPrerequisite` when Helm and kube-apiserver can be neither built nor found in the cache."""
    if tools.go_version() is None and not all(tools.is_built(name) for name in tools.CHART_PROGRAMS):
        raise MissingPrerequisite(
            "Go is missing, and the cache lacks helm or kube-apiserver: install Go (golang.org/dl, or golang-go)"
        )


def require_for_cluster() -> None:
    """Raise `MissingPrerequisite` naming what a real cluster lacks here; installs Debian packages where it may."""
    if os.geteuid() != 0:
        raise MissingPrerequisite("a real cluster needs root (network namespaces, mounts, cgroups): run it as root")
    if tools.go_version() is None and not all(tools.is_built(name) for name in tools.CLUSTER_PROGRAMS):
        raise MissingPrerequisite(
            "Go is missing, and the cache holds no kubelet: install Go (golang.org/dl, or golang-go)"
        )
    install_debian_packages()


def require_for_browser() -> str:
    """A Chromium's path; raises `MissingPrerequisite` where there is none and it cannot be installed."""
    if (found := _browser()) is None:
        install_debian_packages(BROWSER_PACKAGES)
        found = _browser()
    if found is None:
        raise MissingPrerequisite("chromium is not on the PATH")
    return found


def _browser() -> str | None:
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)


def missing_debian_packages(packages: Mapping[str, str]) -> list[str]:
    """Names of the packages that are not there."""
    return sorted(name for name, file in packages.items() if not Path(file).exists())


def install_debian_packages(packages: Mapping[str, str] = DEBIAN_PACKAGES) -> None:
    """Install what is missing; raises `MissingPrerequisite` with the apt-get line when that cannot be done."""
    if not missing_debian_packages(packages):
        return
    with locked("apt"):
        missing = missing_debian_packages(packages)
        if not missing:
            return
        advice = f"install them with: apt-get install --no-install-recommends {' '.join(missing)}"
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise MissingPrerequisite(f"Debian packages are missing: {', '.join(missing)}; {advice}")
        print(f"installing Debian packages: {' '.join(missing)} ...", file=sys.stderr, flush=True)
        for command in (
            ["apt-get", "-qq", "update"],
            ["apt-get", "-qq", "install", "-y", "--no-install-recommends", *missing],
        ):
            run = subprocess.run(
                command,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
                timeout=_APT_TIMEOUT_S,
                check=False,
            )
        if missing_debian_packages(packages):
            raise MissingPrerequisite(
                f"apt-get could not install {', '.join(missing)}: {run.stderr.strip()[-500:]}; {advice}"
            )
