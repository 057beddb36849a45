"""A certificate authority for tests, whose word nobody else takes: its keys never outlive the test."""

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


class Authority:
    """Signs certificates with the machine's `openssl`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("openssl, which makes the certificates, is not on this machine: TLS is not tested")
        self._folder = folder
        self.pem = folder / "authority.pem"
        # What a key is for, and below, whose key signed: Python 3.13 takes no certificate that does not say so.
        # fmt: off
        self._openssl(
            "req", "-x509", *KEY, "-keyout", "authority.key", "-out", "authority.pem", "-days", "2",
            "-subj", "/CN=authority of a test", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign",
        )
        # fmt: on

    def certificate(self, name: str, days: int = 2) -> tuple[Path, Path]:
        """Files of a certificate for `name`, good for `days` from now, and of its key."""
        kind = "IP" if name[0].isdigit() or ":" in name else "DNS"
        (self._folder / "extensions").write_text(f"subjectAltName={kind}:{name}\nauthorityKeyIdentifier=keyid:always\n")
        self._openssl("req", *KEY, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=server of a test")
        # fmt: off
        self._openssl(
            "x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-days", str(days),
            "-out", "server.pem", "-extfile", "extensions",
        )
        # fmt: on
        return self._folder / "server.pem", self._folder / "server.key"

    def server(self, name: str = "127.0.0.1", days: int = 2) -> ssl.SSLContext:
        """What a server called `name` needs."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certificate(name, days))
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def client(self) -> ssl.SSLContext:
        """What a client needs that believes this authority alone."""
        return ssl.create_default_context(cafile=str(self.pem))

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._folder, check=True, capture_output=True)
