"""How closely results must agree, by kind of operation, each with its reason."""

#: A DFT of up to 41 x 40 pixels against a direct sum in double: 1e-15 x values of 1e3 x log2(N).
SHIFT_ABS = 1e-9

#: Registration in double against a least-squares fit on the direct objective, both to rounding of
#: a residual of many pixels: worst seen 8e-12 px.
REGISTRATION_PX = 1e-9

#: KLIP from inner products against an SVD of the pixels: eps times the condition of the
#: references (1e4 here) on values of 1e2; worst seen 2e-11.
KLIP_ABS = 1e-8

#: rms(difference)/rms of residuals and scatters on a GPU against the CPU: the goal of the float64
#: kernels. Rounding, times the largest eigenvalue over the gap at the truncation: worst seen 6e-10
#: (ERR of 180 references of 320 x 320 with 170 vectors kept).
KLIP_RMS = 1e-8

#: Weights and images of a drizzle against the drizzle package's running means in single precision,
#: beside the sum of the absolute terms of up to 250 overlaps: worst seen 6.2e-7.
DRIZZLE_SUM_REL = 1e-6
#: And the smallest normal number, for each overlap: a GPU makes 0 of the numbers below it that the
#: gaussian's outskirts come down to (worst seen there 4.8e-42; on the CPU 1e-43).
DRIZZLE_SUM_ABS = 2.0**-126

#: A variance where lanczos3's weights nearly cancel, against the package's, whose weights and
#: running means are in single precision: worst seen 3.1e-5.
DRIZZLE_CANCELLING_VARIANCE = 4e-5

#: A drizzle on the GPU, beside the sum of the absolute terms, against the CPU's: both sum in double
#: and round the result to single precision, to neighbouring numbers at worst.
DRIZZLE_ROUNDED = 1.2e-7

#: rms(difference)/rms of a lanczos i2d's SCI, ERR and VAR_* against jwst's: the largest values are
#: where weights cancel, and what is left of them is rounding: worst seen 9.9e-6 (VAR_RNOISE).
LANCZOS_REL = 1e-4

#: Kriging in double, Cholesky against a dense solver: eps times a condition of 1e4 (the nugget's
#: inverse); worst seen 5e-13.
KRIGING_REL = 1e-10

#: Filled pixels on a GPU against the CPU's in double, by the largest of the image: the same systems
#: with sums in another order; worst seen 1e-12.
FILL_REL = 1e-10

#: Images that pyKLIP subtracted and derotated in double, peak 100, residuals some units: products
#: and decompositions of the same matrices in another order; worst seen 2e-10.
PYKLIP = 1e-8
