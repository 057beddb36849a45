"""nginx in its two parts: upstream, with recorded answers, and beside Faregate, as a proxy that does nothing else."""

import socket
import time
from pathlib import Path

import answers
import machine

DEADLINE = 20.0
"""Seconds that a start or a stop may take."""

# A file is not there for a POST: nginx would answer 405, and then looks at the file as for a GET. The length is not
# known beforehand, as it never is at OpenRouter: `sub_filter` looks for what is in no answer.
UPSTREAM = """
    map $http_accept $answer {{ default /answer.json; "text/event-stream" /answer.sse; }}
    types {{ application/json json; text/event-stream sse; }}
    sub_filter_types application/json text/event-stream;
    sub_filter "\\x01\\x02\\x03" "";
    output_buffers 2 64k;
    open_file_cache max=10;
    server {{
        listen 127.0.0.1:{port} backlog=4096{ssl};
        {certificate}
        root {folder}/answers;
        location = /api/v1/models {{ try_files /models.json =404; }}
        location = /api/v1/chat/completions {{ error_page 405 =200 $answer; try_files $answer =404; }}
        location ~ ^/answer {{ internal; add_header X-Generation-Id {generation}; }}
        location /api/v1/ {{ return 404 '{{"error":{{"message":"Not found","code":404}}}}'; }}
    }}
"""

PROXY = """
    upstream to_{listen} {{ server 127.0.0.1:{port}; keepalive 4096; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{listen} backlog=4096;
        location /v1/ {{
            proxy_pass {scheme}://to_{listen}/api/v1/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_buffer_size 16k;
            proxy_buffers 8 16k;
            {certificate}
        }}
    }}
"""

CONFIGURATION = """
worker_processes 1;
worker_rlimit_nofile {files};
daemon off;
pid {folder}/pid;
error_log {folder}/error.log warn;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 300s;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {servers}
}}
"""


class Nginx:
    """A running nginx with one worker. It may open as many files as we may."""

    def __init__(self, folder: Path, servers: str) -> None:
        folder.mkdir()
        files = machine.open_files()
        text = CONFIGURATION.format(folder=folder, servers=servers, files=files, connections=files - 100)
        (folder / "nginx.conf").write_text(text)
        self._folder = folder
        # root's worker would be somebody else's, who may not enter our folder.
        who = ["-g", "user root;"] if machine.is_root() else []
        files_of_it = ("-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log")
        self._process = machine.start(machine.program("nginx"), *files_of_it, *who)

    @property
    def pids(self) -> list[int]:
        """Its worker's."""
        return machine.children(self._process.pid)

    def await_port(self, port: int) -> None:
        """Return once it serves there."""
        deadline = time.monotonic() + DEADLINE
        while True:
            with socket.socket() as probe:
                # It listens before it has its worker.
                if probe.connect_ex(("127.0.0.1", port)) == 0 and self.pids:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.end()
                raise machine.CannotMeasure(f"nginx does not start: {(self._folder / 'error.log').read_text()}")
            time.sleep(0.02)

    def end(self) -> None:
        """Stop it."""
        self._process.terminate()
        self._process.wait(DEADLINE)


class Certificates:
    """A certificate authority of our own, and what it signed for `localhost`."""

    def __init__(self, folder: Path) -> None:
        self.authority, self.certificate, self.key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
        ca_key, request, extensions = folder / "ca.key", folder / "server.csr", folder / "extensions"
        # What a key is for, and whose key signed: Python 3.13 and newer take no certificate that does not say so.
        extensions.write_text(
            "subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\nauthorityKeyIdentifier=keyid:always\n"
        )
        whose = ("-subj", "/CN=Measurement", "-addext", "keyUsage=critical,keyCertSign")
        _openssl("req", "-x509", *curve, *whose, "-keyout", ca_key, "-out", self.authority)
        _openssl("req", *curve, "-subj", "/CN=localhost", "-keyout", self.key, "-out", request)
        signed = ("-CA", self.authority, "-CAkey", ca_key, "-CAcreateserial", "-days", "2", "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, "-out", self.certificate, *signed)


def upstream(folder: Path, plain_port: int, tls_port: int, certificates: Certificates) -> Nginx:
    """nginx that answers as OpenRouter does, on one port in the clear and on the other over TLS."""
    served = folder.parent / f"{folder.name}-files" / "answers"
    served.mkdir(parents=True)
    (served / "answer.json").write_bytes(answers.json_answer())
    (served / "answer.sse").write_bytes(answers.stream_answer())
    (served / "models.json").write_bytes(answers.models())
    shared, _, server = UPSTREAM.partition("    server {{")
    tls = (
        f"ssl_certificate {certificates.certificate}; ssl_certificate_key {certificates.key}; ssl_protocols TLSv1.3; "
        "ssl_session_cache shared:tls:10m;"
    )
    servers = shared.format() + "".join(
        ("    server {{" + server).format(
            port=port, ssl=ssl, certificate=certificate, folder=served.parent, generation=answers.GENERATION
        )
        for port, ssl, certificate in ((plain_port, "", ""), (tls_port, " ssl", tls))
    )
    nginx = Nginx(folder, servers)
    nginx.await_port(tls_port)
    return nginx


def proxy(folder: Path, listen: int, port: int, certificates: Certificates | None) -> Nginx:
    """nginx that listens on one port and passes on to another; with `certificates`, over TLS."""
    verified = ""
    if certificates is not None:
        verified = (
            f"proxy_ssl_trusted_certificate {certificates.authority}; proxy_ssl_verify on; proxy_ssl_name localhost; "
            "proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse on;"
        )
    scheme = "http" if certificates is None else "https"
    nginx = Nginx(folder, PROXY.format(listen=listen, port=port, scheme=scheme, certificate=verified))
    nginx.await_port(listen)
    return nginx


def _openssl(*arguments: object) -> None:
    machine.run(machine.program("openssl"), *arguments)
