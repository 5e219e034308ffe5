"""The papers' loss terms, one pure function per equation."""
