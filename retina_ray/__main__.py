"""``python -m retina_ray``: the ``retina-ray`` command, also where only the package's folder is on the path."""

from retina_ray.cli.main import main

main()
