import pytest

# The suite is shipped with the package: its assertions, too, shall say what they found.
pytest.register_assert_rewrite("eventstore.testing.target_contract")
