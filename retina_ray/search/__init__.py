"""A hyper-parameter search without Ray: its space, its goals, its journal, and the Optuna study that they add up to."""
