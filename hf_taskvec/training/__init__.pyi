from .atm import AlternatingRun as AlternatingRun
from .atm import alternating_tuning_and_merging as alternating_tuning_and_merging
from .config import TaskVectorConfig as TaskVectorConfig
from .trainer import TaskVectorTrainer as TaskVectorTrainer
