"""Seeds of all that is random, derived from one."""

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2**63) that depends on every part, the same on every machine."""
    words = [len(parts)]  # a seed sequence takes no notice of trailing zeros
    for part in parts:
        if isinstance(part, int):
            words += [part & 0xFFFFFFFF, part >> 32]
        else:
            words += [len(part), *part.encode()]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
