"""FITS files by astropy.io.fits: checked before they are read, complete before they have a name."""
