"""Maps that show what a network looks at."""
