"""The losses: for each a class that holds its settings, and a function of the same name."""

from __future__ import annotations

from reldistill.losses.fitnets import FitNets, fitnets_loss
from reldistill.losses.kd import KD, kd_loss
from reldistill.losses.rkd import RKD, rkd_loss
from reldistill.losses.sekd import SEKD, sekd_loss
from reldistill.losses.serkd import SeRKD, serkd_loss

__all__ = ["KD", "RKD", "SEKD", "FitNets", "SeRKD", "fitnets_loss", "kd_loss", "rkd_loss", "sekd_loss", "serkd_loss"]
