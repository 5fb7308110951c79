"""A small API server on loopback, for the client's own logic where no cluster may be started.

Keeps objects by path, numbers their versions, answers lists, watches, merges and applies, and plays the
controller of plain Jobs. What a real API server and real controllers do is proven in `tests/cluster`.
"""

from __future__ import annotations

import copy
import http.server
import json
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
Play = Callable[[Object], Object | None]


def merged(value: Any, change: Any) -> Any:
    """Return `value` with a JSON merge patch applied."""
    if not isinstance(change, dict):
        return change
    found = dict(value) if isinstance(value, dict) else {}
    for key, part in change.items():
        if part is None:
            found.pop(key, None)
        else:
            found[key] = merged(found.get(key), part)
    return found


class LoopbackApi:
    """Objects by path; `play` gives each pod its status, as a node would."""

    def __init__(self, play: Play = lambda pod: None) -> None:
        self.play = play
        self.objects: dict[str, Object] = {}
        self.requests: list[tuple[str, str]] = []
        self.logs: dict[str, list[str]] = {}
        """Stamped lines by pod."""
        self._events: list[tuple[int, str, str, Object]] = []
        self._version = 0
        self._changed = threading.Condition()
        self._done = False
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # a head and a body are two writes: 40 ms otherwise

            def log_message(self, *args: object) -> None:
                pass

            def _answer(self) -> None:
                api.answer(self)

            do_GET = do_POST = do_PATCH = do_DELETE = _answer

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that left

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> LoopbackApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._done = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def of(self, plural: str) -> dict[str, Object]:
        """Return the objects of a collection by name."""
        return {
            path.rsplit("/", 1)[1]: value
            for path, value in sorted(self.objects.items())
            if path.rsplit("/", 2)[1] == plural
        }

    def put(self, path: str, value: Object, kind: str | None = None) -> Object:
        """Store an object, and let the controllers look at it."""
        with self._changed:
            self._version += 1
            old = self.objects.get(path)
            meta = value.setdefault("metadata", {})
            meta["resourceVersion"] = str(self._version)
            meta.setdefault("uid", f"uid-{self._version}")
            meta.setdefault("namespace", "chat")
            meta.setdefault("creationTimestamp", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
            self.objects[path] = value
            self._tell(kind or ("MODIFIED" if old else "ADDED"), path, value)
            self._control(path, value)
        return value

    def remove(self, path: str) -> Object | None:
        """Delete an object and what it owns."""
        with self._changed:
            found = self.objects.pop(path, None)
            if found is None:
                return None
            self._version += 1
            self._tell("DELETED", path, found)
            uid = found["metadata"]["uid"]
            for other, value in list(self.objects.items()):
                owners = value["metadata"].get("ownerReferences") or []
                if any(owner.get("uid") == uid for owner in owners):
                    self.remove(other)
        return found

    def _tell(self, kind: str, path: str, value: Object) -> None:
        self._events.append((self._version, kind, path, copy.deepcopy(value)))
        self._changed.notify_all()

    def _control(self, path: str, value: Object) -> None:
        """Play the Job controller: one pod a job, whose end is the job's."""
        collection, name = path.rsplit("/", 1)
        if collection.endswith("/jobs") and not value.get("status"):
            labels = value["spec"]["template"]["metadata"]["labels"]
            marks = {"batch.kubernetes.io/job-name": name, "batch.kubernetes.io/job-completion-index": "0"}
            meta = {"name": f"{name}-0-abcde", "labels": {**labels, **marks}}
            meta["ownerReferences"] = [{"kind": "Job", "name": name, "uid": value["metadata"]["uid"]}]
            pod = {
                "metadata": meta,
                "spec": value["spec"]["template"]["spec"],
                "status": {"phase": "Pending"},
            }
            value["status"] = {"active": 1}
            self.put(f"/api/v1/namespaces/chat/pods/{name}-0-abcde", pod)
        if collection.endswith("/pods") and value["status"].get("phase") == "Pending":
            status = self.play(value)
            if status is not None:
                self.put(path, {**value, "status": status})
                self._end(value["metadata"]["labels"]["batch.kubernetes.io/job-name"], status)

    def _end(self, job: str, status: Object) -> None:
        kind = {"Succeeded": "Complete", "Failed": "Failed"}.get(status["phase"])
        path = f"/apis/batch/v1/namespaces/chat/jobs/{job}"
        if kind is not None and path in self.objects:
            held = {"type": kind, "status": "True", "reason": "x", "message": "y"}
            self.put(path, {**self.objects[path], "status": {"conditions": [held]}})

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        url = urlsplit(request.path)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self._changed:
            self.requests.append((request.command, url.path))
        if query.get("watch"):
            self._watch(request, url.path, query)
            return
        if url.path.endswith("/log"):
            self._log(request, url.path.removesuffix("/log"), query)
            return
        status, value = self._act(request.command, url.path, query, json.loads(body) if body else None)
        data = json.dumps(value).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _act(self, method: str, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        with self._changed:
            if "kubeflow.org" in path:
                return 404, {}
            if method == "POST":
                return self._create(f"{path}/{body['metadata']['name']}", query, body)
            known = self.objects.get(path)
            if method == "PATCH" and query.get("fieldValidation"):
                return self._apply(path, query["fieldManager"], body)
            if (
                "namespaces" not in path and method == "GET" and known is None and path.count("/") <= 4
            ):  # of all
                plural = path.rsplit("/", 1)[1]
                found = [item(v) for p, v in self.objects.items() if p.rsplit("/", 2)[1] == plural]
                return 200, {"items": found, "metadata": {"resourceVersion": str(self._version)}}
            if path.rsplit("/", 3)[1] == "namespaces":  # a collection
                items = [item(v) for p, v in self.objects.items() if selected(p, v, path, query)]
                if method == "DELETE":
                    for gone in items:
                        self.remove(f"{path}/{gone['metadata']['name']}")
                return 200, {"items": items, "metadata": {"resourceVersion": str(self._version)}}
            if known is None:
                return 404, {"reason": "NotFound", "message": "not found", "details": {"kind": "x"}}
            if method == "DELETE":
                return 200, self.remove(path)
            if method == "PATCH":
                return 200, self.put(path, merged(known, body))
            return 200, known

    def _create(self, path: str, query: dict[str, str], body: Object) -> tuple[int, Any]:
        if path in self.objects:
            return 409, {"reason": "AlreadyExists", "message": "exists"}
        return (201, body) if query.get("dryRun") else (201, self.put(path, body))

    def _apply(self, path: str, manager: str, body: Object) -> tuple[int, Any]:
        known = self.objects.get(path)
        if known is not None and known["metadata"].get("manager") not in (None, manager):
            return 409, {
                "reason": "Conflict",
                "message": "conflict",
                "details": {"causes": [{"field": ".spec"}]},
            }
        value = merged(known or {}, body)
        value["metadata"]["manager"] = manager
        return 200, self.put(path, value)

    def _log(self, request: http.server.BaseHTTPRequestHandler, pod: str, query: dict[str, str]) -> None:
        lines = self.logs.get(pod.rsplit("/", 1)[1], [])
        if query.get("tailLines"):
            lines = lines[-int(query["tailLines"]) :]
        lines = [line for line in lines if line[:19] >= query.get("sinceTime", "")[:19]]
        data = "".join(f"{line}\n" for line in lines).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def _watch(self, request: http.server.BaseHTTPRequestHandler, path: str, query: dict[str, str]) -> None:
        request.send_response(200)
        request.end_headers()
        request.close_connection = True
        ends = time.monotonic() + min(1.0, float(query["timeoutSeconds"]))
        since = int(query["resourceVersion"])
        while not self._done:
            with self._changed:
                news = [e for e in self._events if e[0] > since and selected(e[2], e[3], path, query)]
                since = max(since, self._version)
                if not news and not self._changed.wait(max(0.0, ends - time.monotonic())):
                    return
            for _, kind, _, value in news:
                request.wfile.write(json.dumps({"type": kind, "object": value}).encode() + b"\n")
                request.wfile.flush()
            if time.monotonic() > ends:
                return


def item(value: Object) -> Object:
    """Return an object as a list shows it."""
    return {key: part for key, part in value.items() if key not in ("apiVersion", "kind")}


def selected(path: str, value: Object, collection: str, query: dict[str, str]) -> bool:
    """Return whether an object is in a collection and picked by its selectors."""
    if path.rsplit("/", 1)[0] != collection:
        return False
    labels = value["metadata"].get("labels") or {}
    wanted = [part.partition("=") for part in query.get("labelSelector", "").split(",") if part]
    named = query.get("fieldSelector", "")
    if named.startswith("metadata.name=") and named.partition("=")[2] != value["metadata"]["name"]:
        return False
    return all(labels.get(key) == text for key, _, text in wanted)
