"""Whole requests in a file, for a load in a process of its own."""

import json
from pathlib import Path
from urllib.parse import urlsplit


def write(file: Path, headers: list[dict[str, str]], body: bytes) -> Path:
    """Keep in `file` what each of these people sends."""
    texts = [
        "".join(f"{name}: {value}\r\n" for name, value in of_one.items())
        + f"Content-Length: {len(body)}\r\n\r\n{body.decode()}"
        for of_one in headers
    ]
    file.write_text(json.dumps(texts))
    return file


def read(file: Path, url: str) -> list[bytes]:
    """What is sent to `url`."""
    head = f"POST {urlsplit(url).path} HTTP/1.1\r\nHost: localhost\r\n"
    return [(head + rest).encode() for rest in json.loads(file.read_text())]
