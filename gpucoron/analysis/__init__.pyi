from .extended import ExtendedSource as ExtendedSource
from .extended import SkyGrid as SkyGrid
from .extended import forward_model as forward_model
