"""Search spaces for ``retina-ray tune``: each module says what is varied, how far, and what is best.

A space is a function ``suggest(trial)`` that draws values from an Optuna trial and returns them by dotted path of the
configuration. Beside it may stand ``METRIC`` and ``MODE`` (what is optimised, and whether ``max`` or ``min``) and
``points(config)``, which returns the parameters to try first, by the names given to the trial. Ranges may depend on
the configuration that the search starts from: ``trial.study.user_attrs["config"]``.
"""
