"""Ray Serve applications that deploy a trained bundle."""
