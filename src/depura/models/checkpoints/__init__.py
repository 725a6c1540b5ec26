"""Checkpoint files: reading published ones without running what is in them, saying what they are, and using them."""

from depura.models.checkpoints.identification import Identified as Identified
from depura.models.checkpoints.identification import identify as identify
from depura.models.checkpoints.loading import convert as convert
from depura.models.checkpoints.loading import load_classifier as load_classifier
from depura.models.checkpoints.loading import load_denoiser as load_denoiser
from depura.models.checkpoints.published import PUBLISHED as PUBLISHED
from depura.models.checkpoints.published import PublishedFile as PublishedFile
