from .page import make_report as make_report
from .page import write_report as write_report
