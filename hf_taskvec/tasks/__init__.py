"""Tasks: datasets, class names and prompts by name."""

from hf_taskvec.tasks.corruptions import corrupt, corruption_suite
from hf_taskvec.tasks.registry import SUITES, TASKS, as_task, as_tasks, get_task, get_tasks
from hf_taskvec.tasks.task import Split, Task

__all__ = [
    "SUITES",
    "TASKS",
    "Split",
    "Task",
    "as_task",
    "as_tasks",
    "corrupt",
    "corruption_suite",
    "get_task",
    "get_tasks",
]
