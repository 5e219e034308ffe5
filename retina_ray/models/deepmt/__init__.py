"""DeepMT-DR's networks: super-resolution, lesion segmentation, grading, and the chain of the three."""
