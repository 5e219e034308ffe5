"""Runs on Ray; the only package of retina_ray that imports it."""
