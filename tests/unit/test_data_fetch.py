"""How long a download waits between attempts."""

from __future__ import annotations

import random

from nanochat.data.fetch import Policy


def test_waits_double_with_jitter_up_to_a_bound():
    policy = Policy(backoff_s=1.0, longest_backoff_s=10.0)
    pick = random.Random(3)
    for failures, full in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (50, 10.0)]:
        waits = [policy.delay(failures, pick) for _ in range(200)]
        assert all(full / 2 <= wait <= full for wait in waits)
        assert max(waits) - min(waits) > full / 3, "the waits of many clients spread"


def test_a_servers_wish_is_honoured_up_to_the_bound():
    policy = Policy(longest_backoff_s=10.0)
    assert policy.delay(1, random.Random(0), retry_after_s=4.0) == 4.0
    assert policy.delay(1, random.Random(0), retry_after_s=4000.0) == 10.0
