"""Which providers stop the bill when their client leaves."""

import pytest

from faregate.gateway.cancellation import stops_billing


@pytest.mark.parametrize("provider", ["OpenAI", "Anthropic", "xAI", "DeepSeek", "Together"])
def test_some_providers_stop(provider: str) -> None:
    assert stops_billing(provider)


@pytest.mark.parametrize(
    "provider", ["Groq", "Google", "Google AI Studio", "Mistral", "Amazon Bedrock", "New One", None]
)
def test_all_others_are_taken_to_run_on(provider: str | None) -> None:
    assert not stops_billing(provider)
