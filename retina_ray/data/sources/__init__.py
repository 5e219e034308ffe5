"""One adapter per way a data set is published; each yields the same rows."""
