from .collect import collect_statistics as collect_statistics
from .value import Gram as Gram
from .value import Statistics as Statistics
from .value import StatisticsInfo as StatisticsInfo
