"""The command line, and the only place that knows Hydra: it composes values and hands them to plain functions."""
