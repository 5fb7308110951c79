"""One real cluster for all of `tests/cluster`: built, started once, torn down.

With `NANOCHAT_TEST_KUBECONFIG` the same fixtures give the user's cluster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nanochat_platform.kube.client import Client

from tests.cluster.client_side import User
from tests.cluster.harness import host
from tests.cluster.harness.access import Access
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.figures import figure
from tests.cluster.harness.images import base_image
from tests.cluster.harness.users import UsersCluster
from tests.cluster.speedrun import speedrun, train_tag, training

__all__ = ["speedrun", "train_tag", "training"]

HERE = Path(__file__).parent
LIMIT_S = 300  # of a test alone: starting the cluster may have to build Kubernetes first


def pytest_configure(config: pytest.Config) -> None:
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        return

    def emit(text: str) -> None:
        with capture.global_and_fixture_disabled():
            print(f"\n{text}", end="", flush=True)

    host.emit = emit


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of the control plane first: they want pods to stay Pending, and the node comes on top later."""
    if not os.environ.get("KFP_ENDPOINT"):
        out = [item for item in items if "kfp_endpoint" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=out)
        items[:] = [item for item in items if item not in out]
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(LIMIT_S, func_only=True))
    items.sort(key=lambda item: HERE in item.path.parents and "cluster" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def began() -> Iterator[float]:
    """When the ladder began."""
    started = time.monotonic()
    yield started
    figure("rungs (b), (c), (d): in all", (time.monotonic() - started) / 60, "min")


@pytest.fixture(scope="session")
def control_plane(began: float) -> Iterator[Access]:
    """A cluster whose API, controllers and scheduler run; `cluster` adds the node."""
    if kubeconfig := os.environ.get("NANOCHAT_TEST_KUBECONFIG"):
        with UsersCluster(Path(kubeconfig), os.environ.get("NANOCHAT_TEST_STORAGE_CLASS")) as users:
            yield users
        return
    with Cluster() as cluster:
        cluster.start("control-plane")
        yield cluster


@pytest.fixture(scope="session")
def cluster(began: float, control_plane: Access) -> Access:
    """The same cluster with a node, and the base image on it."""
    figure("rung (b): control plane, in all", (time.monotonic() - began) / 60, "min")
    if isinstance(control_plane, Cluster):
        control_plane.start("node")
        control_plane.import_image(base_image())
    elif isinstance(control_plane, UsersCluster):
        control_plane.need_images()
    return control_plane


@pytest.fixture(scope="session")
def own(control_plane: Access) -> Cluster:
    """The cluster as its owner has it: components may be killed, memory measured, images imported."""
    if not isinstance(control_plane, Cluster):
        pytest.skip("needs the test cluster of this repository, not the one of NANOCHAT_TEST_KUBECONFIG")
    return control_plane


@pytest.fixture(scope="session")
def operators(request: pytest.FixtureRequest, control_plane: Access) -> None:
    """Those operators run that any test of this session asks for: they start side by side."""
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    names = {"training_operator": "training-operator", "kuberay": "kuberay", "trainer": "trainer"}
    if isinstance(control_plane, Cluster):
        control_plane.start_operator(*(names[name] for name in names if name in asked))


@pytest.fixture(scope="session")
def training_operator(control_plane: Access, operators: None) -> None:
    """The training operator reconciles PyTorchJobs, and its webhook judges them."""
    control_plane.start_operator("training-operator")


@pytest.fixture(scope="session")
def kuberay(control_plane: Access, operators: None) -> None:
    """The KubeRay operator reconciles RayServices."""
    control_plane.start_operator("kuberay")


@pytest.fixture(scope="session")
def trainer(control_plane: Access, operators: None) -> None:
    """Trainer v2 reconciles TrainJobs into JobSets, and JobSet's controller those into Jobs."""
    control_plane.start_operator("trainer")


@pytest.fixture
def kfp_endpoint() -> str:
    """`KFP_ENDPOINT`, the API of a real Kubeflow Pipelines; tests that use it are deselected without one."""
    return os.environ["KFP_ENDPOINT"]


@pytest.fixture
def namespace(control_plane: Access) -> Iterator[str]:
    """A namespace of this test alone, Pod Security `restricted`."""
    with control_plane.namespace() as name:
        yield name


@pytest.fixture
def user(control_plane: Access, namespace: str, tmp_path: Path) -> Iterator[User]:
    """A user in the namespace of this test, with a volume claim."""
    found = User(control_plane, namespace, tmp_path)
    found.claim()
    yield found
    found.close()


@pytest.fixture
def client(user: User) -> Iterator[Client]:
    """Our own client as that user."""
    found = Client.load(user.access.kubeconfig, namespace=user.namespace)
    yield found
    found.close()
