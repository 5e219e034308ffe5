"""From the bytes of a photograph to grades; nothing here knows Ray."""
