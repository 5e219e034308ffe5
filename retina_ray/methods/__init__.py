"""What a paper is: networks, losses, what is frozen, stages."""
