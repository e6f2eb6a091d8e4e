"""A package, so that tests import `tools.make_model_zoo`: other projects have installed packages of this name."""
