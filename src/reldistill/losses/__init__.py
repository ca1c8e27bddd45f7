"""The losses: for each a class that holds its settings, and a function of the same name."""

from __future__ import annotations

from reldistill.losses.at import AT, at_loss
from reldistill.losses.cc import CC, cc_loss
from reldistill.losses.crd import CRD
from reldistill.losses.cskd import CSKD, cskd_loss
from reldistill.losses.cwd import CWD, cwd_loss
from reldistill.losses.deit_hard import DeiTHard, deit_hard_loss
from reldistill.losses.deit_soft import DeiTSoft, deit_soft_loss
from reldistill.losses.dist import DIST, dist_loss
from reldistill.losses.dkd import DKD, dkd_loss
from reldistill.losses.features import ProjectedFeatures, features_loss
from reldistill.losses.fgd import FGD
from reldistill.losses.fitnets import FitNets, fitnets_loss
from reldistill.losses.head_kd import HeadKD, head_kd_loss
from reldistill.losses.ickd import ICKD, ickd_loss
from reldistill.losses.kd import KD, kd_loss
from reldistill.losses.leap import LEAP
from reldistill.losses.logit_std import LogitStd, logit_std_loss
from reldistill.losses.mgd import MGD
from reldistill.losses.ofd import OFD, ofd_loss
from reldistill.losses.patch_kl import PatchKL, patch_kl_loss
from reldistill.losses.pkd import PKD, pkd_loss
from reldistill.losses.pkt import PKT, pkt_loss
from reldistill.losses.reviewkd import ReviewKD, reviewkd_loss
from reldistill.losses.rkd import RKD, rkd_loss
from reldistill.losses.sekd import SEKD, sekd_loss
from reldistill.losses.serkd import SeRKD, serkd_loss
from reldistill.losses.simkd import SimKD, simkd_loss
from reldistill.losses.sp import SP, sp_loss
from reldistill.losses.spectralkd import SpectralKD, spectralkd_loss
from reldistill.losses.vid import VID
from reldistill.losses.vrm import VRM, vrm_loss

__all__ = [
    "AT",
    "CC",
    "CRD",
    "CSKD",
    "CWD",
    "DIST",
    "DKD",
    "FGD",
    "ICKD",
    "KD",
    "LEAP",
    "MGD",
    "OFD",
    "PKD",
    "PKT",
    "RKD",
    "SEKD",
    "SP",
    "VID",
    "VRM",
    "DeiTHard",
    "DeiTSoft",
    "FitNets",
    "HeadKD",
    "LogitStd",
    "PatchKL",
    "ProjectedFeatures",
    "ReviewKD",
    "SeRKD",
    "SimKD",
    "SpectralKD",
    "at_loss",
    "cc_loss",
    "cskd_loss",
    "cwd_loss",
    "deit_hard_loss",
    "deit_soft_loss",
    "dist_loss",
    "dkd_loss",
    "features_loss",
    "fitnets_loss",
    "head_kd_loss",
    "ickd_loss",
    "kd_loss",
    "logit_std_loss",
    "ofd_loss",
    "patch_kl_loss",
    "pkd_loss",
    "pkt_loss",
    "reviewkd_loss",
    "rkd_loss",
    "sekd_loss",
    "serkd_loss",
    "simkd_loss",
    "sp_loss",
    "spectralkd_loss",
    "vrm_loss",
]
