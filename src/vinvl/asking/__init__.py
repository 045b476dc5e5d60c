"""A page in the browser to ask pictures: `python -m vinvl.app`."""
