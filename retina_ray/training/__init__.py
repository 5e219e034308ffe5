"""The training loop in plain torch; nothing here knows Ray."""
