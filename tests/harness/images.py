"""The images of the tests, built by buildah from the real Dockerfiles and tagged by the hash of what went in.

    localhost/finetune-base:HASH          Debian with Python by debootstrap, for want of a registry's python:3.11-slim
    localhost/finetune-NAME-env:HASH      a Dockerfile's stage `environment`: the locked packages; changes with the lock
    localhost/finetune-NAME:HASH          the image: our code on top; changes with the code, built in a second
    localhost/finetune-busybox, -pause    Debian's static busybox as a small test image and as the pods' pause image

All layers stay in buildah's storage in the cache; `linking.py` gives them to the nodes from there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.harness.errors import HarnessError
from tests.harness.storage import Storage
from tests.harness.store import ROOT, cache, digest, files_under, locked

_SUITE = "bookworm"
_BASE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
_BUSYBOX = Path("/bin/busybox")
_CERTIFICATES = Path("/etc/ssl/certs")
_BUILD_TIMEOUT_S = 1800
_CACHE_IN_BUILD = "/var/cache/uv"
_BUSYBOX_IMAGES = {"busybox": ("sh",), "pause": ("sleep", "2147483647")}
"""Image name to the applet it runs."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One of our images: its Dockerfile, its lock file and the folders of code it copies, all relative to the root."""

    name: str
    dockerfile: str
    lock: str
    code: tuple[str, ...]

    @property
    def requirements(self) -> list[Path]:
        return [ROOT / "requirements" / name for name in ("uv.txt", self.lock)]


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="trainer",
            dockerfile="trainer_image/Dockerfile",
            lock="trainer.txt",
            code=("operator/finetune_api", "operator/finetune_stats", "trainer_image/finetune_trainer"),
        ),
        Recipe(
            name="operator",
            dockerfile="operator/Dockerfile",
            lock="operator.txt",
            code=(
                "operator/finetune_api",
                "operator/finetune_stats",
                "operator/finetune_http",
                "operator/finetune_operator",
            ),
        ),
        Recipe(
            name="gateway",
            dockerfile="operator/gateway.Dockerfile",
            lock="gateway.txt",
            code=("operator/finetune_api", "operator/finetune_http", "operator/finetune_gateway"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """References of built images; every one is in the storage."""

    trainer: str
    operator: str
    gateway: str
    busybox: str
    pause: str

    def all(self) -> tuple[str, ...]:
        return (self.pause, self.busybox, self.operator, self.gateway, self.trainer)


def build_images() -> Images:
    """Build what the storage lacks and return the references for the code as it is now."""
    return Images(
        **{name: _image(recipe) for name, recipe in RECIPES.items()},
        **{name: _busybox(name, command) for name, command in _BUSYBOX_IMAGES.items()},
    )


def current_references() -> set[str]:
    """What `build_images` would give for the code as it is now, with the environments and the base."""
    references = {_base_reference(), *(_busybox_reference(name, command) for name, command in _BUSYBOX_IMAGES.items())}
    for recipe in RECIPES.values():
        environment = _environment_reference(recipe)
        with _context(recipe) as folder:
            references |= {environment, _image_reference(recipe, environment, folder)}
    return references


def _image(recipe: Recipe) -> str:
    environment = _environment(recipe)
    with _context(recipe) as folder:
        reference = _image_reference(recipe, environment, folder)
        _build(reference, folder, _arguments)
    return reference


def _image_reference(recipe: Recipe, environment: str, context: Path) -> str:
    return f"localhost/finetune-{recipe.name}:{digest(texts=[environment], paths=[context])}"


def _environment(recipe: Recipe) -> str:
    reference = _environment_reference(recipe)
    with _context(recipe) as folder:
        _build(reference, folder, lambda: ["--target=environment", *_arguments()])
    return reference


def _environment_reference(recipe: Recipe) -> str:
    stages = (ROOT / recipe.dockerfile).read_text().split("\nFROM environment\n")
    if len(stages) != 2:
        raise HarnessError(f"{recipe.dockerfile}: expected a stage `environment` and one `FROM environment` after it")
    content = digest(texts=[stages[0], _base_reference()], paths=recipe.requirements)
    return f"localhost/finetune-{recipe.name}-env:{content}"


@contextmanager
def _context(recipe: Recipe) -> Iterator[Path]:
    """The build context: only what the Dockerfile copies, with times and modes that do not depend on the checkout.

    It is a copy, so the tag's hash is of what was built, also while somebody edits the code.
    """
    with TemporaryDirectory(prefix="finetune-image-") as temporary:
        folder = Path(temporary) / "context"
        copies = [ROOT / code for code in recipe.code] + recipe.requirements
        for source in copies:
            if not source.exists():
                raise HarnessError(f"{recipe.dockerfile} copies {source.relative_to(ROOT)}, which does not exist")
            for file in files_under(source):
                target = folder / file.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
        shutil.copyfile(ROOT / recipe.dockerfile, folder / "Dockerfile")
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (0, 0))
        yield folder


def _arguments() -> list[str]:
    """What a build needs on a machine without a container registry: base image, certificates, package cache."""
    packages = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    packages.mkdir(parents=True, exist_ok=True)
    return [
        f"--build-arg=BASE_IMAGE={_base()}",
        f"--build-arg=UV_CACHE_DIR={_CACHE_IN_BUILD}",
        f"--volume={packages}:{_CACHE_IN_BUILD}",
        f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro",
    ]


def _base_reference() -> str:
    return f"localhost/finetune-base:{digest(texts=[_SUITE, *_BASE_PACKAGES])}"


def _base() -> str:
    reference = _base_reference()
    if reference in Storage.default():
        return reference
    with locked("base-image"), TemporaryDirectory(prefix="finetune-base-", dir=cache()) as temporary:
        if reference in Storage.default():
            return reference
        _say(f"making the base image by debootstrap ({_SUITE}: {', '.join(_BASE_PACKAGES)}) ...")
        folder = Path(temporary)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(_BASE_PACKAGES)}", _SUITE]
        _run([*command, str(folder / "root"), _debian_mirror()])
        for downloads in ("var/cache/apt/archives", "var/lib/apt/lists"):
            shutil.rmtree(folder / "root" / downloads)
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY root /\n")
        _build(reference, folder, list)
    return reference


def _debian_mirror() -> str:
    """The mirror that this machine's apt uses."""
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    for path in sources:
        found = re.search(r"https?://\S+/debian/?(?=\s|$)", path.read_text()) if path.is_file() else None
        if found:
            return found.group()
    raise HarnessError("no Debian mirror in /etc/apt/sources.list*; the base image is made from one with debootstrap")


def _busybox_reference(name: str, command: Sequence[str]) -> str:
    return f"localhost/finetune-{name}:{digest(texts=command, paths=[_BUSYBOX])}"


def _busybox(name: str, command: Sequence[str]) -> str:
    reference = _busybox_reference(name, command)
    if reference in Storage.default():
        return reference
    with TemporaryDirectory(prefix="finetune-busybox-") as temporary:
        folder = Path(temporary)
        programs = folder / "root" / "bin"
        programs.mkdir(parents=True)
        shutil.copy(_BUSYBOX, programs / "busybox")
        for applet in _run([str(_BUSYBOX), "--list"]).split():
            if applet != "busybox":
                (programs / applet).symlink_to("busybox")
        for path in (programs.parent, programs):
            path.chmod(0o755)
        (folder / "root" / "tmp").mkdir()
        (folder / "root" / "tmp").chmod(0o1777)
        words = ", ".join(f'"{word}"' for word in ["/bin/busybox", *command])
        (folder / "Dockerfile").write_text(f"FROM scratch\nCOPY root /\nUSER 65532:65532\nCMD [{words}]\n")
        _build(reference, folder, list)
    return reference


def _build(reference: str, folder: Path, options: Callable[[], Sequence[str]]) -> None:
    """Build the context in `folder` as `reference` unless the storage has it."""
    if reference in Storage.default():
        return
    arguments = options()  # outside of the lock, since they may build the base image
    with locked("images"):
        if reference in Storage.default():
            return
        began = time.monotonic()
        _say(f"building {reference} ...")
        build = [*Storage.default().buildah(), "build", "--layers", "--force-rm"]
        _run([*build, "--isolation=chroot", "--network=host", *arguments, f"--tag={reference}", str(folder)])
        _say(f"built {reference} in {time.monotonic() - began:.1f} s")


def _run(command: Sequence[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_S, check=False)
    if run.returncode != 0:
        words = re.sub(r"https?://\S+", "<address>", f"{run.stdout}\n{run.stderr}").strip().splitlines()[-25:]
        raise HarnessError(f"{' '.join(command[:3])} ... failed:\n" + "\n".join(words))
    return run.stdout


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
