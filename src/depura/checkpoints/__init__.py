"""Checkpoint files: reading published ones without running what is in them, saying what they are, and using them."""

from depura.checkpoints.identification import Identified as Identified
from depura.checkpoints.identification import identify as identify
from depura.checkpoints.loading import convert as convert
from depura.checkpoints.loading import load_classifier as load_classifier
from depura.checkpoints.loading import load_denoiser as load_denoiser
from depura.checkpoints.published import PUBLISHED as PUBLISHED
from depura.checkpoints.published import PublishedFile as PublishedFile
