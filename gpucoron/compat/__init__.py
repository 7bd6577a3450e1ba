"""Call gpucoron as other packages of high-contrast imaging are called, and hand results to them.

`gpucoron.compat.pyklip` has pyKLIP's ``klip_dataset``, which spaceKLIP calls, too;
`gpucoron.compat.crfints` copies crfints with the star's position for their readers;
`gpucoron.compat.vip` makes cubes for VIP. None of these packages is imported: they need not be
installed.
"""
