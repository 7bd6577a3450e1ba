from . import io as io
from . import ops as ops
from . import simulate as simulate
from . import steps as steps
from .api import plan as plan
from .api import run as run
from .core.parameters import Parameters as Parameters
from .core.stack import IntegrationStack as IntegrationStack
from .core.stack import PlaneSource as PlaneSource
from .errors import AssociationError as AssociationError
from .errors import DeviceError as DeviceError
from .errors import ExposureError as ExposureError
from .errors import GpucoronError as GpucoronError
from .errors import InputError as InputError
from .errors import MaskError as MaskError
from .errors import OutputError as OutputError
from .errors import ParameterError as ParameterError
from .errors import UsageError as UsageError
from .pipeline.result import ProductResult as ProductResult
from .pipeline.result import Result as Result

__version__: str
