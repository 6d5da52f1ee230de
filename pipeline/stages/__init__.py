"""The stages of a run, in the order in which a clip passes them."""

from typing import Any

from pipeline.stage import Stage
from pipeline.stages.embed import Embed
from pipeline.stages.encode import Encode
from pipeline.stages.recaption import Recaption
from pipeline.stages.score import Score
from pipeline.stages.split import Split

STAGES: dict[str, type[Stage[Any, Any]]] = {stage.name: stage for stage in (Split, Score, Recaption, Encode, Embed)}
