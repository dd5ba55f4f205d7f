"""The steps and pipelines that stpipe finds by name."""

__all__ = ["get_steps"]


def get_steps() -> list[tuple[str, str, bool]]:
    """
    List the steps and pipelines for the ``stpipe.steps`` entry point.

    Returns
    -------
    list of tuple
        Class name, alias, and whether it is a pipeline. The aliases differ from jwst's, which would make
        ``strun skymatch`` and ``strun calwebb_image3`` ambiguous.
    """
    return [
        ("bkgmatch.SkyMatchStep", "bkg_skymatch", False),
        ("bkgmatch.LevelMatchStep", "level_match", False),
        ("bkgmatch.MRSIMatchStep", "bkg_mrs_imatch", False),
        ("bkgmatch.ImageForImageStep", "image_for_image", False),
        ("bkgmatch.Image3Pipeline", "bkg_image3", True),
        ("bkgmatch.Spec3Pipeline", "bkg_spec3", True),
    ]
