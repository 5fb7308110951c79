"""API coordinates of everything this platform reads or writes. Pure; knows nothing of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanochat_platform.kube.names import KINDS, Kind

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Resource:
    """One collection of the API."""

    group: str
    version: str
    plural: str
    namespaced: bool = True

    @property
    def label(self) -> str:
        """`plural.group`, as `kubectl get` takes it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str | None, name: str | None = None, sub: str | None = None) -> str:
        """Return the path of the collection, of one object, or of a part of it."""
        parts = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if self.namespaced and namespace is not None:
            parts.append(f"namespaces/{namespace}")
        parts += [part for part in (self.plural, name, sub) if part is not None]
        return "/".join(parts)


PODS = Resource("", "v1", "pods")
EVENTS = Resource("", "v1", "events")
SERVICES = Resource("", "v1", "services")
CLAIMS = Resource("", "v1", "persistentvolumeclaims")
QUOTAS = Resource("", "v1", "resourcequotas")
CONFIG_MAPS = Resource("", "v1", "configmaps")
ACCOUNTS = Resource("", "v1", "serviceaccounts")
NAMESPACES = Resource("", "v1", "namespaces", namespaced=False)
NODES = Resource("", "v1", "nodes", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases")
STORAGE_CLASSES = Resource("storage.k8s.io", "v1", "storageclasses", namespaced=False)
PRIORITY_CLASSES = Resource("scheduling.k8s.io", "v1", "priorityclasses", namespaced=False)
DEPLOYMENTS = Resource("apps", "v1", "deployments")
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices")
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)
WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads")
ACCESS_REVIEWS = Resource("authorization.k8s.io", "v1", "selfsubjectaccessreviews", namespaced=False)

_PLURALS = {
    "Pod": PODS,
    "Service": SERVICES,
    "PersistentVolumeClaim": CLAIMS,
    "ConfigMap": CONFIG_MAPS,
    "Lease": LEASES,
}


def of_kind(kind: Kind) -> Resource:
    """Return the collection of a kind of job object."""
    return Resource(kind.group, kind.version, kind.plural)


def of_object(value: Mapping[str, Any]) -> Resource:
    """Return the collection that an object with `apiVersion` and `kind` belongs to.

    Raises:
        KeyError: it is of no kind that this platform writes.
    """
    known = {kind.kind: of_kind(kind) for kind in KINDS.values()}
    return {**_PLURALS, **known}[value["kind"]]


def meta(value: Mapping[str, Any], field: str, default: Any = None) -> Any:
    """Return one field of an object's metadata."""
    return (value.get("metadata") or {}).get(field) or default


def name_of(value: Mapping[str, Any]) -> str:
    """Return an object's name."""
    return str(meta(value, "name", ""))


def label_of(value: Mapping[str, Any], label: str) -> str:
    """Return a label's value, empty where there is none."""
    return str(meta(value, "labels", {}).get(label, ""))


def annotation_of(value: Mapping[str, Any], annotation: str) -> str:
    """Return an annotation's value, empty where there is none."""
    return str(meta(value, "annotations", {}).get(annotation, ""))
