"""The device is chosen by one function, from what a probe finds."""

import os
from dataclasses import dataclass

import pytest
import torch

from nanochat.device import TorchProbe, select_device, usable_cpus

LACKS = "no C++ compiler on PATH"


@dataclass
class FakeProbe:
    gpu: tuple[str, tuple[int, int]] | None = None
    metal: bool = False
    processor: tuple[str, bool] = ("EPYC", True)
    lacking: str | None = None

    def cuda(self):
        return self.gpu

    def mps(self):
        return self.metal

    def cpu(self):
        return self.processor

    def compiler(self):
        return self.lacking


@pytest.mark.parametrize(
    ("probe", "kind", "dtype", "peak", "compile_ok"),
    [
        (FakeProbe(("NVIDIA H100 80GB HBM3", (9, 0))), "cuda", torch.bfloat16, 989e12, True),
        (FakeProbe(("NVIDIA H100 PCIe", (9, 0))), "cuda", torch.bfloat16, 756e12, True),
        (FakeProbe(("NVIDIA A100-SXM4-80GB", (8, 0))), "cuda", torch.bfloat16, 312e12, True),
        (FakeProbe(("Tesla V100-SXM2-16GB", (7, 0))), "cuda", torch.float32, None, True),
        (FakeProbe(("Tesla T4", (7, 5))), "cuda", torch.float32, None, True),
        (FakeProbe(("NVIDIA A100-SXM4-80GB", (8, 0)), lacking=LACKS), "cuda", torch.bfloat16, 312e12, False),
        (FakeProbe(metal=True), "mps", torch.bfloat16, None, False),
        (FakeProbe(), "cpu", torch.bfloat16, None, True),
        (FakeProbe(processor=("Xeon E5", False)), "cpu", torch.float32, None, True),
        (FakeProbe(lacking=LACKS), "cpu", torch.bfloat16, None, False),
    ],
)
def test_the_device_follows_from_what_the_machine_has(probe, kind, dtype, peak, compile_ok):
    device = select_device(probe)
    assert (device.kind, device.torch.type) == (kind, kind)
    assert (device.dtype, device.peak_flops, device.compile_ok) == (dtype, peak, compile_ok)
    assert (device.why is None) == compile_ok


def test_a_gpu_wins_over_the_processor_and_cuda_over_metal():
    assert select_device(FakeProbe(("NVIDIA A100", (8, 0)), metal=True)).kind == "cuda"


def test_why_nothing_compiles_is_one_line_that_names_the_fix(monkeypatch, tmp_path):
    monkeypatch.setattr("nanochat.device.shutil.which", lambda name: None)
    reason = TorchProbe().compiler()
    assert "\n" not in reason
    assert "install g++" in reason or "clang++" in reason

    monkeypatch.setattr("nanochat.device.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("nanochat.device.sysconfig.get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in TorchProbe().compiler()
    (tmp_path / "Python.h").touch()
    assert TorchProbe().compiler() is None


def test_this_machine_has_a_device():
    device = select_device()
    assert device.name
    assert device.dtype in (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "nonsense\n"}, None),
    ],
)
def test_a_containers_cpu_limit_cuts_the_cores_that_it_sees(tmp_path, files, limit):
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    cores = len(os.sched_getaffinity(0))
    assert usable_cpus(tmp_path) == (cores if limit is None else min(cores, limit))
