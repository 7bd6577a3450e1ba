"""Parameters, validators and the arrays that all of the packages share."""
