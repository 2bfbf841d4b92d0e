"""URIs: what they mean in this container, and which of them may be touched.

A URI is taken as written: no percent-decoding, no `..`, no empty segments. `file://` and `pvc://` are folders of this
container; confinement compares real paths, so a symbolic link cannot lead out of an allowed root.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_trainer.process.errors import bad_configuration

LOCAL_SCHEMES = ("file", "pvc")
REMOTE_SCHEMES = ("s3", "gs")
SCHEMES = (*LOCAL_SCHEMES, *REMOTE_SCHEMES, "hf")


@dataclass(frozen=True, kw_only=True)
class Location:
    """A URI, taken apart. `uri` is the normal form; `path` is set where it is a path of this container."""

    uri: str
    scheme: str
    key: str
    """Without the scheme: `bucket/path`, `claim/path`, `org/name`, or the absolute path."""
    path: Path | None = None


def parse(uri: str, *, mounts: Mapping[str, str]) -> Location:
    """Take a URI apart. Raises StageError (78) for an unknown scheme, `..`, or a claim that is not mounted."""
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in SCHEMES:
        raise bad_configuration("BadUri", f"{uri}: not a URI of one of {', '.join(name + '://' for name in SCHEMES)}")
    if "\x00" in rest:
        raise bad_configuration("BadUri", f"{uri!r}: contains a NUL character")
    absolute = rest.startswith("/")
    segments = [segment for segment in rest.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise bad_configuration("BadUri", f"{uri}: `..` is not allowed in a URI; write the path without it")
    key = "/".join(segments)
    if scheme == "file":
        if not absolute:
            raise bad_configuration(
                "BadUri", f"{uri}: a file:// URI needs an absolute path, as in file:///data/train.jsonl"
            )
        return Location(uri=f"file:///{key}", scheme=scheme, key=f"/{key}", path=Path("/", key))
    if absolute or not segments:
        raise bad_configuration("BadUri", f"{uri}: the name after {scheme}:// is missing")
    path = None
    if scheme == "pvc":
        claim, *inside = segments
        if claim not in mounts:
            known = ", ".join(sorted(mounts)) or "none"
            raise bad_configuration(
                "ClaimNotMounted", f"{uri}: claim {claim} is not mounted in this container (mounted: {known})"
            )
        path = Path(mounts[claim], *inside)
    return Location(uri=f"{scheme}://{key}", scheme=scheme, key=key, path=path)


def join(uri: str, *names: str) -> str:
    """The URI of something inside a folder."""
    return "/".join([uri.rstrip("/"), *names])


class Confinement:
    """Which locations may be read and which written.

    Written: the run's own folder and the cache. Read: those, and what lies in an allowed root; where no roots are set,
    everything but the container's own file system outside of the mounts.
    """

    def __init__(self, *, run: str, cache: str, allowed_roots: Sequence[str], mounts: Mapping[str, str]) -> None:
        self._mounts = dict(mounts)
        self._writable = [self.parse(run), self.parse(cache)]
        self._roots = [self._parse_root(root) for root in allowed_roots]

    def parse(self, uri: str) -> Location:
        """Take a URI apart, without judging it."""
        return parse(uri, mounts=self._mounts)

    def readable(self, uri: str) -> Location:
        """The location, if it may be read. Raises StageError (78)."""
        location = self.parse(uri)
        if self._inside(location, self._writable) or self._allowed(location):
            return location
        if self._roots:
            where = "the allowed roots (" + ", ".join(root.uri for root in self._roots) + ")"
        else:
            where = "the mounted claims"
        through = ""
        if location.path is not None and location.path.exists() and location.path.resolve() != location.path:
            through = f" (it leads to {location.path.resolve()})"
        raise bad_configuration(
            "OutsideAllowedRoots",
            f"{uri} is outside of {where}{through}; move it there, or have an administrator allow its root",
        )

    def writable(self, uri: str) -> Location:
        """The location, if it may be written. Raises StageError (78)."""
        location = self.parse(uri)
        if not self._inside(location, self._writable):
            raise bad_configuration(
                "OutsideRunFolder", f"{uri}: a stage writes only into its run's folder and the cache"
            )
        return location

    def _parse_root(self, root: str) -> Location:
        # A whole scheme is a root too: `hf://`, `s3://`.
        scheme, separator, rest = root.partition("://")
        if separator and scheme in SCHEMES and scheme != "file" and not rest.strip("/"):
            return Location(uri=root, scheme=scheme, key="")
        if scheme == "pvc" and rest.strip("/").split("/")[0] not in self._mounts:
            # A root on a claim that this run does not use: nothing can be under it here.
            return Location(uri=root, scheme=scheme, key=rest.strip("/"))
        return self.parse(root)

    def _allowed(self, location: Location) -> bool:
        if self._roots:
            return self._inside(location, self._roots)
        if location.path is None:
            return True
        real = location.path.resolve()
        return any(real.is_relative_to(Path(mount).resolve()) for mount in self._mounts.values())

    def _inside(self, location: Location, roots: Sequence[Location]) -> bool:
        return any(self._is_under(location, root) for root in roots)

    def _is_under(self, location: Location, root: Location) -> bool:
        if location.path is not None and root.path is not None:
            return location.path.resolve().is_relative_to(root.path.resolve())
        if location.scheme != root.scheme:
            return False
        if location.path is not None:
            # A root that is a whole local scheme (`pvc://`): still inside the mount, whatever links say.
            mounted = Path(self._mounts[location.key.split("/")[0]]).resolve()
            return not root.key and location.path.resolve().is_relative_to(mounted)
        return not root.key or location.key == root.key or location.key.startswith(root.key + "/")
