from .cards.find import list_vectors as list_vectors
from .cards.publish import push_to_hub as push_to_hub
from .evaluation.accuracy import evaluate as evaluate
from .evaluation.coefficients import choose_weights as choose_weights
from .evaluation.report import Report as Report
from .evaluation.result import TaskResult as TaskResult
from .evaluation.scalings import choose_scaling as choose_scaling
from .merging import list_methods as list_methods
from .merging import merge as merge
from .merging import merge_method as merge_method
from .models.base import Base as Base
from .models.base import load_base as load_base
from .tasks import Task as Task
from .tasks import get_task as get_task
from .tasks import get_tasks as get_tasks
from .theory.early import choose_epochs as choose_epochs
from .theory.equivalence import verify_equivalence as verify_equivalence
from .theory.gradients import gradient_vector as gradient_vector
from .training.config import TaskVectorConfig as TaskVectorConfig
from .training.trainer import TaskVectorTrainer as TaskVectorTrainer
from .vectors.info import VectorInfo as VectorInfo
from .vectors.vector import TaskVector as TaskVector

__version__: str
