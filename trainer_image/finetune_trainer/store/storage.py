"""Reading and writing by URI, confined to what the run may touch; finished folders are told from torn ones.

One `Storage` per process, made from the run's locations. Local URIs (file://, pvc://) are handled as paths: atomic
renames, fsync, real-path confinement. s3:// and gs:// go through fsspec, configured by the environment
(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...; GOOGLE_APPLICATION_CREDENTIALS). hf:// is only confined here;
hub.py reads it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from finetune_api.results import ExitCode
from finetune_api.run import Locations
from finetune_trainer.process.errors import StageError, bad_configuration, bad_data, from_write_failure, not_found
from finetune_trainer.store import complete
from finetune_trainer.store.complete import Complete, FileDigest
from finetune_trainer.store.locations import Confinement, Location, join

log = logging.getLogger(__name__)

_STAGING = ".staging-"
# Staging folders in the shared cache belong to whoever makes them; after this long nobody does.
_ABANDONED_SECONDS = 24 * 3600


class _Torn(Exception):
    """Why a folder does not count as finished."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file of a folder."""

    path: str
    """Relative to the folder, with `/`."""
    size: int


class Storage:
    """All reads and writes of a stage go through here.

    Every method raises StageError: exit 66 for what is not there, 73 for what cannot be written, 78 for a URI that
    may not be touched, 70 for a store that does not answer (worth another attempt).
    """

    def __init__(self, *, locations: Locations) -> None:
        self.locations = locations
        self._confinement = Confinement(
            run=locations.run,
            cache=locations.cache,
            allowed_roots=locations.allowed_roots,
            mounts=locations.mounts,
        )
        self._filesystems: dict[str, Any] = {}

    # -- reading ------------------------------------------------------------------------------------------------------

    def local_path(self, uri: str) -> Path | None:
        """The path behind a file:// or pvc:// URI, which may not exist; None for remote stores."""
        return self._confinement.readable(uri).path

    def check_readable(self, uri: str) -> None:
        """Raise StageError (78) unless the URI may be read, hf:// included. Nothing is read."""
        self._confinement.readable(uri)

    def exists(self, uri: str) -> bool:
        """Whether there is a file or a folder."""
        location = self._confinement.readable(uri)
        if location.path is not None:
            return location.path.exists()
        with _reading(uri):
            return bool(self._filesystem(location).exists(location.key))

    def is_folder(self, uri: str) -> bool:
        """Whether there is a folder (on an object store: something under the prefix)."""
        location = self._confinement.readable(uri)
        if location.path is not None:
            return location.path.is_dir()
        with _reading(uri):
            return bool(self._filesystem(location).isdir(location.key))

    @contextlib.contextmanager
    def open(self, uri: str) -> Iterator[BinaryIO]:
        """Open a file for reading bytes."""
        location = self._confinement.readable(uri)
        with _reading(uri):
            if location.path is not None:
                if location.path.exists() and not (location.path.is_file() or location.path.is_dir()):
                    raise not_found(f"{uri} is neither a file nor a folder")
                stream: BinaryIO = location.path.open("rb")
            else:
                stream = self._filesystem(location).open(location.key, "rb")
        with stream:
            yield stream

    def read_bytes(self, uri: str) -> bytes:
        """The whole file."""
        with self.open(uri) as stream:
            return stream.read()

    def read_text(self, uri: str) -> str:
        """The whole file, as UTF-8."""
        return self.read_bytes(uri).decode()

    def list_files(self, uri: str) -> list[FileEntry]:
        """All files below a folder, sorted by path; empty where there is no folder.

        Links that lead out of what may be read are refused, and objects whose names are no paths. Staging folders of
        writers at work are left out.
        """
        location = self._confinement.readable(uri)
        if location.path is not None:
            found = self._list_local(uri, location.path)
        else:
            with _reading(uri):
                filesystem = self._filesystem(location)
                filesystem.invalidate_cache()
                listed = filesystem.find(location.key, detail=True)
            prefix = location.key + "/"
            found = [
                FileEntry(path=_as_path(name.removeprefix(prefix), uri=uri), size=int(info["size"]))
                for name, info in listed.items()
                if name.startswith(prefix) and info.get("type") != "directory" and not name.endswith("/")
            ]
        return sorted(found, key=lambda entry: entry.path)

    def download(self, uri: str, *, into: Path) -> Path:
        """Copy a remote file or folder to `into`, which must not exist."""
        location = self._confinement.readable(uri)
        with _reading(uri), _writing(str(into)):
            into.parent.mkdir(parents=True, exist_ok=True)
            if not self.is_folder(uri):
                self._copy_out(uri, into)
                return into
            into.mkdir()
            for entry in self.list_files(location.uri):
                target = into / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                self._copy_out(join(location.uri, entry.path), target)
        return into

    @contextlib.contextmanager
    def local_copy(self, uri: str) -> Iterator[Path]:
        """A file or folder as a local path for reading: itself where it is local, else a temporary copy.

        Links in it that lead out of what may be read are refused.
        """
        location = self._confinement.readable(uri)
        if not self.exists(uri):
            raise not_found(f"{uri} does not exist")
        if location.path is not None:
            self.list_files(uri)
            yield location.path
            return
        with tempfile.TemporaryDirectory(prefix="finetune-") as scratch:
            yield self.download(uri, into=Path(scratch, location.key.rsplit("/", 1)[-1]))

    @contextlib.contextmanager
    def finished_copy(self, uri: str, *, input_digest: str | None = None) -> Iterator[tuple[Path, Complete] | None]:
        """`local_copy` of a finished folder and its manifest, verified; None where there is no folder, a torn one
        (named in the log), or one that was made from another input. What is remote is read once.
        """
        manifest = self.read_complete(uri, verify_content=self._confinement.readable(uri).path is not None)
        if manifest is None or input_digest not in (None, manifest.input_digest):
            yield None
            return
        with self.local_copy(uri) as folder:
            if folder == self.local_path(uri):
                yield folder, manifest
                return
            (folder / complete.FILE_NAME).unlink()
            whole = complete.tree_digest(complete.local_digests(folder)) == manifest.digest
            if not whole:
                log.warning("%s is not complete and is ignored: a file has another sha256 than in its COMPLETE", uri)
            yield (folder, manifest) if whole else None

    # -- writing ------------------------------------------------------------------------------------------------------

    def write_atomic(self, uri: str, content: bytes | str) -> None:
        """Write a file: a reader sees the old content or all of the new one, also after a power cut."""
        location = self._confinement.writable(uri)
        data = content.encode() if isinstance(content, str) else content
        with _writing(uri):
            if location.path is None:
                self._filesystem(location).pipe_file(location.key, data)
                return
            location.path.parent.mkdir(parents=True, exist_ok=True)
            temporary = location.path.with_name(f".{location.path.name}.{uuid.uuid4().hex[:8]}")
            try:
                with temporary.open("wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                temporary.replace(location.path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            sync(location.path.parent)

    def remove(self, uri: str) -> None:
        """Remove a file or a folder with all that is in it; nothing happens where there is none."""
        location = self._confinement.writable(uri)
        with _writing(uri):
            if location.path is None:
                filesystem = self._filesystem(location)
                if filesystem.exists(location.key):
                    filesystem.rm(location.key, recursive=True)
            elif location.path.is_dir() and not location.path.is_symlink():
                shutil.rmtree(location.path)
            else:
                location.path.unlink(missing_ok=True)

    # -- finished folders ---------------------------------------------------------------------------------------------

    def read_complete(self, uri: str, *, verify_content: bool = True) -> Complete | None:
        """The manifest of a finished folder; None where there is no folder, or a torn one (named in the log).

        File names and sizes are always compared, sha256 digests unless `verify_content` is off.
        """
        try:
            return self._verified(uri, verify_content=verify_content)
        except _Torn as torn:
            log.warning("%s is not complete and is ignored: %s", uri, torn)
            return None

    @contextlib.contextmanager
    def staging_folder(self, uri: str) -> Iterator[Path]:
        """An empty local folder in which to make the content of `uri`; give it to `publish`. Removed at the end.

        For a local `uri` it lies beside the target, so that publishing is a rename.
        """
        location = self._confinement.writable(uri)
        with _writing(uri):
            if location.path is None:
                folder = Path(tempfile.mkdtemp(prefix="finetune-"))
            else:
                location.path.parent.mkdir(parents=True, exist_ok=True)
                self._remove_abandoned(location)
                folder = location.path.with_name(f"{_STAGING}{location.path.name}-{uuid.uuid4().hex[:8]}")
                folder.mkdir()
        try:
            yield folder
        except Exception as error:
            failure = None if isinstance(error, StageError) else from_write_failure(uri, error)
            if failure is None:
                raise
            raise failure from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, folder: Path, *, to: str, input_digest: str, extra: Mapping[str, Any]) -> Complete:
        """Make a staging folder's content the folder `to`, all at once, with its COMPLETE; what was there goes.

        Local: COMPLETE is written inside the staging folder, which is then renamed. Remote: COMPLETE is uploaded last.
        In the cache, which other runs read at this moment, a complete folder made from the same input stays.
        """
        location = self._confinement.writable(to)
        if not self._is_own(location):
            existing = self.read_complete(to)
            if existing is not None and existing.input_digest == input_digest:
                return existing
        if location.path is None:
            self.remove(to)
        files = self.put([path for path in folder.rglob("*") if path.is_file()], folder=folder, to=to)
        return self.finish(folder, files=files, to=to, input_digest=input_digest, extra=extra)

    def put(self, paths: Sequence[Path], *, folder: Path, to: str) -> tuple[FileDigest, ...]:
        """Bring some files of a staging folder to the disk, or upload them to where nothing else may be by now. Several
        processes may, of one folder or of one each; what it gives is for `finish`.
        """
        location = self._confinement.writable(to)
        with _writing(to):
            files = tuple(complete.file_digest(path, folder=folder) for path in paths)
            for path, file in zip(paths, files, strict=True):
                if location.path is None:
                    self._filesystem(location).put_file(str(path), f"{location.key}/{file.path}")
                else:
                    sync(path)
        return files

    def finish(
        self, folder: Path, *, files: Iterable[FileDigest], to: str, input_digest: str, extra: Mapping[str, Any]
    ) -> Complete:
        """The rest of `publish`, once all files were `put`."""
        location = self._confinement.writable(to)
        with _writing(to):
            manifest = Complete(input_digest=input_digest, files=tuple(sorted(files)), extra=extra)
            if location.path is None:
                self.write_atomic(join(to, complete.FILE_NAME), manifest.to_json())
                return manifest
            (folder / complete.FILE_NAME).write_text(manifest.to_json())
            _make_readable(folder)
            sync_tree(folder)
            self.remove(to)
            folder.rename(location.path)
            sync(location.path.parent)
        return manifest

    # -- inside -------------------------------------------------------------------------------------------------------

    def _verified(self, uri: str, *, verify_content: bool) -> Complete | None:
        present = {entry.path: entry.size for entry in self.list_files(uri)}
        if not present:
            return None
        if present.pop(complete.FILE_NAME, None) is None:
            raise _Torn("it has no COMPLETE")
        try:
            manifest = Complete.from_json(self.read_text(join(uri, complete.FILE_NAME)))
        except ValueError as error:
            raise _Torn(f"its COMPLETE cannot be read: {error}") from error
        expected = {file.path: file for file in manifest.files}
        for name in sorted(expected.keys() | present.keys()):
            if name not in present:
                raise _Torn(f"{name} is missing")
            if name not in expected:
                raise _Torn(f"{name} is not in its COMPLETE")
            if present[name] != expected[name].size:
                raise _Torn(f"{name} has {present[name]} bytes instead of {expected[name].size}")
        for file in manifest.files if verify_content else ():
            with self.open(join(uri, file.path)) as stream:
                if complete.stream_digest(stream)[1] != file.sha256:
                    raise _Torn(f"{file.path} has another sha256 than in its COMPLETE")
        return manifest

    def _filesystem(self, location: Location) -> Any:
        if location.scheme not in _FILESYSTEMS:
            raise bad_configuration("BadUri", f"{location.uri}: the hub has models and data sets, no other files")
        if location.scheme not in self._filesystems:
            self._filesystems[location.scheme] = _FILESYSTEMS[location.scheme]()
        return self._filesystems[location.scheme]

    def _list_local(self, uri: str, folder: Path) -> list[FileEntry]:
        found = []
        for parent, folders, files in os.walk(folder):
            folders[:] = [name for name in folders if not name.startswith(_STAGING)]
            for name in folders + files:
                path = Path(parent, name)
                if path.is_symlink():
                    self._confinement.readable(join(uri, path.relative_to(folder).as_posix()))
            for name in files:
                path = Path(parent, name)
                if path.is_file():
                    found.append(FileEntry(path=path.relative_to(folder).as_posix(), size=path.stat().st_size))
        return found

    def _copy_out(self, uri: str, target: Path) -> None:
        with self.open(uri) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)

    def _is_own(self, location: Location) -> bool:
        """Whether it is in the run's own folder, not in the cache that it shares with others."""
        own = self._confinement.parse(self.locations.run).uri
        return location.uri == own or location.uri.startswith(own.rstrip("/") + "/")

    def _remove_abandoned(self, location: Location) -> None:
        """Remove staging folders that a killed writer left. In a run's folder one at a time is at work."""
        own = self._is_own(location)
        target = location.path
        assert target is not None
        for leftover in target.parent.glob(f"{_STAGING}*" if own else f"{_STAGING}{target.name}-*"):
            with contextlib.suppress(OSError):
                if own or time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS:
                    log.info("removing %s, which an interrupted attempt left", leftover)
                    shutil.rmtree(leftover, ignore_errors=True)


def _s3() -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return fsspec.filesystem("s3", endpoint_url=endpoint, use_listings_cache=False, skip_instance_cache=True)


def _gs() -> Any:
    return fsspec.filesystem("gs", use_listings_cache=False, skip_instance_cache=True)


_FILESYSTEMS: dict[str, Callable[[], Any]] = {"s3": _s3, "gs": _gs}


@contextlib.contextmanager
def _reading(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise not_found(f"{uri} does not exist, or is not a file; correct the URI or put the file there") from error
    except PermissionError as error:
        raise not_found(
            f"{uri} may not be read: {error}; check permissions, or the credentials in the secret that the job names",
            reason="InputForbidden",
        ) from error
    except (StageError, UnicodeDecodeError, EOFError):
        raise
    except Exception as error:
        if not _is_remote(uri):
            raise
        raise _unavailable(uri, error) from error


@contextlib.contextmanager
def _writing(uri: str) -> Iterator[None]:
    try:
        yield
    except StageError:
        raise
    except Exception as error:
        failure = from_write_failure(uri, error)
        if failure is not None:
            raise failure from error
        if isinstance(error, FileNotFoundError) and _is_remote(uri):
            raise not_found(f"{uri}: the bucket does not exist; make it or correct artifacts.uri") from error
        if not _is_remote(uri):
            raise
        raise _unavailable(uri, error) from error


def _as_path(name: str, *, uri: str) -> str:
    """An object's name as a path below the folder. Raises StageError (65) for one that would lie elsewhere."""
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise bad_data(
            "BadFileName",
            f"{uri} holds an object that is named {name!r} below it: a path with an empty part, `.` or `..` is"
            " another file's; rename the object",
        )
    return name


def _is_remote(uri: str) -> bool:
    return uri.startswith(("s3://", "gs://"))


def _unavailable(uri: str, error: Exception) -> StageError:
    if type(error).__name__ in ("NoCredentialsError", "DefaultCredentialsError", "RefreshError"):
        return not_found(
            f"{uri}: no credentials; name a secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a service"
            " account with workload identity) in the job",
            reason="InputForbidden",
        )
    return StageError(
        reason="StorageUnavailable",
        message=f"{uri}: {type(error).__name__}: {error}",
        exit_code=ExitCode.INTERNAL_ERROR,
    )


def _make_readable(folder: Path) -> None:
    """Later stages and servers may run as other users; some libraries write files that only the owner can read."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o755 if path.is_dir() else 0o644))


def sync_tree(folder: Path) -> None:
    """A power cut must not leave a folder with its final name and half of its content."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Bring a file or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
