"""jwst's SkyMatchStep with its default parameters, but subtract=True; levels only.

python skymatch.py ASSOCIATION OUT.json [--fit level]
"""

import json
import os
from pathlib import Path

os.environ["STPIPE_DISABLE_CRDS_STEPPARS"] = "true"

from _files import run, subtracted


def skymatch(files: list[Path], folder: Path, fit: str):
    """Run the step on an association of the files and save its results."""
    if fit != "level":
        raise SystemExit("skymatch matches levels only")
    from jwst.datamodels import ModelLibrary
    from jwst.skymatch import SkyMatchStep

    association = folder / "in" / "asn.json"
    members = [{"expname": file.name, "exptype": "science"} for file in files]
    product = {"asn_id": "a3001", "asn_pool": "none", "products": [{"name": "mosaic", "members": members}]}
    association.write_text(json.dumps(product))
    result = SkyMatchStep.call(ModelLibrary(association), subtract=True)
    (folder / "out").mkdir()
    with result:
        for model in result:
            model.save(folder / "out" / model.meta.filename)
            result.shelve(model, modify=False)
    outputs = sorted((folder / "out").iterdir())
    return lambda: {file.name: subtracted(file, out) for file, out in zip(sorted(files), outputs, strict=True)}


if __name__ == "__main__":
    run(skymatch)
