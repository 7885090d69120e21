"""The verbs as functions: what the command line calls, and what a program may call.

Each imports what it needs when it runs, so that importing this package is cheap.
"""

from stillroom.api.asking import OPEN_SCENES_BYTES as OPEN_SCENES_BYTES
from stillroom.api.asking import ask as ask
from stillroom.api.asking import open_model as open_model
from stillroom.api.asking import open_scene as open_scene
from stillroom.api.bench import ablate as ablate
from stillroom.api.bench import bench_latency as bench_latency
from stillroom.api.bench import probe as probe
from stillroom.api.labels import export_labels as export_labels
from stillroom.api.labels import label as label
from stillroom.api.labels import label_cost as label_cost
from stillroom.api.labels import look_at_labels as look_at_labels
from stillroom.api.labels import merge_labels as merge_labels
from stillroom.api.meta import run_meta as run_meta
from stillroom.api.models import distill as distill
from stillroom.api.models import export as export
from stillroom.api.models import params as params
from stillroom.api.models import pretrain_encoder as pretrain_encoder
from stillroom.api.models import teach as teach
from stillroom.api.results import evaluate as evaluate
from stillroom.api.results import evaluate_suite as evaluate_suite
from stillroom.api.results import made_from as made_from
from stillroom.api.results import refresh_card as refresh_card
from stillroom.api.results import teacher_answers as teacher_answers
from stillroom.api.results import verify as verify
from stillroom.api.scenes import ask_scenes as ask_scenes
from stillroom.api.scenes import audit_scenes as audit_scenes
from stillroom.api.scenes import check_scenes as check_scenes
from stillroom.api.scenes import export_scenes as export_scenes
from stillroom.api.scenes import import_scenes as import_scenes
from stillroom.api.scenes import make_scenes as make_scenes
from stillroom.api.scenes import open_photos as open_photos
from stillroom.api.scenes import show_scene as show_scene
