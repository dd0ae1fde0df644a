"""What the shared modules assert says as much about a failure as what a test asserts."""

import pytest

pytest.register_assert_rewrite("chaos_sites")
