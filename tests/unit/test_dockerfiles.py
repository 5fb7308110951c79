"""The Dockerfiles and what runs inside their builds, without building anything."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from images.tools import install, sbom, slim

ROOT = Path(__file__).parents[2]
IMAGES = ("train", "serve", "submit")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
SPECS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(name: str) -> list[tuple[str, str]]:
    """Return (keyword, rest) of each instruction, continuation lines joined."""
    text = (ROOT / f"images/{name}.Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word.upper(), rest) for word, _, rest in (line.partition(" ") for line in joined.split("\n")) if word
    ]


def rests(name: str, keyword: str) -> list[str]:
    return [rest for word, rest in instructions(name) if word == keyword]


every = pytest.mark.parametrize("name", [*IMAGES, "wheels"])
ours = pytest.mark.parametrize("name", IMAGES)


@every
def test_every_stage_starts_from_the_base_argument_or_an_earlier_stage(name):
    first = instructions(name)[0]
    assert first == ("ARG", "BASE=debian:bookworm-slim")
    known = {"${BASE}", "scratch"}
    for rest in rests(name, "FROM"):
        image, *alias = rest.split(" AS ")
        assert image in known
        known.update(alias)


@ours
def test_the_final_stage_runs_as_a_numeric_user_under_an_init(name):
    listed = instructions(name)
    final = listed[max(i for i, (word, _) in enumerate(listed) if word == "FROM") :]
    assert [rest for word, rest in final if word == "USER"] == ["0", "10001:10001"]
    assert ("ENTRYPOINT", '["tini", "--"]') in final
    users = next(rest for word, rest in final if word == "RUN" and "useradd" in rest)
    assert "groupadd --gid 10001 nanochat" in users
    assert "useradd --uid 10001 --gid 10001" in users


@every
def test_docker_and_an_old_buildah_read_the_same_file(name):
    """Nothing that one of them lacks; and no bind mount, because buildah 1.28 does not hash its content."""
    text = (ROOT / f"images/{name}.Dockerfile").read_text(encoding="utf-8")
    assert not text.startswith("# syntax")
    assert "<<" not in text
    assert rests(name, "ADD") == []
    assert "type=bind" not in text


@every
def test_no_build_argument_can_hold_a_secret_and_the_ca_bundle_is_mounted(name):
    names = [rest.partition("=")[0] for rest in rests(name, "ARG")]
    assert not [n for n in names if re.search(r"TOKEN|PASSWORD|SECRET|CERT|CA_", n)]
    for run in rests(name, "RUN"):
        if "install.py" in run or "maturin build" in run:
            assert "--mount=type=secret,id=ca " in run


@ours
def test_the_extras_are_those_of_pyproject(name):
    (deps,) = [run for run in rests(name, "RUN") if "install.py" in run]
    asked = re.findall(r"--extra (\S+)", deps)
    assert asked
    assert set(asked) <= set(SPECS["optional-dependencies"])


@ours
def test_only_what_the_lock_and_dist_hold_is_installed(name):
    for run in rests(name, "RUN"):
        for command in re.findall(r"pip install .*", run):
            assert "--no-index --no-deps" in command
    assert all("uv pip" not in run for run in rests(name, "RUN"))


@ours
def test_the_default_version_is_the_project_s(name):
    assert f"VERSION={SPECS['version']}" in rests(name, "ARG")


def test_the_three_images_share_their_first_layers():
    """Docker builds equal instructions once."""
    shared = [instructions(name)[:7] for name in IMAGES]
    assert shared[0] == shared[1] == shared[2]
    assert shared[0][6] == ("COPY", "pyproject.toml requirements.lock ./")


def admitted(path: str) -> bool:
    """Say whether .dockerignore lets a path into the context: the last pattern that matches decides."""
    verdict = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern, verdict_here = (line[1:], True) if line.startswith("!") else (line, False)
        parts = pattern.replace("**/", "*").replace("/**", "/*")
        if fnmatch.fnmatch(path, parts) or fnmatch.fnmatch(path, f"{parts}/*"):
            verdict = verdict_here
    return verdict


@every
def test_the_context_holds_what_is_copied(name):
    for rest in rests(name, "COPY"):
        if rest.startswith("--from="):
            continue
        for source in rest.split()[:-1]:
            if source == "dist/":
                assert admitted("dist/nanochat_platform-0.1.0-py3-none-any.whl")
                continue
            command = ["git", "ls-files", "--", source]
            listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            assert listed, f"{name}.Dockerfile copies {source}"
            assert all(admitted(path) for path in listed.splitlines())


@pytest.mark.parametrize(
    "path",
    [
        ".venv/bin/python",
        ".git/config",
        "rustbpe/target/release/x",
        "models/x.safetensors",
        "dist/x.tar.gz",
        ".env",
    ],
)
def test_the_context_holds_nothing_else(path):
    assert not admitted(path)


def test_every_block_of_the_lock_is_found_with_its_hashes():
    names = [name for name, _ in install.locked(LOCK)]
    assert len(names) == len(re.findall(r"^[a-z0-9][^ ]*==", LOCK, flags=re.MULTILINE))
    assert all("--hash=sha256:" in block for _, block in install.locked(LOCK))
    assert install.pin(LOCK, "uv").startswith("uv==")
    assert (
        install.pin("a==1 ; python_version < '3.12'\n  --hash=x\na==2\n  --hash=y\n", "a").count("a==") == 2
    )
    with pytest.raises(install.BuildError, match="has no 'nosuch'"):
        install.pin(LOCK, "nosuch")


def test_patterns_leave_out_every_distribution_with_the_prefix():
    found = install.left_out(LOCK, "cpu", ["nvidia-*", "pyarrow"])
    assert {"nanochat-rustbpe", "triton", "pyarrow", "nvidia-nccl-cu13"} <= set(found)
    assert "torch" not in found
    assert "triton" not in install.left_out(LOCK, "cuda", [])


@pytest.mark.parametrize(
    ("variant", "exclude", "message"),
    [("gpu", [], "VARIANT is `cpu` or `cuda`, not 'gpu'"), ("cpu", ["nvida-*"], "EXCLUDE names 'nvida-\\*'")],
)
def test_a_wrong_build_argument_is_named(variant, exclude, message):
    with pytest.raises(install.BuildError, match=message):
        install.left_out(LOCK, variant, exclude)


def test_another_index_gives_the_lock_s_version_of_torch_and_needs_its_hash():
    version = importlib.metadata.version("torch")
    assert install.torch_pin(LOCK, "sha256:" + "a" * 64) == f"torch=={version} --hash=sha256:{'a' * 64}"
    for wrong in ("", "abc", "A" * 64):
        with pytest.raises(install.BuildError, match="TORCH_SHA256"):
            install.torch_pin(LOCK, wrong)


def library(path: Path, *needed: str) -> Path:
    """Write a file whose string table names other libraries, as an ELF file's does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF\0" + b"".join(name.encode() + b"\0" for name in needed))
    return path


def test_a_library_that_another_asks_for_is_not_removed(tmp_path):
    gone = library(tmp_path / "pyarrow/libarrow_flight.so.26")
    library(tmp_path / "pyarrow/lib.so", "libarrow.so.26")
    assert list(slim.missed(tmp_path, [gone])) == []
    asking = library(tmp_path / "pyarrow/_x.so", "libarrow_flight.so.26")
    assert list(slim.missed(tmp_path, [gone])) == [(asking, "libarrow_flight.so.26")]


def test_slimming_keeps_code_and_test_helpers_that_are_imported(tmp_path):
    site = tmp_path / "lib/python3.11/site-packages"
    for kept in ("numpy/testing/a.py", "other/tests/a.py", "torch/lib/libtorch.so", "torch/include/a.h"):
        library(site / kept)
    for dead in ("numpy/ma/tests/a.py", "torch/share/a.cmake", "pyarrow/include/a.h", "nvidia/cu13/lib/a.a"):
        library(site / dead)
    gone = list(slim.victims(site, slim.DEAD))
    assert sorted(str(path.relative_to(site)) for path in gone) == [
        "numpy/ma/tests",
        "nvidia/cu13/lib/a.a",
        "pyarrow/include",
        "torch/share",
    ]


def test_the_bill_of_materials_is_the_same_for_the_same_installation(monkeypatch):
    monkeypatch.setattr(sbom, "debian_packages", lambda: ["python3\t3.11.2-1+b1\tamd64\tpython3-defaults"])
    when = datetime(2026, 1, 1, tzinfo=UTC)
    first, second = (sbom.document("nanochat-train", "0.1.0", when) for _ in range(2))
    assert first == second
    assert first["metadata"]["timestamp"] == "2026-01-01T00:00:00Z"
    refs = [part["bom-ref"] for part in first["components"]]
    assert len(refs) == len(set(refs))
    assert first["dependencies"][0]["dependsOn"] == refs
    found = {part["name"]: part["version"] for part in first["components"]}
    assert found["torch"] == importlib.metadata.version("torch")
    (debian,) = [part for part in first["components"] if part["purl"].startswith("pkg:deb/")]
    assert debian["purl"].startswith("pkg:deb/debian/python3@3.11.2-1%2Bb1?arch=amd64&distro=")
    assert debian["properties"] == [{"name": "debian:source", "value": "python3-defaults"}]


def test_distributions_inside_others_are_listed_once_with_their_place(tmp_path):
    for folder, name, version in (
        ("", "a", "1"),
        ("", "b", "2"),
        ("b/_vendor", "c", "3"),
        ("b/_vendor", "a", "1"),
    ):
        info = tmp_path / folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    listed = {part["name"]: part.get("evidence") for part in sbom.python_components(tmp_path)}
    assert listed == {"a": None, "b": None, "c": {"occurrences": [{"location": "b/_vendor"}]}}


@pytest.mark.parametrize(
    ("absent", "module"),
    [
        # what serve.Dockerfile leaves out
        (("pyarrow", "triton", "setuptools"), "nanochat.serve.main"),
        # what submit.Dockerfile does not install
        (("torch", "numpy", "kfp", "ray", "nanochat_rustbpe"), "nanochat_platform.cli.app"),
        (("torch", "numpy", "kfp", "ray", "nanochat_rustbpe"), "nanochat_platform.pipeline.step"),
        (("torch", "numpy", "kfp", "ray", "nanochat_rustbpe"), "nanochat_platform.kube.guard"),
    ],
)
def test_an_image_s_main_module_imports_without_what_the_image_lacks(absent, module):
    code = f"import sys; sys.modules.update(dict.fromkeys({absent!r})); import {module}"
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{ROOT / 'platform'}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
