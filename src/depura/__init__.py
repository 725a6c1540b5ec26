"""depura: diffusion-based adversarial purification, and an honest account of how much it helps.

Parts are objects that compose: a `DiffusionPurifier` is a denoiser, a step table, a solver, perhaps guidance, a start
and a gradient route; a `Defence` is a purifier, a classifier and the deployed rule; a `Study` judges a defence.

A name is imported when it is first used, so that `import depura` loads no torch.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Errors
    from depura._check import InputError as InputError
    from depura._check import InputTypeError as InputTypeError

    # Data
    from depura.data.digits import load_digits as load_digits
    from depura.data.imageset import ImageSet as ImageSet
    from depura.data.imageset import load_npz as load_npz
    from depura.data.sources import from_dataset as from_dataset
    from depura.data.sources import load_images as load_images
    from depura.data.subsets import diffpure_subset as diffpure_subset
    from depura.data.subsets import subset as subset

    # Models
    from depura.models.by_name import classifier as classifier
    from depura.models.checkpoints import load_classifier as load_classifier
    from depura.models.checkpoints import load_denoiser as load_denoiser
    from depura.models.digits import digits_classifier as digits_classifier
    from depura.models.digits import digits_denoiser as digits_denoiser
    from depura.models.digits import digits_agdm_guide as digits_agdm_guide
    from depura.models.digits import digits_guide as digits_guide
    from depura.models.networks.features import Features as Features
    from depura.models.networks.wrappers import Normalised as Normalised
    from depura.models.networks.wrappers import ResizedInput as ResizedInput

    # The diffusion model: schedules, denoisers, reverse steps, guidance
    from depura.diffusion.denoisers import Clipped as Clipped
    from depura.diffusion.denoisers import Denoiser as Denoiser
    from depura.diffusion.denoisers import EdmDenoiser as EdmDenoiser
    from depura.diffusion.denoisers import EpsDenoiser as EpsDenoiser
    from depura.diffusion.denoisers import EpsVarianceDenoiser as EpsVarianceDenoiser
    from depura.diffusion.denoisers import ScoreDenoiser as ScoreDenoiser
    from depura.diffusion.denoisers import VDenoiser as VDenoiser
    from depura.diffusion.exact import GaussianDenoiser as GaussianDenoiser
    from depura.diffusion.exact import MixtureDenoiser as MixtureDenoiser
    from depura.diffusion.exact import empirical_denoiser as empirical_denoiser
    from depura.diffusion.guidance import Guidance as Guidance
    from depura.diffusion.guidance import State as State
    from depura.diffusion.guidance import mean_shift as mean_shift
    from depura.diffusion.guidance import minus_gradient as minus_gradient
    from depura.diffusion.guidance import score_shift as score_shift
    from depura.diffusion.schedules import Cosine as Cosine
    from depura.diffusion.schedules import DiscreteLinear as DiscreteLinear
    from depura.diffusion.schedules import EDM as EDM
    from depura.diffusion.schedules import IndexLabel as IndexLabel
    from depura.diffusion.schedules import NoiseSchedule as NoiseSchedule
    from depura.diffusion.schedules import SigmaLabel as SigmaLabel
    from depura.diffusion.schedules import Step as Step
    from depura.diffusion.schedules import TimeLabel as TimeLabel
    from depura.diffusion.schedules import VE as VE
    from depura.diffusion.schedules import VP as VP
    from depura.diffusion.schedules import coarser as coarser
    from depura.diffusion.schedules import ddpm_steps as ddpm_steps
    from depura.diffusion.schedules import karras_steps as karras_steps
    from depura.diffusion.schedules import log_snr_steps as log_snr_steps
    from depura.diffusion.schedules import respaced_steps as respaced_steps
    from depura.diffusion.schedules import steps_at as steps_at
    from depura.diffusion.schedules import uniform_steps as uniform_steps
    from depura.diffusion.solvers import Ancestral as Ancestral
    from depura.diffusion.solvers import AncestralLarge as AncestralLarge
    from depura.diffusion.solvers import AncestralLearned as AncestralLearned
    from depura.diffusion.solvers import DpmSolverPP as DpmSolverPP
    from depura.diffusion.solvers import Euler as Euler
    from depura.diffusion.solvers import EulerMaruyama as EulerMaruyama
    from depura.diffusion.solvers import EulerMaruyamaVP as EulerMaruyamaVP
    from depura.diffusion.solvers import EulerVP as EulerVP
    from depura.diffusion.solvers import Heun as Heun
    from depura.diffusion.solvers import Langevin as Langevin
    from depura.diffusion.solvers import Solver as Solver
    from depura.diffusion.solvers import as_it_is as as_it_is
    from depura.diffusion.solvers import from_input as from_input
    from depura.diffusion.solvers import from_noise as from_noise
    from depura.diffusion.solvers import from_unit_noise as from_unit_noise

    # Purifiers and operations on images
    from depura.image_ops import Blurred as Blurred
    from depura.image_ops import Jpeg as Jpeg
    from depura.image_ops import Upsampled as Upsampled
    from depura.image_ops import dssim as dssim
    from depura.image_ops import minus_mse as minus_mse
    from depura.image_ops import ssim as ssim
    from depura.purifiers.composed import Averaged as Averaged
    from depura.purifiers.composed import FixedNoise as FixedNoise
    from depura.purifiers.composed import Mixed as Mixed
    from depura.purifiers.composed import Resized as Resized
    from depura.purifiers.composed import Sequential as Sequential
    from depura.purifiers.fast import Fast as Fast
    from depura.purifiers.optimisation import Optimised as Optimised
    from depura.purifiers.purifier import DiffusionPurifier as DiffusionPurifier
    from depura.purifiers.purifier import Purifier as Purifier
    from depura.purifiers.purifier import TrajectoryStep as TrajectoryStep

    # Somebody's own purifier or defence, as it is
    from depura.purifiers.wrapped import Wrapped as Wrapped
    from depura.wrapping import wrap as wrap
    from depura.wrapping import wrap_defence as wrap_defence

    # Methods, by paper
    from depura.methods.adbm import adbm as adbm
    from depura.methods.agdm import agdm as agdm
    from depura.methods.agdm import agdm_sde as agdm_sde
    from depura.methods.agdm import on_estimate as on_estimate
    from depura.methods.agdm import on_state as on_state
    from depura.methods.baselines import blur_only as blur_only
    from depura.methods.baselines import jpeg_only as jpeg_only
    from depura.methods.baselines import noise_only as noise_only
    from depura.methods.diffpure import diffpure as diffpure
    from depura.methods.diffpure import diffpure_ode as diffpure_ode
    from depura.methods.diffpure import diffpure_random as diffpure_random
    from depura.methods.diffpure_ddpm import diffpure_adm as diffpure_adm
    from depura.methods.diffpure_ddpm import diffpure_ddpm as diffpure_ddpm
    from depura.methods.diffpure_langevin import diffpure_langevin as diffpure_langevin
    from depura.methods.gdmp import gdmp as gdmp
    from depura.methods.gdmp import gdmp_imagenet as gdmp_imagenet
    from depura.methods.gradual import gradual as gradual
    from depura.methods.likelihood import likelihood as likelihood
    from depura.methods.likelihood import scoreopt as scoreopt
    from depura.methods.mimicdiffusion import mimicdiffusion as mimicdiffusion
    from depura.methods.smoothing import one_step as one_step

    # Gradient routes
    from depura.gradients import Adjoint as Adjoint
    from depura.gradients import Deviated as Deviated
    from depura.gradients import Direct as Direct
    from depura.gradients import GradientRoute as GradientRoute
    from depura.gradients import Grafted as Grafted
    from depura.gradients import Relaxed as Relaxed
    from depura.gradients import StoredState as StoredState
    from depura.gradients import StraightThrough as StraightThrough
    from depura.gradients import graph_bytes as graph_bytes

    # Defences, rules and noise
    from depura.defence import Defence as Defence
    from depura.defence import MeanLogit as MeanLogit
    from depura.defence import MeanProb as MeanProb
    from depura.defence import Single as Single
    from depura.defence import Vote as Vote
    from depura.noise import Kind as Kind
    from depura.noise import Noise as Noise
    from depura.noise import Stream as Stream

    # Attacks
    from depura.attacks.apgd import APGD as APGD
    from depura.attacks.apgd import TargetedAPGD as TargetedAPGD
    from depura.attacks.apgd import WarmStart as WarmStart
    from depura.attacks.attack import Attack as Attack
    from depura.attacks.attack import Candidates as Candidates
    from depura.attacks.baselines import RandomPoints as RandomPoints
    from depura.attacks.baselines import CleanImages as CleanImages
    from depura.attacks.external import External as External
    from depura.attacks.fab import FAB as FAB
    from depura.attacks.flow import Flow as Flow
    from depura.attacks.low_frequency import LowFrequency as LowFrequency
    from depura.attacks.losses import cross_entropy as cross_entropy
    from depura.attacks.losses import margin as margin
    from depura.attacks.perceptual import Perceptual as Perceptual
    from depura.attacks.pgd import Momentum as Momentum
    from depura.attacks.pgd import PGD as PGD
    from depura.attacks.preview import preview as preview
    from depura.attacks.preview import previews as previews
    from depura.attacks.queries import AdaptiveDraws as AdaptiveDraws
    from depura.attacks.selective import Selective as Selective
    from depura.attacks.spsa import SPSA as SPSA
    from depura.attacks.square import Square as Square
    from depura.attacks.stadv import StAdv as StAdv
    from depura.attacks.threat import Ball as Ball
    from depura.attacks.transfer import Transfer as Transfer

    # Evaluation: studies, runs, plans, records
    from depura.audit.audit import Audit as Audit
    from depura.audit.audit import audit_gradient as audit_gradient
    from depura.evaluation import profiles as profiles
    from depura.evaluation.runner import RefusedError as RefusedError
    from depura.evaluation.runner import run as run
    from depura.evaluation.study import NeededFile as NeededFile
    from depura.evaluation.study import Published as Published
    from depura.evaluation.study import AttackRun as AttackRun
    from depura.evaluation.study import Study as Study
    from depura.evaluation.study import bare_suite as bare_suite
    from depura.evaluation.study import attack_suite as attack_suite
    from depura.evaluation.study import attack_suites as attack_suites
    from depura.planning.price import plan as plan
    from depura.records.directory import RecordError as RecordError
    from depura.records.directory import RunDirectory as RunDirectory
    from depura.records.kinds import AttackKind as AttackKind
    from depura.records.kinds import GradientMode as GradientMode

else:
    import ast
    from pathlib import Path

    import lazy_loader

    # What type checkers read above is what is imported here, by and by.
    _exports = {}
    for _node in ast.walk(ast.parse(Path(__file__).read_text(encoding="utf-8"))):
        if isinstance(_node, ast.ImportFrom) and _node.module.startswith("depura."):
            _exports.setdefault(_node.module.removeprefix("depura."), []).extend(name.name for name in _node.names)
    _rooms = [folder.parent.name for folder in Path(__file__).parent.glob("*/__init__.py")]
    __getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_rooms, submod_attrs=_exports)
