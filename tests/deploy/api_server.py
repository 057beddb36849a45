"""As much of a Kubernetes API server as one Secret needs."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Self

TOKEN = "token-of-the-tests"
PATH = "/api/v1/namespaces/tests/secrets/ai-secrets"


class ApiServer:
    """Serves `ai-secrets` in the namespace `tests` to who has the token; None is a Secret that is not there."""

    def __init__(self, folder: Path, secret: dict[str, str] | None, *, changing: bool = False) -> None:
        """`changing`: somebody else changes the Secret between each read and the write after it."""
        self.secret = {} if secret is None else dict(secret)
        self._there = secret is not None
        self._changing = changing
        self._version = 1
        self._account = folder / "account"
        self._account.mkdir(exist_ok=True)
        (self._account / "token").write_text(TOKEN)
        (self._account / "namespace").write_text("tests")
        self._server = HTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def run(self, script: Path) -> subprocess.CompletedProcess[str]:
        """Run a script as a pod with an account here would."""
        environment = {
            "PATH": os.environ["PATH"],
            "KUBERNETES_API": f"http://127.0.0.1:{self._server.server_port}",
            "KUBERNETES_ACCOUNT": str(self._account),
        }
        return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)

    def _patch(self, body: dict[str, dict[str, str]]) -> int:
        if body["metadata"]["resourceVersion"] != str(self._version):
            return 409
        self.secret |= {name: base64.b64decode(value).decode() for name, value in body["data"].items()}
        self._version += 1
        return 200

    def _handler(api) -> type[BaseHTTPRequestHandler]:  # noqa: N805
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200 if self._allowed() and api._there else 404)
                api._version += api._changing

            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                merging = self.headers["content-type"] == "application/merge-patch+json"
                self._answer(api._patch(body) if self._allowed() and merging else 403)

            def _allowed(self) -> bool:
                return self.path == PATH and self.headers["authorization"] == f"Bearer {TOKEN}"

            def _answer(self, status: int) -> None:
                data = {name: base64.b64encode(value.encode()).decode() for name, value in api.secret.items()}
                body = json.dumps({"metadata": {"resourceVersion": str(api._version)}, "data": data}).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
