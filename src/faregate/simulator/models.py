"""The models on sale. Names and prices look like the real ones, and are nobody's price list."""

from dataclasses import replace
from decimal import Decimal

from faregate.simulator.catalogue import Model, Override, Prices

_K = 1_000
_M = 1_000_000


def _dollars(per_million: str | None) -> Decimal | None:
    """Dollars per token from dollars per million tokens.

    At most four decimals per million, so that with a discount of two decimals a cost still has twelve.
    """
    return None if per_million is None else Decimal(per_million).scaleb(-6)


def _prices(
    prompt: str,
    completion: str,
    *,
    read: str | None = None,
    write: str | None = None,
    reasoning: str | None = None,
    request: str = "0",
    discount: str = "0",
) -> Prices:
    return Prices(
        prompt=Decimal(prompt).scaleb(-6),
        completion=Decimal(completion).scaleb(-6),
        request=Decimal(request),
        cache_read=_dollars(read),
        cache_write=_dollars(write),
        reasoning=_dollars(reasoning),
        discount=Decimal(discount),
    )


def _above(tokens: int, prompt: str, completion: str, *, read: str | None = None, write: str | None = None) -> Override:
    return Override(tokens, _dollars(prompt), _dollars(completion), _dollars(read), _dollars(write))


_FREE = _prices("0", "0")
_OWN = _prices("1", "4")


def _simulated(name: str, about: str, behaviour: str = "", *, prices: Prices = _OWN, provider: str = "OpenAI") -> Model:
    return Model(
        f"simulator/{name}",
        f"Simulator: {name}",
        provider,
        "20260101",
        128 * _K,
        16_384,
        prices,
        behaviour=behaviour,
        about=about,
    )


_VENDORS = (
    Model("liquid/lfm-2.5-2.6b:free", "Liquid: LFM 2.5 (free)", "Liquid", "20260801", 32 * _K, 8 * _K, _FREE),
    Model(
        "google/gemma-4-31b-it:free",
        "Google: Gemma 4 31B (free)",
        "Google AI Studio",
        "20260402",
        128 * _K,
        8 * _K,
        _FREE,
    ),
    Model(
        "deepseek/deepseek-r1-lite:free",
        "DeepSeek: R1 Lite (free)",
        "Chutes",
        "20260115",
        64 * _K,
        16 * _K,
        _FREE,
        thinks=24,
    ),
    Model(
        "openai/gpt-4.1-nano",
        "OpenAI: GPT-4.1 Nano",
        "OpenAI",
        "20250414",
        1_047_576,
        32_768,
        _prices("0.1", "0.4", read="0.025", discount="0.01"),
        images=True,
    ),
    Model(
        "openai/gpt-4o-mini",
        "OpenAI: GPT-4o-mini",
        "OpenAI",
        "20240718",
        128 * _K,
        16_384,
        _prices("0.15", "0.6", read="0.075"),
        images=True,
    ),
    Model(
        "openai/gpt-5.2",
        "OpenAI: GPT-5.2",
        "Azure",
        "20251211",
        400 * _K,
        128 * _K,
        _prices("1.75", "14", read="0.175"),
        thinks=48,
        images=True,
    ),
    Model(
        "openai/gpt-6.1-sol",
        "OpenAI: GPT-6.1 Sol",
        "OpenAI",
        "20260929",
        1_050_000,
        128 * _K,
        _prices("2", "10", read="0.1", write="2.5"),
        overrides=(_above(272 * _K, "4", "15", read="0.2", write="5"),),
        thinks=48,
        must_think=True,
        images=True,
    ),
    Model(
        "openai/o3-pro",
        "OpenAI: o3 Pro",
        "OpenAI",
        "20250610",
        200 * _K,
        100 * _K,
        _prices("20", "80"),
        thinks=96,
        must_think=True,
    ),
    Model(
        "openai/gpt-oss-20b",
        "OpenAI: gpt-oss-20b",
        "Groq",
        "20250805",
        131_072,
        None,
        _prices("0.03", "0.14"),
        thinks=24,
    ),
    Model(
        "anthropic/claude-haiku-4.5",
        "Anthropic: Claude Haiku 4.5",
        "Anthropic",
        "20251001",
        200 * _K,
        64 * _K,
        _prices("1", "5", read="0.1", write="1.25"),
        images=True,
    ),
    Model(
        "anthropic/claude-sonnet-4.5",
        "Anthropic: Claude Sonnet 4.5",
        "Amazon Bedrock",
        "20250929",
        _M,
        64 * _K,
        _prices("3", "15", read="0.3", write="3.75"),
        overrides=(_above(200 * _K, "6", "22.5", read="0.6", write="7.5"),),
        images=True,
    ),
    Model(
        "anthropic/claude-opus-4.1",
        "Anthropic: Claude Opus 4.1",
        "Anthropic",
        "20250805",
        200 * _K,
        32 * _K,
        _prices("15", "75", read="1.5", write="18.75"),
        images=True,
    ),
    Model(
        "google/gemini-2.5-flash-lite",
        "Google: Gemini 2.5 Flash Lite",
        "Google",
        "20250722",
        1_048_576,
        65_535,
        _prices("0.1", "0.4", read="0.01", write="0.0833"),
        images=True,
    ),
    Model(
        "google/gemini-3.1-pro-preview",
        "Google: Gemini 3.1 Pro Preview",
        "Google AI Studio",
        "20260219",
        1_048_576,
        65_536,
        _prices("2", "12", read="0.2", write="0.375", reasoning="12"),
        overrides=(_above(200 * _K, "4", "18", read="0.4", write="0.375"),),
        thinks=48,
        must_think=True,
        images=True,
    ),
    Model(
        "x-ai/grok-4-fast",
        "xAI: Grok 4 Fast",
        "xAI",
        "20250919",
        2 * _M,
        30 * _K,
        _prices("0.2", "0.5", read="0.05"),
        overrides=(_above(128 * _K, "0.4", "1"),),
        thinks=24,
    ),
    Model(
        "deepseek/deepseek-chat-v3.1",
        "DeepSeek: DeepSeek V3.1",
        "DeepSeek",
        "20250821",
        163_840,
        None,
        _prices("0.27", "1.1", read="0.07"),
    ),
    Model(
        "meta-llama/llama-3.3-70b-instruct",
        "Meta: Llama 3.3 70B",
        "Groq",
        "20241206",
        131_072,
        32_768,
        _prices("0.59", "0.79"),
    ),
    Model(
        "mistralai/mistral-small-3.2-24b",
        "Mistral: Mistral Small 3.2",
        "Mistral",
        "20250620",
        131_072,
        None,
        _prices("0.075", "0.2"),
    ),
    Model(
        "qwen/qwen3-235b-a22b",
        "Qwen: Qwen3 235B A22B",
        "Alibaba",
        "20250428",
        131_072,
        8_192,
        _prices("0.13", "0.6"),
        thinks=24,
    ),
    Model(
        "cohere/command-r7b-12-2024",
        "Cohere: Command R7B",
        "Cohere",
        "20241202",
        128 * _K,
        4 * _K,
        _prices("0.0375", "0.15"),
        tools=False,
    ),
    Model(
        "amazon/nova-lite-v1",
        "Amazon: Nova Lite 1.0",
        "Amazon Bedrock",
        "20241205",
        300 * _K,
        5_120,
        _prices("0.06", "0.24"),
        images=True,
    ),
    Model(
        "microsoft/phi-4",
        "Microsoft: Phi 4",
        "DeepInfra",
        "20250110",
        16_384,
        1_024,
        _prices("0.06", "0.14"),
        tools=False,
    ),
    Model(
        "perplexity/sonar-pro",
        "Perplexity: Sonar Pro",
        "Perplexity",
        "20250307",
        200 * _K,
        8 * _K,
        _prices("3", "15", request="0.005"),
        tools=False,
    ),
    Model(
        "~openai/gpt-mini-latest",
        "OpenAI: GPT mini, latest",
        "OpenAI",
        "20240718",
        128 * _K,
        16_384,
        _prices("0.15", "0.6", read="0.075"),
        serves="openai/gpt-4o-mini",
        about="An alias: openai/gpt-4o-mini answers.",
    ),
    Model(
        "openrouter/auto",
        "Auto Router",
        "OpenAI",
        "20231108",
        2 * _M,
        None,
        Prices(Decimal(-1), Decimal(-1)),
        serves="openai/gpt-4.1-nano",
        about="A router, price unknown (-1): openai/gpt-4.1-nano answers.",
    ),
)

_SIMULATED = (
    _simulated("plain", "Nothing special."),
    _simulated("costly", "Budgets are soon used up.", prices=_prices("1000", "4000")),
    _simulated("fee", "One cent per request on top of the tokens.", prices=_prices("1", "4", request="0.01")),
    replace(
        _simulated(
            "tiered",
            "Dearer above 1,000 prompt tokens, and again above 4,000.",
            prices=_prices("1", "4", read="0.25", write="1.25"),
        ),
        overrides=(_above(1_000, "2", "6"), _above(4_000, "3", "9", read="0.5", write="3.75")),
    ),
    replace(
        _simulated("short", "At most 64 tokens of output, a context of 4,096."),
        context=4_096,
        max_output=64,
    ),
    replace(
        _simulated(
            "thinker",
            "Reasons first; a reasoning token costs twice a completion token.",
            prices=_prices("1", "4", reasoning="8"),
        ),
        thinks=32,
    ),
    _simulated("slow", "20 events a second; leaving stops the bill.", "[[pace=0.05]]"),
    _simulated("slow-runs-on", "20 events a second; leaving does not stop the bill.", "[[pace=0.05]]", provider="Groq"),
    _simulated("silent", "Never answers.", "[[stall]]"),
    replace(_simulated("down", "Always 503; the next of `models` answers, if there is one."), down=True),
    _simulated("busy", "Always 429 from the provider, with Retry-After.", "[[error=429-upstream]]"),
    _simulated("breaks", "An error in the stream after 5 events.", "[[error-after=5]]"),
    _simulated("cuts", "The connection breaks after 5 events.", "[[cut=5]]"),
    _simulated("forgets-usage", "Ends well, but without usage.", "[[no-usage]]"),
)

MODELS = _VENDORS + _SIMULATED
