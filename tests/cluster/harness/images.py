"""Images without a registry: a Debian base from its package archive, the rest from our own Dockerfiles.

Knows nothing of the cluster; `Cluster.import_image` loads what this makes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from . import build
from .host import (
    ROOT,
    HarnessError,
    cache_root,
    cached,
    locked,
    need_packages,
    need_root,
    need_space,
    run,
    say,
)
from .oci import Image, open_image, repack, unpacked_size, write_image

BASE_TAG = "localhost/nanochat/base:bookworm"
PAUSE_TAG = "localhost/nanochat/pause:1"
BASE_PACKAGES = ("ca-certificates", "procps", "python3", "python3-venv", "tini", "usr-is-merged")
# /usr is merged from the start, as in Debian's own images: `usrmerge`, which would do it later, brings Perl.
MERGED = "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"
UNWANTED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*")
HOST_CERTIFICATES = Path("/etc/ssl/certs")
BUNDLE = HOST_CERTIFICATES / "ca-certificates.crt"
MAX_LAYERS_BYTES = 14e9  # of buildah's storage, before it starts afresh: twice what our images take
# What a build may take over from the environment of whoever starts it.
PASSED_ON = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)


def pause_image() -> Image:
    """Return the image that holds a pod's namespaces: one static binary of ours."""

    def make(folder: Path) -> None:
        binary = build.binaries(build.PAUSE) / "pause"
        layer = folder / "layer.tar"
        with tarfile.open(layer, "w") as tar:
            info = tarfile.TarInfo("pause")
            info.size, info.mode = binary.stat().st_size, 0o755
            tar.addfile(info, io.BytesIO(binary.read_bytes()))
        write_image(
            folder / "image.oci", PAUSE_TAG, [layer], {"Entrypoint": ["/pause"], "User": "65535:65535"}
        )

    return open_image(cached("image-pause", build.key(build.PAUSE), make) / "image.oci")


def base_image() -> Image:
    """Return Debian 12 with Python, tini and CA certificates, as small as its packages allow."""
    key = hashlib.sha256(repr((BASE_TAG, BASE_PACKAGES, MERGED, UNWANTED)).encode()).hexdigest()[:12]

    def make(folder: Path) -> None:
        need_root()
        need_packages()
        started = time.monotonic()
        layer = folder / "layer.tar"
        options = [f"--dpkgopt=path-exclude={pattern}" for pattern in UNWANTED]
        names = ",".join(BASE_PACKAGES)
        clean = ["--customize-hook=rm -rf $1/var/cache/apt/* $1/var/lib/apt/lists/* $1/var/log/*"]
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            MERGED,
            f"--include={names}",
            *options,
            *clean,
        ]
        run([*command, "bookworm", layer], timeout=900)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        write_image(folder / "image.oci", BASE_TAG, [layer], {"Env": [f"PATH={path}", "LANG=C.UTF-8"]})
        say(f"made {BASE_TAG} in {time.monotonic() - started:.0f} s")

    return open_image(cached("image-base", key, make) / "image.oci")


def _files(inputs: Sequence[str], extra: Mapping[str, Path]) -> Iterator[tuple[str, Path]]:
    """Yield (path in the context, file), sorted: what git would commit of `inputs`, and all of `extra`."""
    found: dict[str, Path] = {}
    for wanted in inputs:
        listed = run(["git", "ls-files", "-coz", "--exclude-standard", "--", wanted], cwd=ROOT).stdout
        names = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
        if not names:
            raise HarnessError(f"image input `{wanted}` names no file of the repository")
        found.update((name, ROOT / name) for name in names)
    for name, source in extra.items():
        if source.is_file():
            found[name] = source
        elif source.is_dir():
            inside = (path for path in source.rglob("*") if path.is_file())
            found.update((f"{name}/{path.relative_to(source)}", path) for path in inside)
        else:
            raise HarnessError(f"image input `{name}`: `{source}` does not exist")
    yield from sorted(found.items())


def _index_arguments() -> dict[str, str]:
    """Return the build arguments by which a RUN finds and trusts this machine's package index."""
    given = {name: os.environ[name] for name in PASSED_ON if os.environ.get(name)}
    if "PIP_INDEX_URL" not in given:
        asked = run([sys.executable, "-m", "pip", "config", "get", "global.index-url"], check=False)
        if asked.returncode == 0:
            given["PIP_INDEX_URL"] = asked.stdout.strip()
    trust = dict.fromkeys(("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"), str(BUNDLE))
    return {**given, **trust}


def build_image(
    dockerfile: Path,
    tag: str,
    *,
    inputs: Sequence[str],
    base: Image,
    args: Mapping[str, str] | None = None,
    target: str | None = None,
    extra: Mapping[str, Path] | None = None,
) -> Image:
    """Build a Dockerfile with buildah, once per content of everything that goes in.

    The context holds exactly `inputs` (files and folders of the repository, what git would commit
    of them) and `extra` (path in the context -> file or folder anywhere). `base` is given as build
    argument `BASE`. The host's CA bundle is mounted during RUN and named by `PIP_CERT`,
    `SSL_CERT_FILE` and `REQUESTS_CA_BUNDLE`, which the Dockerfile declares with ARG where it needs
    them; it never becomes part of the image. Cache mounts of RUN survive between builds.

    Raises:
        HarnessError: an input is missing, or the build failed; the message ends with its last lines.
    """
    arguments = dict(args or {})
    files = list(_files(inputs, extra or {}))
    digest = hashlib.sha256(json.dumps([base.digest, tag, arguments, target], sort_keys=True).encode())
    digest.update(dockerfile.read_bytes())
    for name, path in files:
        executable = os.access(path, os.X_OK)
        digest.update(f"\0{name}\0{executable}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    name = tag.rsplit("/", 1)[-1].replace(":", "-")

    def make(folder: Path) -> None:
        need_root()
        need_packages()
        need_space(8)
        started = time.monotonic()
        say(f"building image {tag} from {dockerfile.name}")
        with tempfile.TemporaryDirectory(dir=folder, prefix="buildah-") as scratch:
            context = Path(scratch) / "context"
            for member, source in files:
                (context / member).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, context / member)
            with locked(cache_root() / "locks" / "buildah"):
                _buildah(
                    Path(scratch), context, dockerfile, tag, base, arguments, target, folder / "image.oci"
                )
        size = unpacked_size(open_image(folder / "image.oci"))
        say(f"built image {tag} in {time.monotonic() - started:.0f} s, {size / 1e6:.0f} MB unpacked")

    return open_image(cached(f"image-{name}", digest.hexdigest()[:12], make) / "image.oci")


def _buildah(
    scratch: Path,
    context: Path,
    dockerfile: Path,
    tag: str,
    base: Image,
    arguments: Mapping[str, str],
    target: str | None,
    archive: Path,
) -> None:
    """Run buildah on the cache's storage, in namespaces that take its mounts and processes with them.

    The storage keeps the layer of every instruction: a build after a change of code makes the last layers
    alone, and containerd unpacks these alone.
    """
    caches = cache_root() / "buildah"
    caches.mkdir(exist_ok=True)
    layers = caches / "layers"
    listed = layers / "overlay-layers" / "layers.json"
    if listed.is_file():
        kept = json.loads(listed.read_text(encoding="utf-8"))
        if sum(layer.get("diff-size", 0) for layer in kept) > MAX_LAYERS_BYTES:
            shutil.rmtree(layers)
    storage = ["--storage-driver=overlay", f"--root={layers}", f"--runroot={scratch / 'run'}"]
    alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    buildah = [*alone, "buildah", *storage]
    env = {"TMPDIR": str(caches), "BUILDAH_ISOLATION": "chroot"}
    run([*buildah, "rm", "--all"], env=env)  # containers of a build that was killed
    run([*buildah, "pull", "--quiet", f"oci-archive:{base.archive}"], env=env, timeout=300)
    given = {**_index_arguments(), **arguments, "BASE": base.tag}
    options = [f"--build-arg={name}={value}" for name, value in given.items()]
    if BUNDLE.is_file():
        options += ["--volume", f"{HOST_CERTIFICATES}:{HOST_CERTIFICATES}:ro"]
    if target is not None:
        options += ["--target", target]
    build_step = ["build", "--isolation=chroot", "--layers", "--pull-never", "--format=oci", "--tag", tag]
    run([*buildah, *build_step, *options, f"--file={dockerfile}", str(context)], env=env, timeout=1800)
    # To a plain folder: buildah compresses the layers of an OCI layout whatever it is told.
    pushed = scratch / "pushed"
    run(
        [*buildah, "push", "--quiet", "--disable-compression", "--format=oci", tag, f"dir:{pushed}"],
        env=env,
        timeout=600,
    )
    repack(pushed, archive, tag)
