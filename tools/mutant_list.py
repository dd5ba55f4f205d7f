"""Bugs that could hide: one small change each in the core, and the tests that should notice."""

from typing import NamedTuple

__all__ = ["MUTANTS", "Mutant"]


class Mutant(NamedTuple):
    """A bug: what replaces which text of a file of the package, what it is, and the files of fast tests."""

    file: str
    old: str
    new: str
    what: str
    tests: tuple[str, ...]


def _bugs(file: str, *bugs: tuple[str, str, str], tests: str) -> list[Mutant]:
    parts = (name.partition("::") for name in tests.split())
    where = tuple(f"tests/{'test_' if '/' not in name else ''}{name}.py{colons}{test}" for name, colons, test in parts)
    return [Mutant(file, old, new, what, where) for what, old, new in bugs]


MUTANTS = [
    *_bugs(
        "solve.py",
        (
            "the errors of both exposures of a pair have the same sign",
            "np.concatenate([offsets.weight, -offsets.weight])",
            "np.concatenate([offsets.weight, offsets.weight])",
        ),
        (
            "variances are not relative to the mean: half of the mixed term",
            "- 2 * with_mean",
            "- with_mean",
        ),
        (
            "solutions are not centred again: the zero point depends on which unknown is held",
            "return self._centred(self._solve(self._centred(rhs)))",
            "return self._solve(self._centred(rhs))",
        ),
        (
            "the solution with other weights forgets the prior",
            "+ self.prior * functions",
            "",
        ),
        (
            "the robust scale is too small by 0.6745^2",
            "np.arange(n)) / NORMAL_MEDIAN",
            "np.arange(n)) * NORMAL_MEDIAN",
        ),
        (
            "what counts as far off is measured in all mosaics together",
            "ndimage.median(pulls, component, np.arange(n)) /",
            "np.full(n, np.median(pulls)) /",
        ),
        (
            "residuals have the wrong sign of the second level",
            "(level[groups[offsets.first]] - level[groups[offsets.second]])",
            "(level[groups[offsets.first]] + level[groups[offsets.second]])",
        ),
        tests=(
            "solve::test_shared_pixels_against_a_dense_sandwich "
            "solve::test_variances_are_the_diagonal_of_the_covariance "
            "solve::test_coefficients_against_dense_least_squares "
            "solve::test_other_weights_by_the_same_factors "
            "solve::test_robust_weights_are_relative_to_the_scatter "
            "solve::test_robust_weights_of_a_mosaic_do_not_depend_on_others "
            "solve::test_solve_offsets_recovers_levels"
        ),
    ),
    *_bugs(
        "zero_point.py",
        (
            "global+match forgets the error of the zero point",
            "total_error = np.hypot(relative_error, base_error)",
            "total_error = relative_error",
        ),
        (
            "match_down turns 'highest' into 'lowest'",
            'is_low = policy == "lowest" or (policy != "highest" and options.match_down)',
            'is_low = policy == "lowest" or options.match_down',
        ),
        (
            "the zero point of a dedicated background has the wrong sign",
            "return float(np.median(known) - np.median(matched",
            "return float(np.median(known) + np.median(matched",
        ),
        (
            "the sky of a group is the highest of its members",
            "for i in np.argsort(-sky):",
            "for i in np.argsort(sky):",
        ),
        (
            "global+match takes the lowest sky before matching, not after",
            "_lowest_of_all(sets, lowest - relative, lowest_error)",
            "_lowest_of_all(sets, lowest, lowest_error)",
        ),
        tests=(
            "match::test_tables_of_stcal "
            "match::test_errors_of_global_match_hold_that_of_the_zero_point "
            "match::test_zero_points "
            "match::test_zero_point_of_a_background"
        ),
    ),
    *_bugs(
        "pairs.py",
        (
            "overlaps that share pixels are taken for independent",
            "covariance = shared * np.outer(spread / sizes, spread / sizes)",
            "covariance = np.diag(sizes) * np.outer(spread / sizes, spread / sizes)",
        ),
        (
            "the number of pixels of a pair is the larger of both",
            "pixels = np.minimum(npix[one], npix[two])",
            "pixels = np.maximum(npix[one], npix[two])",
        ),
        (
            "weights are one over the error, not over the variance",
            "return 1 / np.maximum(sigma, floor) ** 2",
            "return 1 / np.maximum(sigma, floor)",
        ),
        (
            "a few pixels that agree by chance keep their tiny error",
            "np.where(few, np.maximum(steadied, general), steadied)",
            "steadied",
        ),
        (
            "the mask of good pixels is dropped",
            "good = pixels.good & statistic.usable(data)",
            "good = statistic.usable(data)",
        ),
        tests=(
            "solve::test_pair_offsets_by_hand "
            "solve::test_a_few_pixels_that_agree_by_chance_are_no_better_than_others "
            "match::test_errors_of_global_match_hold_that_of_the_zero_point "
            "match::test_good_overlaps_see_the_same_sky "
            "match::test_errors_are_real"
        ),
    ),
    *_bugs(
        "histograms.py",
        (
            "the sum of squares in a bin has the unit of the sum",
            "to_sets[atoms] * unit**k",
            "to_sets[atoms] * unit",
        ),
        (
            "bad pixels count as pixels of the bin in the middle",
            "        atom &= kept\n",
            "",
        ),
        (
            "values below the centre lie on the wrong side of the edge of their bin",
            "inner + np.where(bins < 0, -mean, mean)",
            "inner + mean",
        ),
        (
            "the squares of a part of a bin: a half in place of a third",
            "n * (near**2 + near * far + far**2) / 3",
            "n * (near**2 + near * far + far**2) / 2",
        ),
        tests="skystats",
    ),
    *_bugs(
        "skystats.py",
        (
            "the limits of clipping are swapped",
            "window.mean - min(self.lsigma, _MOST_SIGMA)",
            "window.mean - min(self.usigma, _MOST_SIGMA)",
        ),
        (
            "the error of a clipped mean shrinks where it should grow",
            "return error / (1 - np.minimum(np.nan_to_num(shift), 0.8))",
            "return error / (1 + np.minimum(np.nan_to_num(shift), 0.8))",
        ),
        (
            "the share of noise is taken for that of its root",
            "found.error * np.sqrt(share)",
            "found.error * share",
        ),
        (
            "pixels at the upper limit are left out",
            "use &= values <= self.upper",
            "use &= values < self.upper",
        ),
        (
            "pixels that others miss count as if they were seen",
            "different = np.minimum(pairs.missing + _EDGES, 1)",
            "different = np.minimum(_EDGES, 1)",
        ),
        (
            "the median of an even number is the lower of two",
            '(sets.quantile(rank, side="left") + sets.quantile(rank, side="right")) / 2',
            'sets.quantile(rank, side="left")',
        ),
        tests=(
            "skystats::test_clipped_mean_and_median "
            "skystats::test_median_of_ties_is_exact "
            "skystats::test_pixels_equal_to_a_limit_are_kept "
            "skystats::test_the_error_of_a_mean_that_is_clipped_hard_is_its_scatter "
            "skystats::test_structure_that_nearby_pixels_share_counts_as_documented"
        ),
    ),
    *_bugs(
        "runs.py",
        (
            "a run that ends where a block begins is counted once too often",
            'side="right")\n        return Runs',
            'side="left")\n        return Runs',
        ),
        tests="skystats::test_unions_of_atoms_are_their_pixels",
    ),
    *_bugs(
        "noise.py",
        (
            "pairs of nearby pixels reach over the edges of overlaps",
            "use = good[one] & good[two] & (atom == other)",
            "use = good[one] & good[two]",
        ),
        (
            "the second pixel of a pair may be bad",
            "use = good[one] & good[two] & (atom == other)",
            "use = good[one] & (atom == other)",
        ),
        tests="skystats::test_pairs_of_nearby_pixels_are_good_and_of_one_atom",
    ),
    *_bugs(
        "overlaps.py",
        (
            "overlaps begin a pixel too far to the left",
            "(row * nx + np.ceil(edge_x - 1).astype(int) for edge_x in (enter, leave))",
            "(row * nx + np.floor(edge_x - 1).astype(int) for edge_x in (enter, leave))",
        ),
        (
            "the nearest pixel of a neighbour is the one to the lower left",
            "x, y = np.rint(neighbour.to_pixels",
            "x, y = np.floor(neighbour.to_pixels",
        ),
        (
            "more than 64 neighbours share bits",
            "bits[events, owner // 64]",
            "bits[events, owner // 128]",
        ),
        tests="overlaps",
    ),
    *_bugs(
        "footprints.py",
        (
            "neighbours are those whose centre lies within",
            "np.cos(np.minimum(radii[others] + radii[i], np.pi))",
            "np.cos(np.minimum(np.maximum(radii[others], radii[i]), np.pi))",
        ),
        (
            "good pixels in a corner: rows and columns swapped",
            "return _box(y, x, *inside.shape)",
            "return _box(x, y, *inside.shape)",
        ),
        (
            "areas are those of the tangent plane",
            "return points * cosine * np.sqrt(2 / (1 + cosine))",
            "return points",
        ),
        tests="footprints overlaps",
    ),
    *_bugs(
        "grids.py",
        (
            "the header of the grid is off by a cell",
            "wcs.wcs.crpix = 1 - np.asarray(low, dtype=float)",
            "wcs.wcs.crpix = -np.asarray(low, dtype=float)",
        ),
        tests="mosaics::test_resampling_as_scipy_does",
    ),
    *_bugs(
        "cells.py",
        (
            "variances of cells go with their side, not their area",
            "_variance_blocks(image, pixels, where, columns, rows) / side**2",
            "_variance_blocks(image, pixels, where, columns, rows) / side",
        ),
        (
            "interpolation: fractions of rows and columns swapped",
            "along, across = (x - column).astype(np.float32), (y - row).astype(np.float32)",
            "across, along = (x - column).astype(np.float32), (y - row).astype(np.float32)",
        ),
        (
            "planes in cells: slopes swapped",
            "along = (np.arange(shape[1]) + x) / unit * coefficients[1]\n"
            "    across = (np.arange(shape[0]) + y) / unit * coefficients[2] + coefficients[0]",
            "along = (np.arange(shape[1]) + x) / unit * coefficients[2]\n"
            "    across = (np.arange(shape[0]) + y) / unit * coefficients[1] + coefficients[0]",
        ),
        (
            "variances from differences of pixels are twice too large",
            "scatter /= 2 * 0.4549",
            "scatter /= 0.4549",
        ),
        (
            "cells that an edge cuts are kept",
            "count >= 0.9 * parts**2",
            "count >= 1",
        ),
        (
            "a given variance is used for bad pixels, too",
            "return np.where(known, pixels.variance, np.nan).astype(np.float32)",
            "return pixels.variance.astype(np.float32)",
        ),
        tests=(
            "cells::test_linear_sky_is_reproduced "
            "cells::test_given_variance_of_bad_pixels_does_not_count "
            "cells::test_functions_in_cells "
            "cells::test_variance_falls_back_to_the_scatter "
            "cells::test_variance_of_sums_over_many_cells"
        ),
    ),
    *_bugs(
        "pair_fits.py",
        (
            "the area of sampled cells counts once per step, not per square",
            "@ terms * step**2",
            "@ terms * step",
        ),
        tests="passes::test_weights_of_a_pair_are_those_of_all_of_its_cells",
    ),
    *_bugs(
        "good_cells.py",
        (
            "structure of the sky between cells adds no variance",
            "    weight /= 1 + rough * weight\n",
            "",
        ),
        (
            "a value that differs is told from a mean that holds it as if it did not",
            "allowed = weight / -total",
            "allowed = np.zeros_like(weight)",
        ),
        (
            "the sky of strange cells is the stranger of two: cosmic rays pass for sky",
            "np.where(np.abs(high - around) < np.abs(low - around), high, low)",
            "np.where(np.abs(high - around) < np.abs(low - around), low, high)",
        ),
        (
            "all values of a cell are judged at once, with a bad one among them",
            "(pull > _CLIP**2) & farthest",
            "pull > _CLIP**2",
        ),
        (
            "outliers are left out, but not what is beside them",
            "rows, columns = np.indices((3, 3)).reshape(2, -1)",
            "rows, columns = np.ones((2, 1), dtype=int)",
        ),
        tests=(
            "passes::test_a_cosmic_ray_is_not_structure_of_the_sky "
            "passes::test_a_bad_cell_of_one_of_two_is_not_structure_of_the_sky "
            "passes::test_structure_of_the_sky_adds_the_variance_of_interpolation "
            "passes::test_beside_a_bad_value_others_are_judged_as_two"
        ),
    ),
    *_bugs(
        "differences.py",
        (
            "right-hand sides are summed, not subtracted",
            "return normal, mixed - mixed.transpose(1, 0, 2), own",
            "return normal, mixed + mixed.transpose(1, 0, 2), own",
        ),
        (
            "pair weights w_i w_j, not divided by the sum over all exposures",
            "share = weight / root",
            "share = weight.astype(float)",
        ),
        (
            "the noise of an exposure divides its variance",
            "1 / (c.variance[_in_blocks(there)] * start.noise[number])",
            "1 / (c.variance[_in_blocks(there)] / start.noise[number])",
        ),
        (
            "the start is added a second time, not taken back",
            "return join_sums(sums, p).less(-start.coefficients)",
            "return join_sums(sums, p).less(start.coefficients)",
        ),
        (
            "planes of a patch are shifted the wrong way",
            "shift[1:, 0] = middle",
            "shift[1:, 0] = -middle",
        ),
        (
            "the noise of a mean difference is that of one of the two exposures",
            "2 * both, npix, heavy + heavy.T",
            "2 * both, npix, heavy",
        ),
        (
            "products are summed in single precision",
            "functions = np.concatenate([share, share * x, share * y][:p])",
            "functions = np.concatenate([share, share * x, share * y][:p]).astype(np.float32)",
        ),
        tests=(
            "passes::test_sums_of_pairs_against_a_loop_over_cells "
            "passes::test_a_ghost_on_one_of_two "
            "passes::test_a_pair_that_does_not_close_is_trusted_less "
            "passes::test_a_common_cell_determines_no_tilt "
            "levels::test_other_cells"
        ),
    ),
    *_bugs(
        "starts.py",
        (
            "the noise of an exposure is also told by differences from much noisier ones",
            "tells = share > _LEAST_SHARE",
            "tells = share >= 0",
        ),
        (
            "the start takes the given variances of pairs for right",
            "normal = fits.normal / _times_expected(noise, fits)[:, None, None]",
            "normal = fits.normal",
        ),
        (
            "a better start forgets the one that it is better than",
            "coefficients=start.coefficients + change)",
            "coefficients=change)",
        ),
        (
            "a bad pair spoils the start",
            "before, trust = trust, robust_trust(",
            "before, _ = trust, robust_trust(",
        ),
        (
            "the start of a noisy exposure is held as tightly as others",
            "1e-6 * largest",
            "1e-6 * np.median(weights)",
        ),
        tests=(
            "properties/test_matching_properties::test_scenes_in_which_an_exposure_of_another_scale_did_disturb_others "
            "properties/test_matching_properties::test_errors_that_are_much_too_small_are_seen_in_three_exposures "
            "passes::test_a_noisy_exposure_with_a_steep_tilt_is_not_held "
            "passes::test_pairs_with_more_noise_than_is_given_count_less_for_the_start "
            "passes::test_a_better_start_leaves_nothing_of_a_wrong_one "
            "passes::test_a_bad_pair_does_not_spoil_a_better_start"
        ),
    ),
    *_bugs(
        "solve.py",
        (
            "levels are relative to the one of a component that is known worst",
            "np.argsort(-self.normal.diagonal()",
            "np.argsort(self.normal.diagonal()",
        ),
        tests="levels::test_an_exposure_of_another_scale_disturbs_none",
    ),
    *_bugs(
        "exposures.py",
        (
            "the unit is that of the first exposure, whatever the others",
            "np.linspace(0, len(exposures) - 1, _ASKED)",
            "np.zeros(_ASKED)",
        ),
        tests="levels::test_an_exposure_of_another_scale_disturbs_none",
    ),
    *_bugs(
        "image_samples.py",
        (
            "levels are also measured from exposures that scatter much more",
            "known = every = np.isfinite(values) & ~_is_wild(values)[:, None]",
            "known = every = np.isfinite(values)",
        ),
        (
            "rounding passes for noise",
            "use = sums > (_ROUNDING * (size[first] + size[second])) ** 2",
            "use = sums > 0",
        ),
        (
            "factors are those of mean logarithms",
            "for _ in range(_REFINEMENTS):",
            "for _ in range(0):",
        ),
        tests=(
            "image_backgrounds::test_an_exposure_of_another_scale_disturbs_none "
            "image_backgrounds::test_copies_that_differ_by_rounding_tell_of_no_noise "
            "image_backgrounds::test_factors_of_exposures_of_unequal_noise"
        ),
    ),
    *_bugs(
        "neighbourhoods.py",
        (
            "what is clipped about the start keeps some of its error",
            "    start = better_start(start, sums.take(used))\n",
            "",
        ),
        tests="levels::test_a_wrong_start_is_forgotten",
    ),
    *_bugs(
        "rejection.py",
        (
            "an overlap that is short for one of both exposures is rejected",
            "short = (fits.extent <= options.min_linear_frac * own).all(axis=(0, 2))",
            "short = (fits.extent <= options.min_linear_frac * own).all(axis=2).any(axis=0)",
        ),
        (
            "the smallest of the rejected pairs hold exposures together",
            "1 + 1 / fits.npix",
            "1 + fits.npix",
        ),
        tests="rejection",
    ),
    *_bugs(
        "priors.py",
        (
            "the prior is made of all tilts, also those that nothing determines",
            "best = known & (variances <= _TIES * np.median(variances[known])) if known.any() else known",
            "best = known",
        ),
        tests="passes::test_plausible_tilts_are_those_that_are_determined_best",
    ),
    *_bugs(
        "lyot.py",
        (
            "a Lyot field that overlaps nothing has the level of its imager",
            "        coefficients[i, 0] += offset\n",
            "",
        ),
        (
            "it follows any imager of its tile",
            "of_exposure if of_exposure.any() else of_tile",
            "of_tile",
        ),
        (
            "the offset is that of Lyot fields that overlap no imager",
            "if component[i] in holds_imagers}, exposures)",
            "if component[i] not in holds_imagers}, exposures)",
        ),
        tests=(
            "levels::test_a_lyot_field_that_overlaps_nothing_follows_the_imager_of_its_exposure "
            "levels::test_a_lyot_field_that_overlaps_no_imager_has_the_offset_of_the_others"
        ),
    ),
    *_bugs(
        "passes.py",
        (
            "weights enter the scatter once, not twice",
            "equations.weighted(factors**2)",
            "equations.weighted(factors)",
        ),
        (
            "the misfit scales variances as if they were errors",
            "np.maximum(pulls, 1), 1)[group] ** 2",
            "np.maximum(pulls, 1), 1)[group]",
        ),
        (
            "variances grow with the misfit of another mosaic",
            "np.maximum(pulls, 1), 1)[group] ** 2",
            "np.maximum(pulls, 1), 1)[np.zeros_like(group)] ** 2",
        ),
        (
            "small mosaics never have a misfit",
            "np.where(is_small[component], few, component)",
            "component",
        ),
        (
            "errors do not follow through earlier passes",
            "response = response + one.units @ one.system.respond(rhs - one.units.T @ (one.normal @ response))",
            "response = response + one.units @ one.system.respond(rhs)",
        ),
        (
            "fixed exposures move",
            "held = fixed | (one.held & ",
            "held = (one.held & ",
        ),
        (
            "what joins held exposures is torn between them",
            "(one.held & ~_several_held(unit, pairs, one.held | fixed))",
            "one.held",
        ),
        (
            "later passes do not know what earlier ones found",
            "_solve_pass(pairs.less(coefficients), unit",
            "_solve_pass(pairs, unit",
        ),
        tests=(
            "passes::test_tied_passes_against_explicit_stacks "
            "passes::test_fixed_exposures_stay_and_others_join_them "
            "passes::test_held_exposures_that_a_pass_joins_are_to_agree "
            "passes::test_errors_grow_with_what_the_functions_leave "
            "passes::test_misfit_and_trust_are_those_of_each_mosaic "
            "passes::test_small_mosaics_have_one_misfit "
            "passes::test_errors_against_a_right_hand_side_for_each_exposure "
            "levels::test_weight_methods"
        ),
    ),
    *_bugs(
        "stages.py",
        (
            "the mean of a component has the wrong sign",
            "-1 / counts[sets]",
            "1 / counts[sets]",
        ),
        (
            "what the prior ties to the whole component is left out on one side",
            "            (self.one[both], self.own[both], prior[both]),\n",
            "",
        ),
        tests="passes::test_joint_solution_against_dense_least_squares",
    ),
    *_bugs(
        "selected_inverse.py",
        (
            "a transposition is missing in the scatter that is left",
            "rest[1] -= across + (left @ mixed).T",
            "rest[1] -= across + left @ mixed",
        ),
        (
            "a transposition is missing on the way back",
            "- done.right @ across.T",
            "- done.right @ across",
        ),
        tests="dissection::test_blocks_of_inverses_against_dense_algebra",
    ),
    *_bugs(
        "dissection.py",
        (
            "a front does not hand its boundary on to the one above",
            ", *(boundaries[b] for b in piece.below)",
            "",
        ),
        (
            "a separator that does not separate",
            "cover[reached] = ~cover[reached]",
            "cover[reached] = False",
        ),
        tests="dissection::test_fronts_hold_all_that_elimination_couples",
    ),
    *_bugs(
        "sky_differences.py",
        (
            "differences keep the sign of the order of names",
            "offset=np.where(one < two, 1, -1) * pairs.offset() / factor",
            "offset=pairs.offset() / factor",
        ),
        tests="sky_differences::test_offsets_are_the_first_less_the_second_in_any_order",
    ),
    *_bugs(
        "levels.py",
        (
            "levels are not those at the centre of the exposure",
            "matrix[0, 1:] = centre / unit",
            "matrix[0, 1:] = 0",
        ),
        (
            "east and north of slopes swapped",
            "matrix[1:, 1:] = (east - west) / 2, (north - south) / 2",
            "matrix[1:, 1:] = (north - south) / 2, (east - west) / 2",
        ),
        (
            "covariance in the unit of errors",
            "covariance=match.covariance / factor**2,",
            "covariance=match.covariance / factor,",
        ),
        tests="levels::test_planes levels::test_units_of_the_data",
    ),
    *_bugs(
        "reference.py",
        (
            "the reference tile is the one with the fewest overlaps",
            "(-overlaps[tile], flatness[tile], tile)",
            "(overlaps[tile], flatness[tile], tile)",
        ),
        tests="levels::test_most_overlaps",
    ),
    *_bugs(
        "planes.py",
        (
            "a plane on pixels: rows and columns of the series swapped",
            "return plane.level + rows @ series @ columns.T",
            "return plane.level + rows @ series.T @ columns.T",
        ),
        (
            "slopes per radian, not per arcsecond",
            "tangent_axes(*self.centre)) / ARCSEC",
            "tangent_axes(*self.centre))",
        ),
        tests="planes",
    ),
    *_bugs(
        "polynomials.py",
        (
            "powers about the reference point: shifted the wrong way",
            "_axis_to_powers(d, (x0 - x) / h, h)",
            "_axis_to_powers(d, (x - x0) / h, h)",
        ),
        (
            "products of functions: the two function axes interleaved",
            "order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2)]",
            "order = [0, *range(1, 2 * n + 1)]",
        ),
        tests="polynomials",
    ),
    *_bugs(
        "polynomial_sums.py",
        (
            "weights of plain pairs are divided by the sum over all",
            'total = weight + w[second] if weights == "pairs" else w.sum(axis=0)',
            "total = w.sum(axis=0)",
        ),
        (
            "the weight of a pair is divided by its own sum only",
            'if weights == "pairs" else w.sum(axis=0)',
            "if weights else w.sum(axis=0)",
        ),
        tests=(
            "spectra::test_maximum_likelihood_against_a_free_sky_in_each_voxel "
            "spectra::test_pairs_against_the_normal_equations_of_wiimatch"
        ),
    ),
    *_bugs(
        "voxels.py",
        (
            "the variance of a voxel is that of a pixel",
            "(noise / np.maximum(count, 1))[dense]",
            "noise[dense]",
        ),
        (
            "the middle of a voxel is its corner",
            "    where -= 0.5\n",
            "",
        ),
        (
            "neighbours before and after swapped",
            "for side, sign in enumerate((-1, 1)):",
            "for side, sign in enumerate((1, -1)):",
        ),
        (
            "outliers of a voxel: limits of large voxels for small ones",
            "np.repeat(limit, size)",
            "np.resize(limit, size.sum())",
        ),
        tests="voxels",
    ),
    *_bugs(
        "spectral_samples.py",
        (
            "voxels that a single exposure sees count as common",
            "return (np.bincount(self.voxel) > 1)[self.voxel]",
            "return (np.bincount(self.voxel) > 0)[self.voxel]",
        ),
        (
            "the variance of the mean sky is its error",
            "np.where(total > 0, 1 / total, np.nan)",
            "np.where(total > 0, 1 / np.sqrt(total), np.nan)",
        ),
        tests="spectra::test_polynomials_without_noise_are_recovered spectra::test_a_lone_exposure_is_left_as_it_is",
    ),
    *_bugs(
        "spectral_state.py",
        (
            "the gradient of the sky is added, not subtracted",
            "return samples.value - gradient - samples",
            "return samples.value + gradient - samples",
        ),
        (
            "the gradient from both neighbours is twice too steep",
            "np.where(is_edge, at_edge, (after - before) / 2)",
            "np.where(is_edge, at_edge, after - before)",
        ),
        tests="spectra::test_polynomials_without_noise_are_recovered",
    ),
    *_bugs(
        "spectral_fit.py",
        (
            "errors of pairs are variances",
            "1 / np.sqrt(total),",
            "1 / total,",
        ),
        (
            "polynomials may go anywhere outside the overlaps",
            "        priors[excess] *= 10\n",
            "",
        ),
        (
            "what samples have in common along wavelength makes no error larger",
            "return max(1.0, float(np.sum(np.bincount(member, weight * residual) ** 2) / np.sum(weight)))",
            "return 1.0",
        ),
        tests=(
            "spectra::test_variances_grow_with_what_all_wavelengths_of_a_place_share "
            "spectra::test_pairs_differ_by_the_levels "
            "spectra::test_a_polynomial_stays_within_bounds_where_nothing_constrains_it"
        ),
    ),
    *_bugs(
        "leave_one_out.py",
        (
            "the median of an even number is the higher of two",
            "return at_rank((rest - 1) // 2), at_rank(rest // 2), rest",
            "return at_rank(rest // 2), at_rank(rest // 2), rest",
        ),
        (
            "weights of the mean go with the error",
            "weights = donors / factor**2",
            "weights = donors / factor",
        ),
        (
            "of equal values the one that is left out is counted",
            "place += value <= flat.take",
            "place += value < flat.take",
        ),
        (
            "the effective number of a median is that of its density alone",
            "density**2 / np.maximum(number, 1)",
            "density",
        ),
        tests=(
            "leave_one_out::test_median_of_any_number_of_donors "
            "leave_one_out::test_scatters_that_differ_count_as_documented"
        ),
    ),
    *_bugs(
        "donors.py",
        (
            "exposures without good pixels serve others: rows and columns swapped",
            "serves = other & ~late & ~close & usable",
            "serves = other & ~late & ~close & usable[:, None]",
        ),
        tests="donors",
    ),
    *_bugs(
        "detection.py",
        (
            "deep parts of a mosaic have the noise of a single exposure",
            "np.where(missing, 0, image) * np.sqrt(count)",
            "np.where(missing, 0, image)",
        ),
        (
            "masks grow at most as far as they should at least",
            "reach = np.maximum(reach, least)",
            "reach = np.minimum(reach, least)",
        ),
        (
            "the light of two rings is that of the outer",
            "return total[:, 1:-1] + total[:, 2:], number",
            "return total[:, 2:], number",
        ),
        tests="detection",
    ),
    *_bugs(
        "holes.py",
        (
            "coarse pixels lie half a pixel off",
            "(np.arange(size) - 0.5) / 2",
            "np.arange(size) / 2",
        ),
        tests="holes",
    ),
    *_bugs(
        "image_samples.py",
        (
            "differences of levels are summed, not subtracted",
            "difference += company * (values @ share.T - share @ values.T)",
            "difference += company * (values @ share.T + share @ values.T)",
        ),
        (
            "what is left of an exposure does not know its level",
            "left[:, some] - level[:, None]",
            "left[:, some]",
        ),
        tests="image_backgrounds::test_levels_of_exposures_that_see_different_parts_of_the_pattern",
    ),
    *_bugs(
        "image_stack.py",
        (
            "the variance is scaled by the factor, not its square",
            "variance[rows] = factor**2 * (",
            "variance[rows] = factor * (",
        ),
        (
            "exposures are multiplied by their factor, not divided",
            "(alike[rows] - self.standard.offset[i]) / self.standard.factor[i]",
            "(alike[rows] - self.standard.offset[i]) * self.standard.factor[i]",
        ),
        (
            "the common variance is the mean of all, bright ones too: inverse not taken",
            "return np.divide(number, inverse, out",
            "return np.divide(inverse, number, out",
        ),
        (
            "sources are merged into the backgrounds of others",
            "alike = np.where(self.sources[i], np.float32(np.nan), self.images[i])",
            "alike = np.array(self.images[i])",
        ),
        tests=(
            "image_backgrounds::test_a_factor_on_one_exposure_is_one_on_its_background "
            "image_backgrounds::test_pixels_that_vary_more_have_larger_errors "
            "image_backgrounds::test_pixels_on_sources_serve_no_other"
        ),
    ),
    *_bugs(
        "image_backgrounds.py",
        (
            "holes are counted among bad pixels, too",
            "holes=float((count[good] == 0).mean())",
            "holes=float((count == 0).mean())",
        ),
        tests=("image_backgrounds::test_holes_are_those_of_good_pixels "),
    ),
    *_bugs(
        "source_masks.py",
        (
            "excluded regions are masked",
            "on_source &= ~inside_regions(guide.exclude",
            "on_source &= inside_regions(guide.exclude",
        ),
        tests=("image_backgrounds::test_excluded_regions_are_not "),
    ),
    *_bugs(
        "apply.py",
        (
            "levels are added in single precision",
            "np.add(data, level, dtype=np.float64)",
            "np.add(data, np.asarray(level, dtype=data.dtype))",
        ),
        (
            "undo takes the error from the variance, not its square",
            "np.square(error, dtype=np.float64) - sigma**2",
            "np.square(error, dtype=np.float64) - sigma",
        ),
        tests="apply",
    ),
    *_bugs(
        "masks.py",
        (
            "excluding regions lose against plain ones",
            "for group, value in ((including, True), (excluding, False)):",
            "for group, value in ((excluding, False), (including, True)):",
        ),
        tests="step::test_regions step::test_regions_masks_and_flags_combine",
    ),
    *_bugs(
        "record.py",
        (
            "pairs that are listed the other way keep the sign of their offset",
            '"residual": sign * match.residual',
            '"residual": match.residual',
        ),
        (
            "the slopes of a table are swapped",
            '"slope_east": match.slope[:, 0]',
            '"slope_east": match.slope[:, 1]',
        ),
        tests="step::test_saved_tables applied::test_copies_are_like_those_of_the_step",
    ),
    *_bugs(
        "saved.py",
        (
            "the slopes of a saved table are swapped",
            '("slope_east", "slope_north", "ra", "dec"))',
            '("slope_north", "slope_east", "ra", "dec"))',
        ),
        tests="applied::test_copies_are_like_those_of_the_step",
    ),
    *_bugs(
        "stored.py",
        (
            "rows of a stored image are written where those of a square one would be",
            "file.seek(row * self.size[1] * self.dtype.itemsize)",
            "file.seek(row * self.size[0] * self.dtype.itemsize)",
        ),
        tests="stored",
    ),
    *_bugs(
        "mosaics.py",
        (
            "the mosaic is off by a cell",
            "return self.grid.of(vectors) - self.low\n",
            "return self.grid.of(vectors) - self.low - 1\n",
        ),
        tests="mosaics",
    ),
    *_bugs(
        "steps/models.py",
        (
            "a level that was subtracted before is subtracted again",
            "shift(model.data, self.previous - self.level)",
            "shift(model.data, -self.level)",
        ),
        tests="step::test_repetition_changes_nothing",
    ),
    *_bugs(
        "steps/plane_record.py",
        (
            "rows and columns of MIRI's Lyot field swapped",
            "return slice(row, None), slice(0, column)",
            "return slice(0, column), slice(row, None)",
        ),
        (
            "the record of a second match forgets the first",
            "return replace(other, science=self.science + other.science, lyot=lyot)",
            "return replace(other, lyot=lyot)",
        ),
        tests="level_step::test_lyot_field_of_unsplit_files level_step::test_new_data_join_matched_ones",
    ),
    *_bugs(
        "steps/background_files.py",
        (
            "undo of a background does not give the variance back",
            "variance = sign * np.square(background.err, dtype=np.float64)",
            "variance = np.square(background.err, dtype=np.float64)",
        ),
        tests="image_step::test_variance_that_is_split",
    ),
    *_bugs(
        "steps/polynomial_record.py",
        (
            "right ascension and declination of polynomials swapped",
            "sign * polynomial(*coordinates[:, inside])",
            "sign * polynomial(*coordinates[[1, 0, 2]][:, inside])",
        ),
        tests="mrs_step::test_records",
    ),
]
