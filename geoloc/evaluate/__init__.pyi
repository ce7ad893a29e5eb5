from .benchmarks import Benchmark as Benchmark
from .benchmarks import load_benchmark as load_benchmark
from .comparison import compare as compare
from .evaluation import Evaluation as Evaluation
from .leakage import nearest_known_km as nearest_known_km
from .matching import match as match
from .recall_set import (
    RecallReport as RecallReport,
)
from .recall_set import (
    RecallRules as RecallRules,
)
from .recall_set import (
    RecallSet as RecallSet,
)
from .recall_set import (
    open_recall_set as open_recall_set,
)
from .recall_set import (
    score_recall_set as score_recall_set,
)
from .run import EvaluateOptions as EvaluateOptions
from .run import evaluate as evaluate
from .run import evaluate_model as evaluate_model
