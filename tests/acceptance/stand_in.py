"""An upstream that answers chats in whatever way a test writes down, on a thread of its own."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable

Writer = asyncio.StreamWriter
Chat = Callable[[dict, Writer, "StandIn"], Awaitable[None]]

MODELS = {
    "data": [
        {
            "id": name,
            "canonical_slug": name,
            "context_length": 128_000,
            "top_provider": {"max_completion_tokens": 16_384, "context_length": 128_000},
            "pricing": {"prompt": "0.000001", "completion": "0.000004"},
        }
        for name in ("acme/one", "acme/two")
    ]
}


def usage(cost: object = 0.001, prompt: object = 10, completion: object = 5) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 15, "cost": cost}


def chunk(text: str = "hi", **more: object) -> bytes:
    fields = {
        "id": "gen-1",
        "object": "chat.completion.chunk",
        "model": "acme/one",
        "provider": "Acme",
        "choices": [{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(fields | more).encode() + b"\n\n"


def head(status: str = "200 OK", kind: str = "text/event-stream", **more: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", *(f"{k.replace('_', '-')}: {v}" for k, v in more.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def whole(body: object, status: str = "200 OK", kind: str = "application/json", **more: str) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head(status, kind, Content_Length=str(len(data)), **more) + data


def completion(**more: object) -> dict:
    return {
        "id": "gen-1",
        "object": "chat.completion",
        "model": "acme/one",
        "provider": "Acme",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    } | more


class StandIn:
    """`chat(body, writer, self)` writes the answer to each chat; `generations` is what /generation knows."""

    def __init__(self, chat: Chat, models: dict = MODELS) -> None:
        self.chat = chat
        self.models = models
        self.generations: dict[str, dict] = {}
        self.chats: list[dict] = []
        self.heads: list[bytes] = []
        self.gone: list[float] = []
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(5)
        self.url = f"http://127.0.0.1:{self.port}/api/v1"

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**26)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        try:
            while True:
                text = await reader.readuntil(b"\r\n\r\n")
                lines = text.decode("latin-1").split("\r\n")
                path = lines[0].split(" ")[1]
                length = next((int(li.split(":")[1]) for li in lines if li.lower().startswith("content-length")), 0)
                body = await reader.readexactly(length)
                if path.endswith("/models"):
                    writer.write(whole(self.models))
                elif "/generation" in path:
                    known = self.generations.get(path.partition("=")[2])
                    writer.write(whole({"data": known}) if known else whole({"error": {}}, "404 Not Found"))
                else:
                    self.heads.append(text)
                    self.chats.append(json.loads(body))
                    self.reader = reader
                    await self.chat(self.chats[-1], writer, self)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
