"""What a request is likely to cost: the hold of `soft` enforcement."""

from faregate.pricing.body import PromptBound
from faregate.pricing.bound import FEMTO_PER_NANO, Bound, NoPrice
from faregate.pricing.catalogue import Model

EXPECTED_OUTPUT_TOKENS = 1_000
"""An answer in a chat is seldom longer."""

BYTES_PER_TOKEN = 3
"""Text in European languages and code has three to five bytes in a token."""


def estimate_of(model: Model, prompt: PromptBound, *, expected_output: int = EXPECTED_OUTPUT_TOKENS) -> Bound:
    """A likely cost in the shape of a bound, the same for every output cap.

    Raises `NoPrice` for a router.
    """
    if not model.priced:
        raise NoPrice(f"The price of {model.id} depends on the model that it picks.")
    tokens = -(-prompt.prompt_tokens // BYTES_PER_TOKEN)
    if model.context_length is not None:
        tokens = min(tokens, model.context_length)
    rates = model.rates_for(tokens)
    femto = (
        max(rate.request for rate in rates)
        + tokens * max(rate.prompt for rate in rates)
        + expected_output * max(rate.completion for rate in rates)
        + prompt.images * max(rate.image for rate in rates)
    )
    return Bound(
        prompt_tokens=tokens,
        fixed_nano=-(-femto // FEMTO_PER_NANO),
        nano_per_output_token=0,
        output_limit=model.max_completion_tokens,
    )
