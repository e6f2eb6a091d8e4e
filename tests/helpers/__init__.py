"""What tests of several rooms share; imported as `tests.helpers.NAME` everywhere."""
