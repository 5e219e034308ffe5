"""Tables, figures and the HTML report, computed from a run's prediction table."""
