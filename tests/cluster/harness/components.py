"""The programs of a Kubernetes node and control plane: how each is started and how it says that it is ready.

Knows nothing of namespaces or processes.
"""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .certificates import Authority, Pair
from .images import PAUSE_TAG
from .network import Slot

DOMAIN = "cluster.local"
CONTAINERD = "/run/containerd/containerd.sock"


@dataclass(frozen=True)
class Component:
    """A program with its arguments, and the URL that answers 200 when it serves (containerd has none)."""

    name: str
    command: tuple[str, ...]
    ready: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


def answers(url: str) -> bool:
    """Return whether a health URL says 200; the certificate is not checked, nothing is sent."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    try:
        with opener.open(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def flags(**values: object) -> tuple[str, ...]:
    """Return `--key=value` for each; underscores become dashes."""
    return tuple(f"--{key.replace('_', '-')}={value}" for key, value in values.items())


class Components:
    """Writes the settings of one cluster and describes its components."""

    def __init__(self, slot: Slot, programs: Path, authority: Authority) -> None:
        self.slot = slot
        self.server = f"https://{slot.node_ip}:6443"
        self._programs = programs
        self._pki = authority
        self._settings = slot.work / "state" / "settings"
        self._settings.mkdir()

    def _write(self, name: str, content: str | dict[str, Any]) -> Path:
        path = self._settings / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
        return path

    def _program(self, name: str) -> str:
        """Return a link to the multi-call binary by which it becomes `name`."""
        link = self._settings / name
        link.symlink_to(self._programs / "kube")
        return str(link)

    def _kubeconfig(self, name: str, user: str, group: str = "") -> Path:
        return self._pki.kubeconfig(name, self.server, user, group)

    def control_plane(self) -> list[Component]:
        """Return etcd, API server, controllers and scheduler, in the order of their start."""
        accounts = self._pki.signing_key()
        return [self._etcd(), self._apiserver(accounts), self._controllers(accounts), self._scheduler()]

    def _etcd(self) -> Component:
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        args = flags(
            data_dir=self.slot.work / "state" / "etcd",
            listen_client_urls=client,
            advertise_client_urls=client,
            listen_peer_urls=peer,
            initial_advertise_peer_urls=peer,
            initial_cluster=f"default={peer}",
            log_level="warn",
            listen_metrics_urls=f"http://{self.slot.node_ip}:2381",
        )
        # A lost machine takes the test with it: nothing here must survive a power cut.
        command = (self._program("etcd"), "--unsafe-no-fsync", *args)
        return Component("etcd", command, f"http://{self.slot.node_ip}:2381/readyz")

    def _apiserver(self, accounts: Pair) -> Component:
        slot, pki = self.slot, self._pki
        names = ("kubernetes", "kubernetes.default", "kubernetes.default.svc")
        addresses = (slot.api_service_ip, slot.node_ip, "127.0.0.1")
        serving = pki.issue("apiserver", "kube-apiserver", hosts=(*names, *addresses))
        kubelet = pki.issue("apiserver-kubelet", "kube-apiserver-kubelet", "system:masters")
        args = flags(
            advertise_address=slot.node_ip,
            secure_port=6443,
            etcd_servers="http://127.0.0.1:2379",
            service_cluster_ip_range=slot.services,
            # Webhooks are reached by their Service's endpoints, so the control plane needs no kube-proxy.
            enable_aggregator_routing="true",
            authorization_mode="Node,RBAC",
            enable_admission_plugins="NodeRestriction",
            allow_privileged="true",
            client_ca_file=pki.certificate,
            tls_cert_file=serving.certificate,
            tls_private_key_file=serving.key,
            kubelet_certificate_authority=pki.certificate,
            kubelet_client_certificate=kubelet.certificate,
            kubelet_client_key=kubelet.key,
            # By name it would ask the outside's DNS for the node.
            kubelet_preferred_address_types="InternalIP",
            service_account_issuer=f"https://kubernetes.default.svc.{DOMAIN}",
            service_account_key_file=accounts.certificate,
            service_account_signing_key_file=accounts.key,
            profiling="false",
        )
        return Component(
            "apiserver",
            (self._program("kube-apiserver"), *args),
            f"{self.server}/readyz",
            {"GOMEMLIMIT": "500MiB"},
        )

    def _controllers(self, accounts: Pair) -> Component:
        args = flags(
            kubeconfig=self._kubeconfig("controller-manager", "system:kube-controller-manager"),
            service_account_private_key_file=accounts.key,
            root_ca_file=self._pki.certificate,
            cluster_signing_cert_file=self._pki.pair.certificate,
            cluster_signing_key_file=self._pki.pair.key,
            use_service_account_credentials="true",
            kube_api_qps="200",  # at the default of 20 a test of a hundred jobs waits for this limit alone
            kube_api_burst="400",
            leader_elect="false",
            bind_address=self.slot.node_ip,
        )
        command = (self._program("kube-controller-manager"), *args)
        return Component("controller-manager", command, f"https://{self.slot.node_ip}:10257/healthz")

    def _scheduler(self) -> Component:
        kubeconfig = self._kubeconfig("scheduler", "system:kube-scheduler")
        args = flags(kubeconfig=kubeconfig, leader_elect="false", bind_address=self.slot.node_ip)
        command = (self._program("kube-scheduler"), *args)
        return Component("scheduler", command, f"https://{self.slot.node_ip}:10259/healthz")

    def node(self) -> list[Component]:
        """Return containerd, kubelet, kube-proxy and DNS, in the order of their start."""
        return [self._containerd(), self._kubelet(), self._proxy(), self._dns()]

    def _containerd(self) -> Component:
        network = {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "pods0",
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipMasq": False,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": self.slot.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }
        (self._settings / "cni").mkdir()
        self._write("cni/10-pods.conflist", network)
        # restrict_oom_score_adj: without CAP_SYS_RESOURCE no process may lower its score, and
        # runc would fail every pod with "can't get final child's PID from pipe".
        settings = f"""version = 2
oom_score = 0
[grpc]
address = "{CONTAINERD}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_TAG}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{self._settings / "cni"}"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""
        path = self._write("containerd.toml", settings)
        return Component("containerd", ("/usr/bin/containerd", f"--config={path}"))

    def _kubelet(self) -> Component:
        serving = self._pki.issue("kubelet", "node1", hosts=("node1", self.slot.node_ip))
        settings = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.slot.cgroup}",
            "failSwapOn": False,
            "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self._pki.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(serving.certificate),
            "tlsPrivateKeyFile": str(serving.key),
            "clusterDNS": [self.slot.node_ip],
            "clusterDomain": DOMAIN,
            "resolvConf": "/etc/resolv.conf",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {
                "memory.available": "200Mi",
                "nodefs.available": "200Mi",
                "imagefs.available": "200Mi",
            },
            "serializeImagePulls": False,
            "registryPullQPS": 0,
            "healthzBindAddress": self.slot.node_ip,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        }
        args = flags(
            kubeconfig=self._kubeconfig("node1", "system:node:node1", "system:nodes"),
            config=self._write("kubelet.json", settings),
            hostname_override="node1",
            node_ip=self.slot.node_ip,
        )
        command = (self._program("kubelet"), *args)
        return Component("kubelet", command, f"http://{self.slot.node_ip}:10248/healthz")

    def _proxy(self) -> Component:
        zero = dict.fromkeys(("tcpEstablishedTimeout", "tcpCloseWaitTimeout"), "0s")
        settings = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clusterCIDR": self.slot.pods,
            "hostnameOverride": "node1",
            "healthzBindAddress": f"{self.slot.node_ip}:10256",
            "clientConnection": {"kubeconfig": str(self._kubeconfig("proxy", "system:kube-proxy"))},
            # These sysctls are the host's and read-only in here.
            "conntrack": {"maxPerCore": 0, "min": 0, **zero},
        }
        command = (self._program("kube-proxy"), *flags(config=self._write("proxy.json", settings)))
        return Component("proxy", command, f"http://{self.slot.node_ip}:10256/healthz")

    def _dns(self) -> Component:
        settings = f"""{DOMAIN} in-addr.arpa {{
    bind {self.slot.node_ip}
    ready {self.slot.node_ip}:8181
    errors
    cache 5
    kubernetes {DOMAIN} in-addr.arpa {{
        kubeconfig {self._kubeconfig("coredns", "system:coredns")} test
    }}
}}
"""
        command = (str(self._programs / "coredns"), "-conf", str(self._write("Corefile", settings)))
        return Component("coredns", command, f"http://{self.slot.node_ip}:8181/ready")


def dns_access() -> list[dict[str, Any]]:
    """Return what CoreDNS's user may read."""
    group = "rbac.authorization.k8s.io"
    name = {"name": "system:coredns"}
    watch = ["list", "watch"]
    return [
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRole",
            "metadata": name,
            "rules": [
                {"apiGroups": [""], "resources": ["services", "pods", "namespaces"], "verbs": watch},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": watch},
            ],
        },
        {
            "apiVersion": f"{group}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": name,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", **name},
            "subjects": [{"kind": "User", "apiGroup": group, **name}],
        },
    ]
