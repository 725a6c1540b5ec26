"""What `depura` exports, by subject; each name is imported when it is first used."""

# Errors
from ._check import InputError as InputError
from ._check import InputTypeError as InputTypeError

# Data
from .data.digits import load_digits as load_digits
from .data.imageset import ImageSet as ImageSet
from .data.imageset import load_npz as load_npz
from .data.sources import from_dataset as from_dataset
from .data.sources import load_images as load_images
from .data.subsets import diffpure_subset as diffpure_subset
from .data.subsets import subset as subset

# Models
from .models.by_name import classifier as classifier
from .models.checkpoints import load_classifier as load_classifier
from .models.checkpoints import load_denoiser as load_denoiser
from .models.digits import digits_classifier as digits_classifier
from .models.digits import digits_denoiser as digits_denoiser
from .models.digits import digits_guide as digits_guide
from .models.networks.features import Features as Features
from .models.networks.wrappers import Normalised as Normalised
from .models.networks.wrappers import ResizedInput as ResizedInput

# The diffusion model: schedules, denoisers, reverse steps, guidance
from .diffusion.denoisers import Clipped as Clipped
from .diffusion.denoisers import Denoiser as Denoiser
from .diffusion.denoisers import EdmDenoiser as EdmDenoiser
from .diffusion.denoisers import EpsDenoiser as EpsDenoiser
from .diffusion.denoisers import EpsVarianceDenoiser as EpsVarianceDenoiser
from .diffusion.denoisers import ScoreDenoiser as ScoreDenoiser
from .diffusion.denoisers import VDenoiser as VDenoiser
from .diffusion.exact import GaussianDenoiser as GaussianDenoiser
from .diffusion.exact import MixtureDenoiser as MixtureDenoiser
from .diffusion.exact import empirical_denoiser as empirical_denoiser
from .diffusion.guidance import Guidance as Guidance
from .diffusion.guidance import State as State
from .diffusion.guidance import mean_shift as mean_shift
from .diffusion.guidance import pull as pull
from .diffusion.guidance import score_shift as score_shift
from .diffusion.schedules import Cosine as Cosine
from .diffusion.schedules import DiscreteLinear as DiscreteLinear
from .diffusion.schedules import EDM as EDM
from .diffusion.schedules import IndexLabel as IndexLabel
from .diffusion.schedules import NoiseSchedule as NoiseSchedule
from .diffusion.schedules import SigmaLabel as SigmaLabel
from .diffusion.schedules import Step as Step
from .diffusion.schedules import TimeLabel as TimeLabel
from .diffusion.schedules import VE as VE
from .diffusion.schedules import VP as VP
from .diffusion.schedules import coarser as coarser
from .diffusion.schedules import ddpm_steps as ddpm_steps
from .diffusion.schedules import karras_steps as karras_steps
from .diffusion.schedules import log_snr_steps as log_snr_steps
from .diffusion.schedules import respaced_steps as respaced_steps
from .diffusion.schedules import steps_at as steps_at
from .diffusion.schedules import uniform_steps as uniform_steps
from .diffusion.solvers import Ancestral as Ancestral
from .diffusion.solvers import AncestralLarge as AncestralLarge
from .diffusion.solvers import AncestralLearned as AncestralLearned
from .diffusion.solvers import DpmSolverPP as DpmSolverPP
from .diffusion.solvers import Euler as Euler
from .diffusion.solvers import EulerMaruyama as EulerMaruyama
from .diffusion.solvers import EulerMaruyamaVP as EulerMaruyamaVP
from .diffusion.solvers import EulerVP as EulerVP
from .diffusion.solvers import Heun as Heun
from .diffusion.solvers import Langevin as Langevin
from .diffusion.solvers import Solver as Solver
from .diffusion.solvers import as_it_is as as_it_is
from .diffusion.solvers import from_input as from_input
from .diffusion.solvers import from_noise as from_noise
from .diffusion.solvers import from_unit_noise as from_unit_noise

# Purifiers and operations on images
from .image_ops import Blurred as Blurred
from .image_ops import Jpeg as Jpeg
from .image_ops import Upsampled as Upsampled
from .image_ops import minus_mse as minus_mse
from .image_ops import ssim as ssim
from .purifiers.composed import Averaged as Averaged
from .purifiers.composed import FixedNoise as FixedNoise
from .purifiers.composed import Mixed as Mixed
from .purifiers.composed import Resized as Resized
from .purifiers.composed import Sequential as Sequential
from .purifiers.fast import Fast as Fast
from .purifiers.optimisation import Optimised as Optimised
from .purifiers.purifier import DiffusionPurifier as DiffusionPurifier
from .purifiers.purifier import Purifier as Purifier
from .purifiers.purifier import TrajectoryStep as TrajectoryStep

# Methods, by paper
from .methods.adbm import adbm as adbm
from .methods.agdm import agdm as agdm
from .methods.agdm import agdm_sde as agdm_sde
from .methods.baselines import blur_only as blur_only
from .methods.baselines import jpeg_only as jpeg_only
from .methods.baselines import noise_only as noise_only
from .methods.diffpure import diffpure as diffpure
from .methods.diffpure import diffpure_ode as diffpure_ode
from .methods.diffpure import diffpure_random as diffpure_random
from .methods.diffpure_ddpm import diffpure_adm as diffpure_adm
from .methods.diffpure_ddpm import diffpure_ddpm as diffpure_ddpm
from .methods.diffpure_langevin import diffpure_langevin as diffpure_langevin
from .methods.gdmp import gdmp as gdmp
from .methods.gdmp import gdmp_imagenet as gdmp_imagenet
from .methods.gradual import gradual as gradual
from .methods.likelihood import likelihood as likelihood
from .methods.likelihood import scoreopt as scoreopt
from .methods.mimicdiffusion import mimicdiffusion as mimicdiffusion
from .methods.smoothing import one_step as one_step

# Gradient routes
from .gradients import Adjoint as Adjoint
from .gradients import Deviated as Deviated
from .gradients import Direct as Direct
from .gradients import GradientRoute as GradientRoute
from .gradients import Grafted as Grafted
from .gradients import Relaxed as Relaxed
from .gradients import StoredState as StoredState
from .gradients import StraightThrough as StraightThrough
from .gradients import graph_bytes as graph_bytes

# Defences, rules and noise
from .defence import Defence as Defence
from .defence import MeanLogit as MeanLogit
from .defence import MeanProb as MeanProb
from .defence import Single as Single
from .defence import Vote as Vote
from .noise import Kind as Kind
from .noise import Noise as Noise
from .noise import Stream as Stream

# Attacks
from .attacks.apgd import APGD as APGD
from .attacks.apgd import TargetedAPGD as TargetedAPGD
from .attacks.apgd import WarmStart as WarmStart
from .attacks.attack import Attack as Attack
from .attacks.attack import Candidates as Candidates
from .attacks.baselines import RandomPoints as RandomPoints
from .attacks.baselines import Unchanged as Unchanged
from .attacks.external import External as External
from .attacks.fab import FAB as FAB
from .attacks.flow import Flow as Flow
from .attacks.losses import cross_entropy as cross_entropy
from .attacks.losses import margin as margin
from .attacks.pgd import Momentum as Momentum
from .attacks.pgd import PGD as PGD
from .attacks.queries import AdaptiveDraws as AdaptiveDraws
from .attacks.selective import Selective as Selective
from .attacks.spsa import SPSA as SPSA
from .attacks.square import Square as Square
from .attacks.stadv import StAdv as StAdv
from .attacks.threat import Ball as Ball
from .attacks.transfer import Transfer as Transfer

# Evaluation: studies, runs, plans, records
from .audit.audit import Audit as Audit
from .audit.audit import audit_gradient as audit_gradient
from .evaluation import profiles as profiles
from .evaluation.runner import RefusedError as RefusedError
from .evaluation.runner import run as run
from .evaluation.study import NeededFile as NeededFile
from .evaluation.study import Published as Published
from .evaluation.study import Row as Row
from .evaluation.study import Study as Study
from .evaluation.study import bare_ladder as bare_ladder
from .evaluation.study import ladder as ladder
from .evaluation.study import ladders as ladders
from .planning.price import plan as plan
from .records.directory import RecordError as RecordError
from .records.directory import RunDirectory as RunDirectory
from .records.kinds import AttackKind as AttackKind
from .records.kinds import GradientMode as GradientMode
