"""The steps: the only modules that import the JWST pipeline."""
