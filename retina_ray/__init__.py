"""retina_ray: distributed training, search and serving of retinal fundus models on Ray.

Importing the package does nothing; every part is imported from its own module.
"""
