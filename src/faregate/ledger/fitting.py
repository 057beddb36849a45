"""The output cap that the balances can pay for (design, section 4). Pure: integers in, integers out."""

from collections.abc import Iterable, Sequence

from faregate.ledger.port import Balance, Claim, Refused


def need(claim: Claim, cap: int) -> int:
    """What `claim` asks of its counter when the answer may have `cap` output tokens."""
    return claim.fixed + cap * claim.per_output_token


def fits(claim: Claim, balance: Balance, cap: int) -> bool:
    """Whether `claim` with `cap` keeps its counter within the limit, if it has one."""
    return claim.limit is None or balance.used + balance.held + need(claim, cap) <= claim.limit


def refusal(claims: Iterable[tuple[Claim, Balance]], cap: int) -> Refused | None:
    """The refusal by the first enforced claim that even `cap` output tokens do not fit, if there is one."""
    for claim, balance in claims:
        if claim.limit is not None and claim.enforce and not fits(claim, balance, cap):
            return Refused(claim.counter, balance.used, balance.held, claim.limit, need(claim, cap))
    return None


def largest_cap(claims: Sequence[tuple[Claim, Balance]], wanted: int, least: int) -> int:
    """The cap to grant, when `least` is known to fit every enforced claim.

    A claim that `wanted` does not fit allows what half of what is left pays for, so that a second tab of the same
    person still fits, but not less than `least`. The smallest cap wins; a claim's need grows with the cap, so the
    smallest fits them all.
    """
    cap = wanted
    for claim, balance in claims:
        if claim.limit is None or not claim.enforce or fits(claim, balance, wanted):
            continue
        half = (claim.limit - balance.used - balance.held) // 2
        cap = min(cap, max(least, (half - claim.fixed) // claim.per_output_token))
    return cap
