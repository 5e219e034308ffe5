"""The papers' tables and figures as grids of runs: what is trained, what is measured, how it is written down."""
