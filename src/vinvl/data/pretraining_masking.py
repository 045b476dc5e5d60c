"""Which tokens are hidden in pre-training, and by what, as in BERT and published Oscar; vectorised over the batch."""

import numpy as np

MASK_PROBABILITY = 0.15
MASK_BELOW, RANDOM_BELOW = 0.8, 0.9  # of the hidden tokens 80 % become [MASK], 10 % a random one, 10 % stay


def mask_tokens(
    input_ids: np.ndarray,
    maskable: np.ndarray,
    shares: np.ndarray,
    random_ids: np.ndarray,
    mask_token_id: int,
    mask_probability: float = MASK_PROBABILITY,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens, each on its own.

    One number decides both whether a token is hidden and by what, as in the published code.

    Args:
        input_ids: (B, L) int64.
        maskable: (B, L) bool: tokens that may be hidden, which special tokens may not.
        shares: (B, L) float64 from [0, 1).
        random_ids: (B, L) int64: what a token becomes that is replaced by a random one.
        mask_token_id: what most hidden tokens become.
        mask_probability: share of the tokens that are hidden.

    Returns:
        the ids that the model sees, (B, L) int64, and which of them it is to guess, (B, L) bool.
    """
    masked = maskable & (shares < mask_probability)
    within = shares / mask_probability
    replaced = np.where(within < MASK_BELOW, mask_token_id, np.where(within < RANDOM_BELOW, random_ids, input_ids))
    return np.where(masked, replaced, input_ids), masked
