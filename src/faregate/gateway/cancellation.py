"""Which providers stop, and stop billing, when their client leaves a stream (contract with OpenRouter, section 4)."""

_STOP = frozenset(
    name.casefold()
    for name in (
        "OpenAI",
        "Azure",
        "Anthropic",
        "Fireworks",
        "Mancer",
        "Recursal",
        "AnyScale",
        "Lepton",
        "OctoAI",
        "Novita",
        "DeepInfra",
        "Together",
        "Cohere",
        "Hyperbolic",
        "Infermatic",
        "Avian",
        "XAI",
        "Cloudflare",
        "SFCompute",
        "Nineteen",
        "Liquid",
        "Friendli",
        "Chutes",
        "DeepSeek",
    )
)


def stops_billing(provider: str | None) -> bool:
    """Whether closing the connection ends the bill. A provider that is not known to do so does not."""
    return provider is not None and provider.casefold() in _STOP
