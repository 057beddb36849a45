"""Entries and answers of `/models` as OpenRouter shapes them."""

import json
from typing import Any

from faregate.pricing.catalogue import Catalogue, Model


def entry(model_id: str = "acme/one", **changes: Any) -> dict[str, Any]:
    return {
        "id": model_id,
        "canonical_slug": f"{model_id.partition(':')[0]}-20260929",
        "name": "Acme: One",
        "context_length": 200_000,
        "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
        "pricing": {"prompt": "0.000002", "completion": "0.00001"},
        "top_provider": {"context_length": 200_000, "max_completion_tokens": 64_000, "is_moderated": False},
        "per_request_limits": None,
    } | changes


def body(*entries: object) -> bytes:
    return json.dumps({"data": list(entries), "total_count": len(entries), "links": {"next": None}}).encode()


def catalogue(*entries: object) -> Catalogue:
    return Catalogue.parse(body(*entries))


def model(**pricing: Any) -> Model:
    """A model with these prices, in dollars; `context_length` 200,000 and answers of up to 64,000 tokens."""
    found = catalogue(entry(pricing={"prompt": "0", "completion": "0"} | pricing)).find("acme/one")
    assert found is not None
    return found
