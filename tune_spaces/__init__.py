"""Search spaces: define-by-run functions that map a trial to dotted configuration paths."""
