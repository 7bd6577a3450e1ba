from .command import verify as verify
from .compare import HduDifference as HduDifference
from .compare import ShiftDifference as ShiftDifference
from .compare import TableDifference as TableDifference
from .headers import KeywordDifference as KeywordDifference
from .report import Report as Report
from .report import compare_products as compare_products
from .runs import PeerError as PeerError
